"""Rows of CSV and TSV: RFC 4180, with a header line."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence

from coordinator.errors import SourceError
from coordinator.source.input.cut_lines import MAX_ROW_BYTES, CutLines
from coordinator.source.rows.columns import Columns, require_columns
from coordinator.source.rows.row import Row

# What may stand between the cells, as the header shows it.
_DELIMITERS = ",;\t|"
_QUOTED = re.compile(r'"[^"]*"?')


def delimiter_of(header: str) -> str:
    """What stands between the cells of a CSV: what its first line has most often outside of quotes."""
    return max(_DELIMITERS, key=_QUOTED.sub("", header).count)


class _TooLong(Exception):
    """A row is longer than MAX_ROW_BYTES."""


class _RowLines(Iterator[str]):
    """The lines that csv takes for one row, which are kept until `begin` is called for the next one."""

    def __init__(self, lines: CutLines) -> None:
        self._lines = lines
        self.begin()

    def begin(self) -> None:
        self.first = self._lines.line + 1
        self.parts: list[bytes] = []
        self.size = 0
        self.ended = False

    def __next__(self) -> str:
        try:
            line = next(self._lines)
        except StopIteration:
            self.ended = True
            raise
        self.size += len(line)
        self.parts.append(line)
        if self.size > MAX_ROW_BYTES:
            raise _TooLong
        return line.decode("utf-8", "surrogateescape")

    def skip_row(self) -> None:
        """Go to the end of a row that csv has given up: to a line end outside of quotes."""
        quotes = sum(part.count(b'"') for part in self.parts)
        last = self.parts[-1]
        while quotes % 2 or not last.endswith((b"\n", b"\r")):
            if (following := next(self._lines, None)) is None:
                return
            last = following
            quotes += last.count(b'"')

    @property
    def text(self) -> str:
        """How the row begins, and all of it if it is short."""
        return self.parts[0][:1000].decode("utf-8", "surrogateescape").rstrip("\r\n") if self.parts else ""


class Delimited:
    """The header of a CSV, and what is read by it. `tabs` says that the cells of a TSV stand between tabs."""

    def __init__(self, lines: CutLines, columns: Columns | None, name: str, *, tabs: bool) -> None:
        """Read the header. Raises SourceError when it lacks a column."""
        csv.field_size_limit(MAX_ROW_BYTES)  # csv has one limit for the process, and cells that nobody reads count too
        row = _RowLines(lines)
        try:
            first = next(row, "").removeprefix("\ufeff")
            while first.isspace():
                first = next(row, "")
            self._delimiter = "\t" if tabs else delimiter_of(first)
            header = next(self._reader(_after(first, row)), [])
        except (_TooLong, csv.Error):
            raise SourceError(f"{name}: its first line is no header of columns; a CSV begins with one") from None
        self._header = [cell.strip() for cell in header]
        self._names = require_columns(columns, self._header, name).names

    def rows(self, lines: CutLines) -> Iterator[Row]:
        """The rows of lines behind the header. A row that is none is refused, and the next one is read."""
        header, row = self._header, _RowLines(lines)
        wanted = [(name, header.index(name)) for name in self._names]
        reader = self._reader(row)
        while True:
            row.begin()
            reason = ""
            cells: Sequence[str] = ()
            try:
                cells = next(reader)
            except StopIteration:
                return
            except _TooLong:
                reason = f"is a row of more than {MAX_ROW_BYTES:,} bytes; is a quote not closed?"
                row.skip_row()
            except csv.Error as error:
                reason = f"is no row of a CSV: {error}"
                if len(row.parts) > 1:
                    reason += f" in line {lines.line}; is a quote of line {row.first} not closed?"
            if row.ended:
                reason = "has a quote that is not closed"
            if not reason:
                if not cells:
                    continue
                if len(cells) == len(header):
                    values = {name: cells[index] for name, index in wanted}
                    yield Row(row.first, lines.offset, lines.line, values, row.text)
                    continue
                reason = f"has {len(cells)} columns, and the header {len(header)}"
            yield Row(row.first, lines.offset, lines.line, None, row.text, reason)

    def _reader(self, lines: Iterator[str]) -> Iterator[list[str]]:
        """What reads rows. Strict, or a quote that is not closed takes the rows up to the next quote into its cell."""
        return csv.reader(lines, delimiter=self._delimiter, strict=True)


def _after(first: str, rest: Iterator[str]) -> Iterator[str]:
    if first:
        yield first
        yield from rest
