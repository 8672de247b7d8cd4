"""Keys that stand in the job file."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from coordinator.source.chunk import Cursor
from coordinator.source.rows.table import Row


class Listed:
    """A list of keys, each of which is a row that has no cells."""

    name = ""

    def __init__(self, keys: Sequence[str]) -> None:
        """List these."""
        self._keys = keys

    def rows(self, cursor: Cursor) -> Generator[Row, None, None]:
        """See Table.rows."""
        for number, key in enumerate(self._keys[cursor.line :], cursor.line + 1):
            yield Row(number, number, number, None, key)

    def close(self) -> None:
        """See Table.close."""
