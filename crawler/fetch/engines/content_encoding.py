"""Decoding a body while it arrives, in bounded memory.

Both engines decode here, so that both treat a body that was cut short, or that has several gzip members, alike.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Protocol

import brotli  # type: ignore[import-untyped]
import zstandard

from coordinator.errors import FetchError

ACCEPT_ENCODING = "gzip, br, zstd, deflate"
# The zstd decoder cannot bound its output, and a block of 4 bytes decodes to at most 128 KiB. So a piece of 128 encoded
# bytes decodes to at most 4 MiB.
ZSTD_PIECE_BYTES = 128
ZSTD_MAX_WINDOW_BYTES = 8 * 1024 * 1024  # RFC 9659: no sender may use a larger one
# Of zlib, as windowBits: a gzip header, a zlib header, and no header.
GZIP_WINDOW_BITS = 31
ZLIB_WINDOW_BITS = 15
RAW_DEFLATE_WINDOW_BITS = -15


class BodyDecoder:
    """Decodes the body of one response to at most `cap` bytes; the encoded bytes are bounded too."""

    def __init__(self, encoding: str | None, cap: int) -> None:
        self._encoding = (encoding or "identity").strip().lower()
        self._cap = cap
        # Encoded bytes may be more than decoded ones. Without this bound, empty gzip members could go on for ever.
        self._encoded_bytes_left = cap if self._encoding == "identity" else 2 * cap + 1024
        self._size = 0
        self._parts: list[bytes] = []
        self._stream: _Stream | None = None
        self._finished = False

    def add(self, chunk: bytes) -> None:
        """Decode the next bytes that were received. Raises FetchError("too-large"), FetchError("decode")."""
        if not chunk:
            return
        self._encoded_bytes_left -= len(chunk)
        if self._encoding == "identity":
            self._keep(chunk)
        elif not self._finished:
            self._decode(chunk)
        if self._encoded_bytes_left < 0:
            raise self._too_large()

    def check_length(self, content_length: str | None) -> None:
        """Raise FetchError("too-large") when the Content-Length says that the body will be too large."""
        if content_length is not None and content_length.isdecimal() and int(content_length) > self._encoded_bytes_left:
            raise self._too_large()

    def finish(self) -> bytes:
        """Return the decoded body. Raises FetchError("decode") if its encoding was cut short."""
        if self._stream is not None and not self._stream.eof:
            raise FetchError("decode", "the compressed body ended early")
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    def _decode(self, chunk: bytes) -> None:
        try:
            while chunk:
                if self._stream is None or self._stream.eof:
                    if self._stream is not None and not self._continues(chunk):
                        self._finished = True  # bytes after the end are padding, and ignored
                        return
                    self._stream = self._open_stream(chunk)
                self._keep(self._stream.decompress(chunk, self._cap - self._size + 1))
                chunk = self._stream.unused_data
        except (zlib.error, brotli.error, zstandard.ZstdError) as error:
            raise FetchError("decode", f"{self._encoding}: {' '.join(str(error).split())}") from error

    def _keep(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > self._cap:
            raise self._too_large()
        if part:
            self._parts.append(part)

    def _open_stream(self, chunk: bytes) -> _Stream:
        open_stream = _OPENERS.get(self._encoding)
        if open_stream is None:
            raise FetchError("decode", "the body has a content encoding that was not requested")
        return open_stream(chunk)

    def _continues(self, chunk: bytes) -> bool:
        """Whether the chunk begins another member (gzip, RFC 1952 section 2.2) or frame (zstd, RFC 8878 section 3)."""
        first = _FIRST_BYTES.get(self._encoding)
        return first is not None and chunk[0] in first

    def _too_large(self) -> FetchError:
        return FetchError("too-large", f"the body exceeds {self._cap} bytes")


class _Stream(Protocol):
    """The decoder of one compressed stream, with the interface of zlib's decompressobj."""

    @property
    def eof(self) -> bool:
        """Whether the stream has ended."""
        ...

    @property
    def unused_data(self) -> bytes:
        """The bytes after the end of the stream."""
        ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        """Return decoded bytes; they may exceed `max_length`, and then the caller gives up."""
        ...


class _Brotli:
    unused_data = b""

    def __init__(self) -> None:
        self._decoder = brotli.Decompressor()

    @property
    def eof(self) -> bool:
        return bool(self._decoder.is_finished())

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        return bytes(self._decoder.process(data, output_buffer_limit=max_length))


class _Zstd:
    def __init__(self) -> None:
        self._decoder = zstandard.ZstdDecompressor(max_window_size=ZSTD_MAX_WINDOW_BYTES).decompressobj()
        self._rest = b""

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def unused_data(self) -> bytes:
        return self._rest

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        parts, size, start = [], 0, 0
        while start < len(data) and size < max_length and not self._decoder.eof:
            part = self._decoder.decompress(data[start : start + ZSTD_PIECE_BYTES])
            start += ZSTD_PIECE_BYTES
            parts.append(part)
            size += len(part)
        self._rest = self._decoder.unused_data + data[start:]
        return b"".join(parts)


def _gzip(_: bytes) -> _Stream:
    return zlib.decompressobj(GZIP_WINDOW_BITS)


def _deflate(start: bytes) -> _Stream:
    """Open a stream with or without a zlib header: it should have one, but some servers leave it out."""
    return zlib.decompressobj(ZLIB_WINDOW_BITS if start[0] & 0x0F == 8 else RAW_DEFLATE_WINDOW_BITS)


_OPENERS: dict[str, Callable[[bytes], _Stream]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _deflate,
    "br": lambda _: _Brotli(),
    "zstd": lambda _: _Zstd(),
}
# What the first byte of a further member or frame may be; zstd has skippable frames too.
_FIRST_BYTES = {"gzip": b"\x1f", "x-gzip": b"\x1f", "zstd": bytes([0x28, *range(0x50, 0x60)])}
