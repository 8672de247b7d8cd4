"""Rows of a query, whose database only the reader that is passed in knows."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Protocol

from coordinator.errors import SourceError
from coordinator.source.chunk import Cursor
from coordinator.source.rows.columns import Columns, require_columns
from coordinator.source.rows.row import Row

_FETCH_ROWS = 5000


class QueryReader(Protocol):
    """One query. One thread reads; any thread may close it."""

    fingerprint: str

    def columns(self) -> Sequence[str]:
        """Connect, and return the names of the query's columns; none when it was closed. Raises SourceError."""
        ...

    def open(self, columns: Sequence[str], skip: int) -> int:
        """Begin to read these columns behind the first `skip` rows. Returns how many rows were skipped."""
        ...

    def fetch(self, limit: int) -> Sequence[Sequence[str | None]]:
        """The next rows, as texts; none at the end, and when it was closed. Raises SourceError."""
        ...

    def close(self) -> None:
        """Disconnect."""
        ...


class QueryRows:
    """The rows that a query returns, of which each counts as a line."""

    name = ""

    def __init__(self, reader: QueryReader, columns: Columns | None) -> None:
        """Read by this reader, which is not connected yet."""
        self._reader = reader
        self._columns = columns

    def rows(self, cursor: Cursor) -> Generator[Row, None, None]:
        """See RowList.rows."""
        if not (found := self._reader.columns()):
            return
        names = require_columns(self._columns, found, "[source] query").names
        if (skipped := self._reader.open(names, cursor.line)) < cursor.line:
            raise SourceError(
                f"[source] query returns {skipped} rows, but this run has read {cursor.line} before; "
                "it must return the same rows in the same order again"
            )
        before = cursor.line
        while batch := self._reader.fetch(_FETCH_ROWS):
            for number, values in enumerate(batch, before + 1):
                yield Row(number, number, number, dict(zip(names, values, strict=True)))
            before += len(batch)

    def close(self) -> None:
        """See RowList.close."""
        self._reader.close()
