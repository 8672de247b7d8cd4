"""The text of a source as UTF-8, decompressed, in pieces of bounded size."""

from __future__ import annotations

import bz2
import codecs
import lzma
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from itertools import chain
from typing import Any

import zstandard

from coordinator.source.input.files import PIECE_BYTES, RawInput
from coordinator.source.input.formats import (
    HEAD_BYTES,
    compression_of,
    require_compression,
    require_lines,
    wide_encoding_of,
)

# What `pieces` raises when the bytes are damaged. TextSource makes a SourceError of it, because it knows the line.
DAMAGE_ERRORS = (EOFError, OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError)

# A zstd block of at least 4 bytes unpacks to at most 128 KB (RFC 8878, 3.1.1.2), so a slice unpacks to at most 8 MB.
_ZSTD_SLICE_BYTES = 256
# `xz -9` needs 65 MB; a file that was made with a larger dictionary is refused.
_XZ_MEMORY_BYTES = 256 * 1024 * 1024
_OPEN: Mapping[str, Callable[[], Any]] = {
    "gzip": lambda: zlib.decompressobj(wbits=31),
    "zstd": lambda: zstandard.ZstdDecompressor().decompressobj(),
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES),
    "bzip2": bz2.BZ2Decompressor,
}


def pieces(
    raw: RawInput, offset: int = 0, warn: Callable[[str], None] = lambda _: None, *, may_be: str = ""
) -> Iterator[bytes]:
    """Yield the text from `offset` on, which counts bytes of the text as UTF-8. An empty piece means that nothing came
    before the deadline. A pipe has no offset.

    Compressed data may have any number of members; what follows the last one and is no compressed data is left out, and
    `warn` gets a sentence about it. Raises SourceError for a format that is no text (but for `may_be`, as in
    `require_lines`), or not what the name promises, and one of DAMAGE_ERRORS when the bytes are damaged.
    """
    head = raw.head()
    require_compression(head, raw.name)
    compressed = compression_of(head) is not None
    if compressed or wide_encoding_of(head):
        return _after(_as_utf8(_unpacked(raw, warn) if compressed else _plain(raw), raw.name, may_be), offset)
    require_lines(head, raw.name, may_be=may_be)
    if offset:
        raw.go_to(offset)
    return _plain(raw)


def _after(stream: Iterator[bytes], offset: int) -> Iterator[bytes]:
    """Skip the first `offset` bytes of a stream of pieces. Raises EOFError when it has fewer."""
    left = offset
    for piece in stream:
        if len(piece) > left:
            yield piece[left:]
        elif not piece:
            yield b""
        left = max(0, left - len(piece))
    if left:
        raise EOFError("the source is shorter than it was when this run read it")


def _plain(raw: RawInput) -> Iterator[bytes]:
    while (data := raw.read(PIECE_BYTES)) != b"":
        yield data or b""


def _as_utf8(stream: Iterator[bytes], name: str, may_be: str) -> Iterator[bytes]:
    """The same text in UTF-8: UTF-16 with a byte order mark is converted. Raises SourceError for what is no text."""
    head = yield from _head_of(stream)
    if codec := wide_encoding_of(head):
        stream = _converted(chain([head], stream), codec)
        head = yield from _head_of(stream)
    require_lines(head, name, may_be=may_be)
    if head:
        yield head
    yield from stream


def _head_of(stream: Iterator[bytes]) -> Generator[bytes, None, bytes]:
    """The first pieces of a stream, joined: enough to know the format. Yields an empty piece for each that it meets."""
    head = b""
    for piece in stream:
        head += piece
        if len(head) >= HEAD_BYTES or b"\n" in head or b"\r" in head:
            break
        if not piece:
            yield b""
    return head


def _converted(stream: Iterator[bytes], codec: str) -> Iterator[bytes]:
    """UTF-16 as UTF-8. Half a character becomes bytes that are no UTF-8, so that its line is refused and no other."""
    decoder = codecs.getincrementaldecoder(codec)("surrogatepass")
    for piece in stream:
        text = decoder.decode(piece)
        if text or not piece:
            yield text.encode("utf-8", "surrogatepass")
    if decoder.getstate()[0]:
        yield b"\xff"


def _unpacked(raw: RawInput, warn: Callable[[str], None]) -> Iterator[bytes]:
    """The members of compressed data, one after another, each with a compression of its own."""
    rest, kind = b"", None
    while True:
        while len(rest) < HEAD_BYTES and (data := raw.read(PIECE_BYTES // 4)) != b"":
            if data is None:
                yield b""
                continue
            # Tapes, block devices and xz add zeros between members and after the last one (see gzip(1)).
            rest = (rest + data).lstrip(b"\0") if kind else rest + data
        if not rest:
            return
        last, kind = kind, compression_of(rest)
        if kind is None:
            warn(f"{raw.name} has trailing garbage after its {last} data, which is not read: is the file whole?")
            return
        member = _OPEN[kind]()
        while True:
            rest = yield from _unpacked_part(member, kind, rest)
            if member.eof:
                rest = rest.lstrip(b"\0")
                break
            while (data := raw.read(PIECE_BYTES // 4)) is None:
                yield b""
            if not data:
                raise EOFError(f"the {kind} data end too early")
            rest = data


def _unpacked_part(member: Any, kind: str, data: bytes) -> Generator[bytes, None, bytes]:
    """Feed compressed bytes to a member and yield what they unpack to; returns the bytes after the member's end."""
    if kind == "zstd":
        for start in range(0, len(data), _ZSTD_SLICE_BYTES):
            out = member.decompress(data[start : start + _ZSTD_SLICE_BYTES])
            yield from (out[at : at + PIECE_BYTES] for at in range(0, len(out), PIECE_BYTES))
            if member.eof:
                return bytes(member.unused_data) + data[start + _ZSTD_SLICE_BYTES :]
        return b""
    while data or not (kind == "gzip" or member.needs_input):
        piece = member.decompress(data, PIECE_BYTES)
        if piece:
            yield piece
        if member.eof:
            return bytes(member.unused_data)
        data = member.unconsumed_tail if kind == "gzip" else b""
    return b""
