"""Pure: converts a parser's values to what their columns take, exactly or not at all.

asyncpg would accept 1.7 for an integer and True for 1, would read a naive datetime in the machine's own time zone, and
would store the first and the last moment of the calendar as infinity. Here each of these is an error with the column's
name: the key fails, and no value is changed silently. docs/parsers.md says what each type takes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias
from uuid import UUID

from crawler.job.tables import ColumnType, TableSettings, column_type
from crawler.parse.values import exact_json, numbers, times
from crawler.parse.values.bounds import MAX_RECORD_CHARACTERS, Fits, fits, measure
from crawler.parse.values.shown import abbreviated

Convert: TypeAlias = Callable[[Any], Any]

# Python would also take 0x, underscores, and hyphens anywhere.
_UUID = re.compile(
    r"(?:urn:uuid:)?(\{)?[0-9a-f]{8}(-?)[0-9a-f]{4}\2[0-9a-f]{4}\2[0-9a-f]{4}\2[0-9a-f]{12}(?(1)\})", re.IGNORECASE
)


class Table:
    """One table of records: converts a record (a mapping by column, or the values in column order) to a row."""

    def __init__(self, settings: TableSettings) -> None:
        self.name = settings.name
        self._columns = tuple(name for name, _ in settings.columns)
        self._known = frozenset(self._columns)
        types = [column_type(kind) for _, kind in settings.columns]
        self._conversions = tuple(conversion(kind) for kind in types)
        measures = (measure(kind) for kind in types)
        self._measures = tuple((index, size_of) for index, size_of in enumerate(measures) if size_of is not None)

    def mapping(self, record: Mapping[str, Any] | Sequence[Any]) -> dict[str, Any]:
        """The record's values by name, not converted; a mapping may have more than columns. Raises ValueError."""
        if isinstance(record, Mapping):
            return dict(record)
        return dict(zip(self._columns, self._ordered(record), strict=True))

    def row(self, record: Mapping[str, Any] | Sequence[Any]) -> tuple[Any, ...]:
        """The record's values in column order; a column that a mapping leaves out is null. Raises ValueError."""
        if isinstance(record, Mapping):
            if not record.keys() <= self._known:
                unknown = ", ".join(sorted(str(name) for name in record.keys() - self._known))
                raise ValueError(f"{self.name} has no column {unknown}")
            values: Sequence[Any] = [record.get(name) for name in self._columns]
        else:
            values = self._ordered(record)
        try:
            row = tuple(
                None if value is None else convert(value)
                for value, convert in zip(values, self._conversions, strict=True)
            )
        except (ValueError, TypeError, OverflowError):
            row = self._row_by_name(values)
        size = 0
        for index, size_of in self._measures:
            if (value := row[index]) is not None:
                size += size_of(value)
        if size > MAX_RECORD_CHARACTERS:
            raise ValueError(
                f"{self.name}: a record of {size:,} characters; at most {MAX_RECORD_CHARACTERS:,} fit into a row"
            )
        return row

    def _ordered(self, values: Sequence[Any]) -> Sequence[Any]:
        is_ordered = isinstance(values, Sequence) and not isinstance(values, str | bytes)
        if not is_ordered or len(values) != len(self._columns):
            raise ValueError(f"{self.name}: a record is a mapping or {len(self._columns)} values in column order")
        return values

    def _row_by_name(self, values: Sequence[Any]) -> tuple[Any, ...]:
        """Convert the row again, column by column, so that the ValueError names the column that fails."""
        row = []
        for name, value, convert in zip(self._columns, values, self._conversions, strict=True):
            try:
                row.append(None if value is None else convert(value))
            except (ValueError, TypeError, OverflowError) as error:
                raise ValueError(f"{self.name}.{name}: {error}") from error
        return tuple(row)


def conversion(kind: ColumnType) -> Convert:
    """The function from a value to what a column takes. It raises ValueError, TypeError or OverflowError."""
    convert = _CONVERSIONS[kind.name]
    check = fits(kind)
    exactly = convert if check is None else _checked(convert, check, kind)
    if not kind.is_array:
        return exactly
    return lambda values: [None if value is None else exactly(value) for value in _list(values)]


def _checked(convert: Convert, check: Fits, kind: ColumnType) -> Convert:
    def exactly(value: Any) -> Any:
        converted = convert(value)
        if not check(converted):
            raise ValueError(f"{abbreviated(value)} does not go into {kind} as it is")
        return converted

    return exactly


def _list(values: Any) -> Sequence[Any]:
    if not isinstance(values, list | tuple):
        raise ValueError(f"{abbreviated(values)} is no list")
    return values


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{abbreviated(value)} is no text")
    if "\0" in value:
        raise ValueError("text with a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{abbreviated(value)} has half a character (a lone surrogate)") from None
    # An HTML parser's text can be a subclass of str that holds its whole document, also when it is pickled.
    return value if type(value) is str else str.__str__(value)


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{abbreviated(value)} is neither true nor false")
    return value


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise ValueError(f"{abbreviated(value)} is no bytes")
    return bytes(value)


def _uuid(value: Any) -> UUID:
    if not isinstance(value, UUID | str):
        raise ValueError(f"{abbreviated(value)} is no UUID")
    if isinstance(value, UUID):
        return value
    if not _UUID.fullmatch(value):
        raise ValueError(f"{abbreviated(value)} is a badly formed UUID")
    return UUID(value)


_CONVERSIONS: Mapping[str, Convert] = {
    "smallint": numbers.integer(16),
    "integer": numbers.integer(32),
    "bigint": numbers.integer(64),
    "numeric": numbers.numeric,
    "real": numbers.real,
    "double precision": numbers.double,
    "text": _text,
    "varchar": _text,
    "char": _text,
    "boolean": _boolean,
    "timestamptz": times.moment,
    "timestamp": times.naive_moment,
    "date": times.day,
    "time": times.time_of_day,
    "timetz": times.zoned_time_of_day,
    "interval": times.interval,
    "bytea": _bytes,
    "json": exact_json.dumps,
    "jsonb": exact_json.sorted_dumps,
    "uuid": _uuid,
}
