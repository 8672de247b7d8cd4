"""Text cut into lines of which the place is known."""

from __future__ import annotations

from collections.abc import Iterator

# A row that is longer is refused. It bounds what is in memory.
MAX_ROW_BYTES = 1024 * 1024


class CutLines(Iterator[bytes]):
    """The lines of a text with their ends (LF, CRLF or CR), in pieces where one is longer than MAX_ROW_BYTES.

    `offset` and `line` are those of a cursor behind the last one that was returned.
    """

    def __init__(self, stream: Iterator[bytes], offset: int = 0, line: int = 0) -> None:
        """Cut a stream of pieces, which begins at this place. It ends at an empty piece too."""
        self.offset = offset
        self.line = line
        self._stream = stream
        self._cut: list[bytes] = []  # lines that were cut, the next one last
        self._rest = b""
        self._ended = False

    def __next__(self) -> bytes:
        """The next line, or part of one."""
        while not self._cut:
            if self._ended:
                raise StopIteration
            self._refill()
        line = self._cut.pop()
        self.offset += len(line)
        self.line += self._ended_by(line)
        return line

    def _ended_by(self, line: bytes) -> bool:
        return line.endswith((b"\n", b"\r")) or (self._ended and not self._cut)

    def _refill(self) -> None:
        piece = next(self._stream, None)
        if not piece:
            self._ended = True
            self._cut, self._rest = self._rest.splitlines(keepends=True)[::-1], b""
            return
        text = self._rest + piece
        # A CR that comes last is left: an LF that belongs to it may follow.
        end = text.rfind(b"\n") + 1 or text.rfind(b"\r", 0, -1) + 1
        if not end and len(text) > MAX_ROW_BYTES:
            end = len(text) - text.endswith(b"\r")
        self._cut, self._rest = text[:end].splitlines(keepends=True)[::-1], text[end:]
