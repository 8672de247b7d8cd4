"""What all sources have in common: a cursor, the chunk that one read returns, and the protocol of a reader."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote, unquote_to_bytes

from coordinator.errors import SourceError


@dataclass(frozen=True, slots=True)
class Cursor:
    """The place in a source from which reading goes on.

    `offset` counts bytes of the text (decompressed, in UTF-8), or keys yielded by a generator; `line` counts the lines
    before it. Both begin anew in each file of a folder or glob, of which `file` is the name.
    """

    offset: int = 0
    line: int = 0
    file: str = ""

    def __str__(self) -> str:
        """The compact form that `parse` reads back: "offset:line", or "offset:line:file" with the name in URL form."""
        place = f"{self.offset}:{self.line}"
        return f"{place}:{quote(os.fsencode(self.file))}" if self.file else place

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Read the compact form; raises SourceError when it is something else."""
        offset, _, rest = text.partition(":")
        line, _, file = rest.partition(":")
        if not (offset.isdecimal() and line.isdecimal()):
            raise SourceError(f"the stored cursor {text[:50]!r} is not offset:line; start the run under a new name")
        return cls(int(offset), int(line), os.fsdecode(unquote_to_bytes(file)))


@dataclass(frozen=True, slots=True)
class Refused:
    """A bad line: `key` is its text in a form safe to store, `line` its number from 1, `reason` says what is wrong.

    `file` names the file that it is in, when the source has several.
    """

    key: str
    line: int
    reason: str
    file: str = ""

    @property
    def place(self) -> str:
        """Where the line is, for people: "line 3", or "b.txt line 3"."""
        return f"{self.file} line {self.line}".lstrip()


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one read returned, in the source's order; `end` is the cursor after it.

    A chunk can be empty and not `exhausted`, when all its lines were comments or the time has passed: then read again.
    `fields` are those that travel with a key, {key: {name: text}}. `kind` is that of all of its keys.
    """

    keys: list[str]
    refused: list[Refused]
    end: Cursor
    exhausted: bool
    fields: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    kind: str = ""


class Source(Protocol):
    """A reader of one corpus. One thread reads; any thread may close it."""

    def read(self, limit: int, seconds: float) -> Chunk:
        """Return the next keys and refused lines, at most `limit` together. Blocks until there is a line.

        Returns fewer when `seconds` have passed since its first line. Raises SourceError when the source is damaged.
        """
        ...

    def estimate(self) -> int | None:
        """About how many lines the whole source has; None when that cannot be known before it is read."""
        ...

    def fingerprint(self) -> str:
        """A text that changes when the file changes; empty when the source is not a file."""
        ...

    def close(self) -> None:
        """Close the files. A read that waits for a pipe in another thread returns what it has."""
        ...
