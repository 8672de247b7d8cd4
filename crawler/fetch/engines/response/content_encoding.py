"""Decoding a body while it arrives, in bounded memory.

Both engines decode here, so that both treat a body that was cut short, that has several gzip members, or whose
Content-Encoding names no coding, alike.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Protocol

import brotli  # type: ignore[import-untyped]
import zstandard

from coordinator.errors import FetchError

ACCEPT_ENCODING = "gzip, br, zstd, deflate"
MAX_CODINGS = 5  # as many as curl undoes
MAX_CODING_CHARACTERS = 40
# The zstd decoder cannot bound its output, and a block of 4 bytes decodes to at most 128 KiB. So a piece of 128 encoded
# bytes decodes to at most 4 MiB.
ZSTD_PIECE_BYTES = 128
ZSTD_MAX_WINDOW_BYTES = 8 * 1024 * 1024  # RFC 9659: no sender may use a larger one
# Of zlib, as windowBits: a gzip header, a zlib header, and no header.
GZIP_WINDOW_BITS = 31
ZLIB_WINDOW_BITS = 15
RAW_DEFLATE_WINDOW_BITS = -15


class BodyDecoder:
    """Decodes the body of one response to at most `cap` bytes; what lies between its codings is bounded too.

    `encoding` is the value of Content-Encoding, several headers joined by commas. A coding that nobody knows is left
    as it is: `coding` names it, and is None when the body is decoded. `size` is how many bytes it has so far.
    """

    def __init__(self, encoding: str | None, cap: int) -> None:
        """Raises FetchError("decode") when the body has more codings than any real one."""
        codings, self.coding = _to_undo(encoding)
        if len(codings) > MAX_CODINGS:
            raise FetchError("decode", f"the body has more than {MAX_CODINGS} content encodings")
        # Encoded bytes may be more than decoded ones. Without this bound, empty gzip members could go on for ever.
        encoded_cap = 2 * cap + 1024
        self._layers = [_Layer(coding, encoded_cap) for coding in codings]
        if self._layers:
            self._layers[-1].bytes_left = cap
        self._cap = cap
        self._between = (len(self._layers) - 1) * encoded_cap if self._layers else 0
        self._bytes_left = self._most_received = encoded_cap if self._layers else cap
        self._first = b""
        self._buffer: BytesIO | None = None  # of a body in several parts: joining them would take their memory twice
        self.size = 0

    @property
    def is_plain(self) -> bool:
        """Whether the body is as it is received."""
        return not self._layers

    def most(self, chunk: bytes) -> int:
        """How many bytes the next bytes may take, at most, while they are decoded."""
        return self._layers[-1].bytes_left + self._between if self._layers else len(chunk)

    def add(self, chunk: bytes) -> None:
        """Decode the next bytes that were received. Raises FetchError("too-large"), FetchError("decode")."""
        self._bytes_left -= len(chunk)
        for layer in self._layers:
            chunk = layer.decode(chunk)
            if layer.bytes_left < 0:
                raise self._too_large()
        if self._bytes_left < 0:
            raise self._too_large()
        if not self.size:
            self._first = chunk
        elif chunk:
            if self._buffer is None:
                self._buffer = BytesIO()
                self._buffer.write(self._first)
                self._first = b""
            self._buffer.write(chunk)
        self.size += len(chunk)

    def check_length(self, content_length: str | None) -> None:
        """Raise FetchError("too-large") when the Content-Length says that the body will be too large."""
        if content_length is not None and content_length.isdecimal() and int(content_length) > self._most_received:
            raise self._too_large()

    def finish(self) -> bytes:
        """Return the decoded body. Raises FetchError("decode") if one of its codings was cut short."""
        if any(layer.is_open for layer in self._layers):
            raise FetchError("decode", "the compressed body ended early")
        return self._first if self._buffer is None else self._buffer.getvalue()

    def _too_large(self) -> FetchError:
        return FetchError("too-large", f"the body exceeds {self._cap} bytes")


def _to_undo(encoding: str | None) -> tuple[list[str], str | None]:
    """Return the codings to undo, the first one first, and the one after them that nobody knows."""
    codings: list[str] = []
    for value in reversed((encoding or "").lower().split(",")):  # RFC 9110, section 8.4: in the order of applying
        coding = value.partition(";")[0].strip(' \t"')  # some send a quality with it, or quote it
        if coding in _OPENERS:
            codings.append(coding)
        elif _CODING.fullmatch(coding) and not _NO_CODING.fullmatch(coding):
            return codings, coding[:MAX_CODING_CHARACTERS]
    return codings, None


class _Layer:
    """One content encoding of a body; `bytes_left` is negative once it gave more bytes than it may."""

    def __init__(self, coding: str, cap: int) -> None:
        self.bytes_left = cap
        self._coding = coding
        self._stream: _Stream | None = None
        self._finished = False

    @property
    def is_open(self) -> bool:
        """Whether more bytes must come."""
        return self._stream is not None and not self._stream.eof

    def decode(self, chunk: bytes) -> bytes:
        parts: list[bytes] = []
        try:
            while chunk and not self._finished and self.bytes_left >= 0:
                if self._stream is None or self._stream.eof:
                    if self._stream is not None and not self._continues(chunk):
                        self._finished = True  # bytes after the end are padding, and ignored
                        break
                    self._stream = _OPENERS[self._coding](chunk)
                part = self._stream.decompress(chunk, self.bytes_left + 1)
                self.bytes_left -= len(part)
                parts.append(part)
                chunk = self._stream.unused_data
        except (zlib.error, brotli.error, zstandard.ZstdError) as error:
            raise FetchError("decode", f"{self._coding}: {' '.join(str(error).split())}") from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _continues(self, chunk: bytes) -> bool:
        """Whether the chunk begins another member (gzip, RFC 1952 section 2.2) or frame (zstd, RFC 8878 section 3)."""
        first = _FIRST_BYTES.get(self._coding)
        return first is not None and chunk[0] in first


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
# A coding is a token (RFC 9110, section 8.4.1). What is none, such as a media type, says nothing about the body.
_CODING = re.compile(r"[-!#$%&'*+.^_`|~0-9a-z]+")
# Tokens that upstreams send for a body that is not encoded: other words for identity, transfer encodings, charsets.
_NO_CODING = re.compile(
    r"identity|none|null|binary|[78]bit|chunked|aws-chunked|text|plain|raw|"
    r"(x-)?(utf|ucs|unicode|(us-?)?ascii|ansi|iso|latin|windows|cp\d|ibm|koi|mac|big5|gb|euc|shift|s?jis|tis)[-_0-9a-z]*"
)
