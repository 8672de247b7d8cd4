"""A body as it comes: undoes its content encoding, and never holds more than the cap, whatever the bytes promise.

Both engines leave decoding to this file, so that a body that was cut short, or goes on in another gzip member, ends the
same way in both.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Protocol

import brotli  # type: ignore[import-untyped]
import zstandard

from coordinator.errors import FetchError

ACCEPTED = "gzip, br, zstd, deflate"
# A block of zstd makes at most 128 KiB out of 4 bytes, and its decoder takes no bound: 4 MiB at a time.
ZSTD_PIECE = 128
ZSTD_WINDOW = 8 * 1024 * 1024  # RFC 9659: no sender may ask for more


class Body:
    """The decoded bytes of one response, at most `cap` of them; of encoded ones hardly more are taken."""

    def __init__(self, encoding: str | None, cap: int) -> None:
        self._encoding = (encoding or "identity").strip().lower()
        self._cap = cap
        # What cannot be compressed grows a little; members without content would go on for ever.
        self._room = cap if self._encoding == "identity" else 2 * cap + 1024
        self._size = 0
        self._parts: list[bytes] = []
        self._stream: _Stream | None = None
        self._ended = False

    def add(self, chunk: bytes) -> None:
        """Take the next bytes from the wire. Raises FetchError("too-large"), FetchError("decode")."""
        if not chunk:
            return
        self._room -= len(chunk)
        if self._encoding == "identity":
            self._keep(chunk)
        elif not self._ended:
            self._decode(chunk)
        if self._room < 0:
            raise self._too_large()

    def expect(self, content_length: str | None) -> None:
        """Raise FetchError("too-large") at once when the head announces too much."""
        if content_length is not None and content_length.isdecimal() and int(content_length) > self._room:
            raise self._too_large()

    def whole(self) -> bytes:
        """The body at its end. Raises FetchError("decode") if its encoding was cut short."""
        if self._stream is not None and not self._stream.eof:
            raise FetchError("decode", "the compressed body ended early")
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    def _decode(self, chunk: bytes) -> None:
        try:
            while chunk:
                if self._stream is None or self._stream.eof:
                    if self._stream is not None and not self._goes_on(chunk):
                        self._ended = True  # padding after the end, which nothing asks us to understand
                        return
                    self._stream = self._begin(chunk)
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

    def _begin(self, chunk: bytes) -> _Stream:
        begin = _STREAMS.get(self._encoding)
        if begin is None:
            raise FetchError("decode", "the body has a content encoding that was not asked for")
        return begin(chunk)

    def _goes_on(self, chunk: bytes) -> bool:
        """Whether another member (gzip, RFC 1952 section 2.2) or frame (zstd, RFC 8878 section 3) follows the last."""
        first = _CONTINUED.get(self._encoding)
        return first is not None and chunk[0] in first

    def _too_large(self) -> FetchError:
        return FetchError("too-large", f"the body exceeds {self._cap} bytes")


class _Stream(Protocol):
    """One compressed stream; the interface of zlib's decompressobj."""

    @property
    def eof(self) -> bool:
        """Whether the stream's end was seen."""
        ...

    @property
    def unused_data(self) -> bytes:
        """What followed the end."""
        ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        """Decoded bytes; when they exceed `max_length` the caller gives up."""
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
        self._decoder = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW).decompressobj()
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
            part = self._decoder.decompress(data[start : start + ZSTD_PIECE])
            start += ZSTD_PIECE
            parts.append(part)
            size += len(part)
        self._rest = self._decoder.unused_data + data[start:]
        return b"".join(parts)


def _gzip(_: bytes) -> _Stream:
    return zlib.decompressobj(31)


def _deflate(start: bytes) -> _Stream:
    """It should have a zlib header, and some servers leave it out."""
    return zlib.decompressobj(15 if start[0] & 0x0F == 8 else -15)


_STREAMS: dict[str, Callable[[bytes], _Stream]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _deflate,
    "br": lambda _: _Brotli(),
    "zstd": lambda _: _Zstd(),
}
# The first byte of a member or frame; zstd has skippable frames too.
_CONTINUED = {"gzip": b"\x1f", "x-gzip": b"\x1f", "zstd": bytes([0x28, *range(0x50, 0x60)])}
