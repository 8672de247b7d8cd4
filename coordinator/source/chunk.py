"""The words of a source: where it stands, what one read brings, and what a reader must be able to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from coordinator.errors import SourceError


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place between two lines of a source, from which reading goes on.

    `offset` counts bytes of the decompressed stream, or keys yielded by a generator; `line` counts the lines before it.
    """

    offset: int = 0
    line: int = 0

    def __str__(self) -> str:
        """The compact form that `parse` reads back: "offset:line"."""
        return f"{self.offset}:{self.line}"

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Read the compact form; raises SourceError when it is something else."""
        offset, colon, line = text.partition(":")
        if not (colon and offset.isdecimal() and line.isdecimal()):
            raise SourceError(f"the stored cursor {text[:50]!r} is not offset:line; start the run under a new name")
        return cls(int(offset), int(line))


@dataclass(frozen=True, slots=True)
class Refused:
    """A bad line: `key` is its text in a form safe to store, `line` its number from 1, `reason` what is wrong."""

    key: str
    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one read brought, in the source's order; `end` is the cursor after it.

    A chunk can be empty and not `exhausted`: its lines were all comments, or the time was up. Then read again.
    """

    keys: list[str]
    refused: list[Refused]
    end: Cursor
    exhausted: bool


class Source(Protocol):
    """A lazy reader of one corpus; one thread reads, any thread may close."""

    def read(self, limit: int, seconds: float) -> Chunk:
        """Bring the next keys and refused lines, at most `limit` together; blocks until there is a line.

        Returns early once `seconds` have passed since its first line. Raises SourceError when the source is damaged.
        """
        ...

    def estimate(self) -> int | None:
        """How many lines the whole source has, about; None when only reading it would tell."""
        ...

    def fingerprint(self) -> str:
        """A mark of a file's content that a changed file does not keep; "" for anything but a file."""
        ...

    def close(self) -> None:
        """Let go of files; a read that waits for a pipe in another thread returns what it has."""
        ...
