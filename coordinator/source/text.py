"""A source of lines: plain, gzip or zstd, in a file or through a pipe."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from hashlib import blake2b
from io import FileIO
from pathlib import Path

from coordinator.errors import SourceError
from coordinator.source.chunk import Chunk, Cursor, Refused
from coordinator.source.key_rule import MAX_KEY_BYTES, KeyRule, refuse
from coordinator.source.pieces import DAMAGE_ERRORS, RawInput, after_lines, pieces

STANDARD_INPUT = "-"

# What is kept of a very long line: enough to see that it is too long, also with a carriage return at its end.
_KEPT_LINE_BYTES = MAX_KEY_BYTES + 2
_BOM = b"\xef\xbb\xbf"
# The fingerprint is of the first and the last bytes of a file.
_FINGERPRINT_BYTES = 64 * 1024
# The lines of a compressed file are estimated from its first bytes.
_SAMPLE_BYTES = 16 * 1024 * 1024


class TextSource:
    """Reads keys from lines. Only one piece of the text is in memory at a time, however long the text or a line is.

    Keys are kept byte for byte, without the line end (LF or CRLF). Blank lines, lines whose first non-blank character
    is `#`, and a byte order mark at the start are skipped.
    """

    def __init__(self, path: str, *, cursor: Cursor, key_rule: KeyRule, folder: Path) -> None:
        """Open the file, relative to `folder`, or standard input for "-". Raises SourceError when that fails."""
        self._path = path
        self._folder = folder
        self._rule = key_rule
        self._cursor = cursor
        self._raw = self._open()
        self._lock = threading.Lock()
        self._stream: Iterator[bytes] | None = None
        self._rest = b""  # bytes that were read, but are not yet cut into lines
        self._dropped = 0  # how many bytes of the unfinished line are not kept in _rest
        self._ended = False
        self._failure: SourceError | None = None
        self._lines: list[str] = []  # lines that were cut; those from _next on are not yet returned
        self._next = 0
        self._has_carriage_returns = False  # somewhere in _lines
        self._offset = cursor.offset  # of the next line to return
        self._end = cursor.offset  # the offset after _lines
        self._line = cursor.line  # how many lines were returned or skipped

    def read(self, limit: int, seconds: float) -> Chunk:
        """See Source.read."""
        keys: list[str] = []
        refused: list[Refused] = []
        until: float | None = None
        with self._lock:
            while (room := limit - len(keys) - len(refused)) > 0:
                if until is not None and time.monotonic() >= until:
                    break
                if not self._lines and not self._refill(until):
                    # When there are whole lines before the damage, this read returns them, and the next one raises.
                    if self._failure and room == limit:
                        raise self._failure
                    break
                if until is None:
                    until = time.monotonic() + seconds
                self._classify_next(room, keys, refused)
            return Chunk(keys, refused, Cursor(self._offset, self._line), self._ended and not self._lines)

    def estimate(self) -> int | None:
        """See Source.estimate; exact for plain text, extrapolated from the first 16 MB of a compressed file."""
        if not self._raw.is_file:
            return None
        raw = self._open()
        count, last = 0, b"\n"
        try:
            compressed = raw.compression() is not None
            for piece in pieces(raw):
                count += piece.count(b"\n")
                last = piece[-1:] or last
                if compressed and raw.bytes_read > _SAMPLE_BYTES:
                    return count * raw.size // raw.bytes_read
        except (SourceError, *DAMAGE_ERRORS):
            return None
        finally:
            raw.close()
        return count + (last != b"\n")

    def fingerprint(self) -> str:
        """See Source.fingerprint: the size and a digest of the first and last 64 KB as they are on disk."""
        if not self._raw.is_file:
            return ""
        content = blake2b(digest_size=16)
        try:
            with FileIO(self._folder / self._path) as file:
                size = file.seek(0, 2)
                for start in (0, max(0, size - _FINGERPRINT_BYTES)):
                    file.seek(start)
                    content.update(file.read(_FINGERPRINT_BYTES))
        except OSError as error:
            raise self._failed(error) from error
        return f"{size}:{content.hexdigest()}"

    def close(self) -> None:
        """See Source.close."""
        self._raw.closed = True
        with self._lock:
            self._raw.close()

    def _open(self) -> RawInput:
        try:
            if self._path == STANDARD_INPUT:
                return RawInput(FileIO(0, closefd=False), "standard input", one_way=True)
            return RawInput(FileIO(self._folder / self._path), str(self._folder / self._path))
        except FileNotFoundError as error:
            raise SourceError(f"{self._folder / self._path} does not exist; check the source's path") from error
        except IsADirectoryError as error:
            raise SourceError(f"{self._folder / self._path} is a folder; name the file of keys in it") from error
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> SourceError:
        why = error.strerror or type(error).__name__
        return SourceError(f"{self._folder / self._path} cannot be read: {why}; check the file and its rights")

    def _refill(self, until: float | None) -> bool:
        """Read and cut more lines until the deadline; False when none came, or there are no more."""
        self._raw.deadline = until
        try:
            if self._stream is None:
                self._stream = self._begin()
            while not (self._ended or self._failure or self._cut()):
                piece = next(self._stream, None)
                if piece is None:
                    self._cut_last()
                elif piece:
                    self._rest += piece
                else:
                    break
        except DAMAGE_ERRORS as error:
            why = str(error) or type(error).__name__
            self._failure = SourceError(f"{self._raw.name} cannot be read beyond line {self._line}: {why}")
            self._failure.__cause__ = error
        return bool(self._lines)

    def _begin(self) -> Iterator[bytes]:
        """The decompressed bytes from the cursor on: by its offset in a file, by its lines in a pipe."""
        if self._raw.is_file:
            return pieces(self._raw, self._cursor.offset)
        return after_lines(pieces(self._raw), self._cursor.line)

    def _cut(self) -> bool:
        """Cut the whole lines off the rest; False when it has none."""
        end = self._rest.rfind(b"\n")
        if end < 0:
            self._dropped += max(0, len(self._rest) - _KEPT_LINE_BYTES)
            self._rest = self._rest[:_KEPT_LINE_BYTES]
            return False
        self._load(self._rest[:end], line_end_bytes=1)
        self._rest = self._rest[end + 1 :]
        return True

    def _cut_last(self) -> None:
        """Cut the last line, which has no line end."""
        self._ended = True
        if self._rest:
            self._load(self._rest, line_end_bytes=0)
            self._rest = b""

    def _load(self, text: bytes, *, line_end_bytes: int) -> None:
        """Make these whole lines the next ones to return; `line_end_bytes` follow the last of them."""
        # When bytes of the first line were dropped, the new offset is inside that line. No cursor is made of it,
        # because lines are returned as soon as they are loaded.
        start = self._offset + self._dropped
        self._end = start + len(text) + line_end_bytes
        self._dropped = 0
        if self._offset == 0 and text.startswith(_BOM):
            text = text[len(_BOM) :]
            start += len(_BOM)
        self._offset = start
        self._lines = text.decode("utf-8", "surrogateescape").split("\n")
        self._next = 0
        self._has_carriage_returns = b"\r" in text

    def _classify_next(self, room: int, keys: list[str], refused: list[Refused]) -> None:
        """Add the next lines, at most `room` of them, to the keys or to the refused lines."""
        lines = self._lines[self._next : self._next + room]
        self._next += len(lines)
        if self._next == len(self._lines):
            self._lines = []
            self._offset = self._end
        else:
            self._offset += len("\n".join(lines).encode("utf-8", "surrogateescape")) + 1
        first = self._line + 1
        self._line += len(lines)
        if self._has_carriage_returns:
            lines = [line.removesuffix("\r") for line in lines]
        surely_key = self._rule.surely_key
        sure = list(filter(surely_key, lines))
        if len(sure) == len(lines):
            keys += sure
            return
        for number, line in enumerate(lines, first):
            if surely_key(line):
                keys.append(line)
            else:
                self._classify(line, number, keys, refused)

    def _classify(self, line: str, number: int, keys: list[str], refused: list[Refused]) -> None:
        """Add one line to the keys, or to the refused lines, or skip it."""
        whole = line.encode("utf-8", "surrogateescape")
        if len(whole) > MAX_KEY_BYTES:
            # A long line that was read as one piece must be cut like one that was read as several.
            line = whole[:_KEPT_LINE_BYTES].decode("utf-8", "surrogateescape")
        begin = line[:MAX_KEY_BYTES].lstrip(" \t")[:1]
        if begin == "#" or (not begin and len(whole) <= MAX_KEY_BYTES):
            return
        if reason := self._rule.reason(line):
            refused.append(refuse(line, number, reason))
        else:
            keys.append(line)
