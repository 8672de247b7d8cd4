"""A row, the protocol of that which has rows, and the simplest list of them."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import NamedTuple, Protocol

from coordinator.source.chunk import Cursor


class Row(NamedTuple):
    """A row: its cells by column. Without cells `reason` says why it is none, or `text` is a key that has no columns.

    `line` is its number from 1, or that of its first line; `offset` and `lines` are those of a cursor behind it. `text`
    is how it was written, if that is known.
    """

    line: int
    offset: int
    lines: int
    cells: Mapping[str, object] | None
    text: str = ""
    reason: str = ""


class RowList(Protocol):
    """One file, or another list of rows. One thread reads; any thread may close it."""

    @property
    def name(self) -> str:
        """The name for cursors and for lines: empty when the source has only this one."""
        ...

    def rows(self, cursor: Cursor) -> Generator[Row, None, None]:
        """Its rows from a cursor on. They end early when it is closed. Raises SourceError, or one of DAMAGE_ERRORS."""
        ...

    def close(self) -> None:
        """Stop: `rows` ends soon."""
        ...


class Listed:
    """A list of keys, each of which is a row that has no cells."""

    name = ""

    def __init__(self, keys: Sequence[str]) -> None:
        """List these."""
        self._keys = keys

    def rows(self, cursor: Cursor) -> Generator[Row, None, None]:
        """See RowList.rows."""
        for number, key in enumerate(self._keys[cursor.line :], cursor.line + 1):
            yield Row(number, number, number, None, key)

    def close(self) -> None:
        """See RowList.close."""
