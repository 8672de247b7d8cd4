"""A source of lines: in a file, in the files of a folder or a glob, or through a pipe."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

from coordinator.errors import SourceError
from coordinator.source.chunk import Chunk, Cursor, Refused
from coordinator.source.first_keys import FirstKeys
from coordinator.source.input.files import STANDARD_INPUT, SourceFile, fingerprint_of
from coordinator.source.input.line_count import estimate_lines
from coordinator.source.input.pieces import DAMAGE_ERRORS, pieces
from coordinator.source.key_rule import BLANKS, MAX_KEY_BYTES, KeyRule, refuse

# What is kept of a very long line: enough to see that it is too long, also with some blanks around the key.
_KEPT_LINE_BYTES = MAX_KEY_BYTES + 1000


class TextSource:
    """Reads keys from lines. Only one piece of the text is in memory at a time, however long the text or a line is.

    A line ends in LF, CRLF or CR, and the last one of a file in nothing. Keys are kept byte for byte, without blanks
    and byte order marks around them. Blank lines are skipped, and where keys are URLs those that begin with `#`.
    """

    def __init__(
        self,
        path: str,
        files: Sequence[SourceFile],
        *,
        cursor: Cursor,
        key_rule: KeyRule,
        warn: Callable[[str], None],
    ) -> None:
        """Open the first of the files that are at `path`, or the cursor's. Raises SourceError when that fails."""
        self._files = files
        self._rule = key_rule
        name = "standard input" if path == STANDARD_INPUT else path
        self._first = FirstKeys(name, cursor, warn, absolute_url=key_rule.absolute_url)
        self._warn = warn
        self._lock = threading.Lock()
        self._failure: SourceError | None = None
        self._open(self._index_of(cursor), cursor)

    def _index_of(self, cursor: Cursor) -> int:
        """The index of the cursor's file. By its name, so that a file that came before it does not move the cursor."""
        if not cursor.file:
            return 0
        for index, file in enumerate(self._files):
            if file.name == cursor.file:
                return index
        raise SourceError(f"{cursor.file}, where this run goes on, is not in the source any more; bring it back")

    def _open(self, at: int, cursor: Cursor) -> None:
        """Begin to read the file with this index, from a cursor on. Raises SourceError."""
        self._raw = self._files[at].open()
        self._at = at
        # A pipe is read from its beginning: the lines that this run knows are skipped, and the others are counted on.
        start = cursor if self._raw.is_file else Cursor()
        self._known_lines = 0 if self._raw.is_file else cursor.line
        self._stream: Iterator[bytes] | None = None
        self._rest = b""  # bytes that were read, but are not yet cut into lines
        self._dropped = 0  # how many bytes of the unfinished line are not kept in _rest
        self._ended = False
        self._lines: list[str] = []  # lines that were cut; those from _next on are not yet returned
        self._next = 0
        self._text = b""  # of _lines, when not each of them ends in LF
        self._offset = start.offset  # of the next line to return
        self._end = start.offset  # the offset after _lines
        self._line = start.line  # how many lines were returned or skipped

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
                    if self._failure or not self._open_next():
                        break
                elif self._line < self._known_lines:
                    self._take(self._known_lines - self._line)
                else:
                    if until is None:
                        until = time.monotonic() + seconds
                    self._classify_next(min(room, self._first.left or room), keys, refused)
            exhausted = self._ended and not self._lines and self._at == len(self._files) - 1
            self._first.look((), (), ended=exhausted)
            return Chunk(keys, refused, Cursor(self._offset, self._line, self._files[self._at].name), exhausted)

    def estimate(self) -> int | None:
        """See Source.estimate, and `estimate_lines`. Raises SourceError when a file is not text."""
        return estimate_lines(self._files) if self._raw.is_file else None

    def fingerprint(self) -> str:
        """See Source.fingerprint: of the files."""
        return fingerprint_of(self._files) if self._raw.is_file else ""

    def close(self) -> None:
        """See Source.close."""
        self._raw.closed = True
        with self._lock:
            self._raw.close()

    def _open_next(self) -> bool:
        """Go on with the next file, when this one has ended; False when there is no other."""
        if not self._ended or self._at + 1 == len(self._files):
            return False
        self._raw.close()
        self._open(self._at + 1, Cursor())
        return True

    def _refill(self, until: float | None) -> bool:
        """Read and cut more lines until the deadline; False when none came, or there are no more."""
        self._raw.deadline = until
        try:
            if self._stream is None:
                self._stream = pieces(self._raw, self._offset, self._warn)
            while not (self._ended or self._failure or self._cut()):
                piece = next(self._stream, None)
                if piece is None:
                    self._cut_last()
                elif piece:
                    self._rest += piece
                else:
                    break
            if self._ended and not self._lines and self._line < self._known_lines:
                raise EOFError(f"it has fewer than the {self._known_lines} lines that this run has read before")
        except SourceError as error:
            self._failure = error
        except DAMAGE_ERRORS as error:
            why = str(error) or type(error).__name__
            self._failure = SourceError(f"{self._raw.name} cannot be read beyond line {self._line}: {why}")
            self._failure.__cause__ = error
        return bool(self._lines)

    def _cut(self) -> bool:
        """Cut the whole lines off the rest; False when it has none."""
        end = self._rest.rfind(b"\n") + 1
        # A CR that comes last is left: an LF that belongs to it may follow.
        end = end or self._rest.rfind(b"\r", 0, -1) + 1
        if not end:
            if (size := len(self._rest)) > _KEPT_LINE_BYTES:
                self._rest = self._rest[:_KEPT_LINE_BYTES] + (b"\r" if self._rest.endswith(b"\r") else b"")
                self._dropped += size - len(self._rest)
            return False
        self._load(self._rest[:end])
        self._rest = self._rest[end:]
        return True

    def _cut_last(self) -> None:
        """Cut the last line, which has no line end."""
        self._ended = True
        if self._rest:
            self._load(self._rest)
            self._rest = b""

    def _load(self, text: bytes) -> None:
        """Make these lines the next ones to return."""
        # When bytes of the first line were dropped, the new offset is inside that line. No cursor is made of it,
        # because lines are returned as soon as they are loaded.
        self._offset += self._dropped
        self._end = self._offset + len(text)
        self._dropped = 0
        self._text = b""
        if b"\r" in text:
            self._text = text
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        self._lines = text.decode("utf-8", "surrogateescape").split("\n")
        self._next = 0
        if not self._lines[-1]:
            self._lines.pop()  # what follows the last line end

    def _take(self, count: int) -> list[str]:
        """The next lines, at most `count` of them, which are then returned or skipped."""
        lines = self._lines[self._next : self._next + count]
        self._next += len(lines)
        self._line += len(lines)
        if self._next == len(self._lines):
            self._lines = []
            self._offset = self._end
        elif self._text:
            self._offset = self._end - sum(map(len, self._text.splitlines(keepends=True)[self._next :]))
        else:
            self._offset += len("\n".join(lines).encode("utf-8", "surrogateescape")) + 1
        return lines

    def _classify_next(self, room: int, keys: list[str], refused: list[Refused]) -> None:
        """Add the next lines, at most `room` of them, to the keys or to the refused lines. Raises SourceError."""
        first, refused_before = self._line + 1, len(refused)
        lines = self._take(room)
        surely_key = self._rule.surely_key
        sure = list(filter(surely_key, lines))
        if len(sure) == len(lines):
            keys += sure
        else:
            for number, line in enumerate(lines, first):
                if surely_key(line):
                    keys.append(line)
                else:
                    self._classify(line, number, keys, refused)
        self._first.look(keys, refused[refused_before:])

    def _classify(self, line: str, number: int, keys: list[str], refused: list[Refused]) -> None:
        """Add one line to the keys, or to the refused lines, or skip it."""
        key = line.strip(BLANKS)
        if (
            len(line) > _KEPT_LINE_BYTES // 4
            and len(whole := line.encode("utf-8", "surrogateescape")) > _KEPT_LINE_BYTES
        ):
            # A long line that was read as one piece must be cut like one that was read as several.
            key = whole[:_KEPT_LINE_BYTES].decode("utf-8", "surrogateescape")
        if not key or (self._rule.absolute_url and key.lstrip(BLANKS).startswith("#")):
            return
        if reason := self._rule.reason(key):
            refused.append(refuse(key, number, reason, self._files[self._at].name))
        else:
            keys.append(key)
