"""Files of rows, by the endings of their names."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from contextlib import closing

from coordinator.errors import SourceError
from coordinator.source.chunk import Cursor
from coordinator.source.input.cut_lines import CutLines
from coordinator.source.input.files import RawInput, SourceFile
from coordinator.source.input.line_count import estimate_lines
from coordinator.source.input.pieces import pieces
from coordinator.source.rows.columns import Columns
from coordinator.source.rows.delimited import Delimited
from coordinator.source.rows.json_lines import json_rows
from coordinator.source.rows.parquet import parquet_rows
from coordinator.source.rows.row import Row

_ENDING = re.compile(r"(?i)\.(?:(csv|tsv|jsonl|ndjson)(?:\.(?:gz|zst|xz|bz2))?|(parquet))$")


def row_format_of(file: SourceFile) -> str | None:
    """The format of a file of rows: "csv", "tsv", "jsonl", "ndjson" or "parquet"; None for a text of keys."""
    found = _ENDING.search(file.path)
    return (found[1] or found[2]).lower() if found else None


def estimate_rows(files: Sequence[SourceFile]) -> int | None:
    """About how many rows the files have; None when that is not known before they are read. Raises SourceError."""
    if any(row_format_of(file) == "parquet" for file in files):
        return None
    return estimate_lines(files, may_be="JSON")


class RowFile:
    """The rows of one file."""

    def __init__(self, file: SourceFile, columns: Columns | None, warn: Callable[[str], None]) -> None:
        """Read this file, whose ending says what it is. Raises SourceError for a text of keys."""
        self.name = file.name
        self._file = file
        self._columns = columns
        self._warn = warn
        self._raw: RawInput | None = None
        self._closed = False
        format_ = row_format_of(file)
        if format_ is None:
            raise SourceError(
                f"{file.path} has no columns for [source] key: its name must end in .csv, .tsv, .jsonl or .parquet"
            )
        self._format = format_

    def rows(self, cursor: Cursor) -> Generator[Row, None, None]:
        """See RowList.rows."""
        if self._format == "parquet":
            yield from parquet_rows(self._file.path, self._columns, cursor, lambda: self._closed)
        elif self._format in ("jsonl", "ndjson"):
            with closing(self._open()) as raw:
                yield from json_rows(self._lines(raw, cursor), self._columns, self._file.path)
        else:
            with closing(self._open()) as raw:
                lines = self._lines(raw, Cursor())
                table = Delimited(lines, self._columns, self._file.path, tabs=self._format == "tsv")
                if cursor.offset <= lines.offset:
                    yield from table.rows(lines)
                    return
            with closing(self._open()) as raw:
                yield from table.rows(self._lines(raw, cursor))

    def close(self) -> None:
        """See RowList.close."""
        self._closed = True
        if self._raw is not None:
            self._raw.closed = True

    def _open(self) -> RawInput:
        self._raw = self._file.open()
        if not self._raw.is_file:
            self._raw.close()
            raise SourceError(f"{self._file.path} is a pipe; rows are read from files")
        self._raw.closed = self._closed
        return self._raw

    def _lines(self, raw: RawInput, cursor: Cursor) -> CutLines:
        return CutLines(pieces(raw, cursor.offset, self._warn, may_be="JSON"), cursor.offset, cursor.line)
