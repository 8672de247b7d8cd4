"""The bytes of a file or pipe, decompressed, in pieces of bounded size."""

from __future__ import annotations

import io
import os
import select
import stat
import time
import zlib
from collections.abc import Iterator

import zstandard

from coordinator.errors import SourceError

PIECE_BYTES = 256 * 1024

# What `pieces` raises when the bytes are damaged. TextSource makes a SourceError of it, because it knows the line.
DAMAGE_ERRORS = (EOFError, OSError, zlib.error, zstandard.ZstdError)

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = tuple(bytes([low]) + b"\x2a\x4d\x18" for low in range(0x50, 0x60))
_MAGIC = (_GZIP, _ZSTD, *_ZSTD_SKIPPABLE)
# A zstd block of at least 4 bytes unpacks to at most 128 KB (RFC 8878, 3.1.1.2), so a slice unpacks to at most 8 MB.
_ZSTD_SLICE_BYTES = 256


class RawInput:
    """An open file or pipe. A read of a pipe ends at `deadline` (monotonic seconds), or when `closed` is set."""

    def __init__(self, file: io.FileIO, name: str, *, one_way: bool = False) -> None:
        """Read an open file. `name` is for messages; with `one_way` it is read like a pipe, without seeking."""
        status = os.fstat(file.fileno())
        self.name = name
        self.is_file = stat.S_ISREG(status.st_mode) and not one_way
        self.size = status.st_size
        self.bytes_read = 0
        self.deadline: float | None = None
        self.closed = False
        self._file = file
        self._ahead = b""

    def read(self, size: int) -> bytes | None:
        """The next bytes; b"" at the end; None when the deadline passed, or it was closed, before any came."""
        if self._ahead:
            data, self._ahead = self._ahead, b""
            return data
        if not self._ready():
            return None
        data = self._file.read(size)
        self.bytes_read += len(data or b"")
        return data

    def compression(self) -> str | None:
        """The compression by the first bytes: "gzip", "zstd", or None for plain text. Waits for a pipe."""
        first_bytes = b""
        while first_bytes not in _MAGIC and any(magic.startswith(first_bytes) for magic in _MAGIC):
            more = self.read(1)
            if not more:
                break
            first_bytes += more
        self._ahead = first_bytes
        if first_bytes not in _MAGIC:
            return None
        return "gzip" if first_bytes == _GZIP else "zstd"

    def go_to(self, offset: int) -> None:
        """Go on from a byte of a plain file. Raises EOFError when the file is shorter."""
        if offset > self.size:
            raise EOFError("the file is shorter than it was when this run read it")
        self._ahead = b""
        self._file.seek(offset)

    def close(self) -> None:
        """Close the file; standard input stays open."""
        self._file.close()

    def _ready(self) -> bool:
        """Wait until a read does not block; False at the deadline, or when it was closed."""
        if self.is_file:
            return not self.closed
        poll = select.poll()
        poll.register(self._file, select.POLLIN)
        while not self.closed:
            # Wake up a few times a second, to see whether another thread has closed it.
            left = 0.2 if self.deadline is None else min(0.2, self.deadline - time.monotonic())
            if poll.poll(max(0.0, left) * 1000):
                return True
            if left <= 0:
                return False
        return False


def pieces(raw: RawInput, offset: int = 0) -> Iterator[bytes]:
    """Yield the decompressed bytes from `offset` on. An empty piece means that nothing came before the deadline.

    A pipe has no offset: see `after_lines`. gzip (any number of members) and zstd (any number of frames) are recognised
    by their first bytes. Raises SourceError when the name ends in .gz or .zst and the bytes are something else, and one
    of DAMAGE_ERRORS when they are damaged.
    """
    compression = raw.compression()
    if compression:
        return _after(_gunzip(raw) if compression == "gzip" else _unzstd(raw), offset)
    for suffix, promised in ((".gz", "gzip"), (".zst", "zstd")):
        if raw.name.endswith(suffix) and not raw.closed:
            raise SourceError(f"{raw.name} is not {promised} data; if it is plain text, rename it without {suffix}")
    if offset:
        raw.go_to(offset)
    return _plain(raw)


def after_lines(stream: Iterator[bytes], count: int) -> Iterator[bytes]:
    """Skip `count` lines of a stream of pieces. Raises EOFError when it has fewer."""
    left, tail = count, b""
    while left:
        piece = next(stream, None)
        if piece is None:
            if left == 1 and tail:
                return
            raise EOFError(f"it has fewer than the {count} lines that this run has read before; give the same again")
        if not piece:
            yield b""
            continue
        lines = piece.split(b"\n", left)
        left -= len(lines) - 1
        tail = lines[-1]
    if count and tail:
        yield tail
    yield from stream


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


def _gunzip(raw: RawInput) -> Iterator[bytes]:
    member = None
    while (data := raw.read(PIECE_BYTES // 4)) != b"":
        if data is None:
            yield b""
            continue
        while data:
            if member is None:
                # Tapes and block devices add zeros between members and after the last one (see gzip(1)).
                data = data.lstrip(b"\0")
                member = zlib.decompressobj(wbits=31) if data else None
                continue
            piece = member.decompress(data, PIECE_BYTES)
            data = member.unused_data if member.eof else member.unconsumed_tail
            member = None if member.eof else member
            if piece:
                yield piece
    if member is not None:
        raise EOFError("the gzip data end too early")


def _unzstd(raw: RawInput) -> Iterator[bytes]:
    frame = None
    while (data := raw.read(PIECE_BYTES // 4)) != b"":
        if data is None:
            yield b""
            continue
        for start in range(0, len(data), _ZSTD_SLICE_BYTES):
            rest = data[start : start + _ZSTD_SLICE_BYTES]
            while rest:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                out = frame.decompress(rest)
                rest = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
                yield from (out[at : at + PIECE_BYTES] for at in range(0, len(out), PIECE_BYTES))
    if frame is not None:
        raise EOFError("the zstd data end too early")
