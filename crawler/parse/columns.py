"""Pure: converts a parser's values to what their columns take, exactly or not at all.

asyncpg would accept 1.7 for an integer and True for 1, would read a naive datetime in the machine's own time zone, and
would store the first and the last moment of the calendar as infinity. Here each of these is an error with the column's
name: the key fails, and no value is changed silently. `kind` is a Postgres type.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, TypeAlias, TypeVar
from uuid import UUID

import orjson

from crawler.job.models import TableSettings
from crawler.parse.bounds import MAX_RECORD_CHARACTERS, Fits, fits, measure

Convert: TypeAlias = Callable[[Any], Any]
_DateOrDatetime = TypeVar("_DateOrDatetime", date, datetime)

# Postgres' bounds on a numeric. asyncpg stores 1E+200000 as 0.
MAX_DIGITS_BEFORE_POINT = 131_072
MAX_DIGITS_AFTER_POINT = 16_383
MAX_SHOWN_CHARACTERS = 60
_NUL_ESCAPE = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


class Table:
    """One table of records: converts a record (a mapping by column, or the values in column order) to a row."""

    def __init__(self, settings: TableSettings) -> None:
        self.name = settings.name
        self._columns = tuple(name for name, _ in settings.columns)
        self._known = frozenset(self._columns)
        self._conversions = tuple(_conversion(kind) for _, kind in settings.columns)
        measures = (measure(kind.strip().lower()) for _, kind in settings.columns)
        self._measures = tuple((index, size_of) for index, size_of in enumerate(measures) if size_of is not None)

    def row(self, record: Mapping[str, Any] | Sequence[Any]) -> tuple[Any, ...]:
        """The record's values in column order; a column that a mapping leaves out is null. Raises ValueError."""
        if isinstance(record, Mapping):
            if not record.keys() <= self._known:
                unknown = ", ".join(sorted(str(name) for name in record.keys() - self._known))
                raise ValueError(f"{self.name} has no column {unknown}")
            values: Sequence[Any] = [record.get(name) for name in self._columns]
        else:
            values = record
            ordered = isinstance(record, Sequence) and not isinstance(record, str | bytes)
            if not ordered or len(values) != len(self._columns):
                raise ValueError(f"{self.name}: a record is a mapping or {len(self._columns)} values in column order")
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

    def _row_by_name(self, values: Sequence[Any]) -> tuple[Any, ...]:
        """Convert the row again, column by column, so that the ValueError names the column that fails."""
        row = []
        for name, value, convert in zip(self._columns, values, self._conversions, strict=True):
            try:
                row.append(None if value is None else convert(value))
            except (ValueError, TypeError, OverflowError) as error:
                raise ValueError(f"{self.name}.{name}: {error}") from error
        return tuple(row)


def _conversion(kind: str) -> Convert:
    kind = kind.strip().lower()
    if kind.endswith("[]"):
        convert_element = _conversion(kind[:-2])
        return lambda values: [None if value is None else convert_element(value) for value in _list(values)]
    convert = _CONVERSIONS.get(kind.partition("(")[0], lambda value: value)
    check = fits(kind)
    return convert if check is None else _checked(convert, check, kind)


def _checked(convert: Convert, check: Fits, kind: str) -> Convert:
    def exactly(value: Any) -> Any:
        converted = convert(value)
        if not check(converted):
            raise ValueError(f"{_abbreviated(value)} does not go into {kind} as it is")
        return converted

    return exactly


def _list(values: Any) -> Sequence[Any]:
    if not isinstance(values, list | tuple):
        raise ValueError(f"{_abbreviated(values)} is no list")
    return values


def _integer(bits: int) -> Convert:
    lowest, highest = -(1 << (bits - 1)), (1 << (bits - 1)) - 1

    def convert(value: Any) -> int:
        if type(value) is not int:
            raise ValueError(f"{_abbreviated(value)} is no whole number")
        if not lowest <= value <= highest:
            raise ValueError(f"{_abbreviated(value)} does not fit into {bits} bits")
        return value

    return convert


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{_abbreviated(value)} is no text")
    if "\0" in value:
        raise ValueError("text with a NUL character")
    value.encode()  # a lone surrogate raises UnicodeEncodeError, a ValueError
    # An HTML parser's text can be a subclass of str that holds its whole document, also when it is pickled.
    return value if type(value) is str else str.__str__(value)


def _double(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{_abbreviated(value)} is no number")
    if not math.isfinite(value):
        raise ValueError(f"{_abbreviated(value)} is not finite")
    if isinstance(value, int) and int(float(value)) != value:
        raise ValueError(f"{_abbreviated(value)} would be rounded")
    return float(value)


def _real(value: Any) -> float:
    """A float of 4 bytes: fractions are rounded, as usual, but no whole number is, and no tiny number to 0."""
    number = _double(value)
    narrow: float = struct.unpack("f", struct.pack("f", number))[0]
    if (number.is_integer() and narrow != number) or (number and not narrow):
        raise ValueError(f"{_abbreviated(value)} would be rounded")
    return number


def _numeric(value: Any) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        raise ValueError(f"{_abbreviated(value)} is no number")
    try:
        number = Decimal(repr(value) if isinstance(value, float) else value)
    except InvalidOperation:
        raise ValueError(f"{_abbreviated(value)} is no number") from None
    if not number.is_finite():
        raise ValueError(f"{_abbreviated(value)} is not finite")
    if number.adjusted() >= MAX_DIGITS_BEFORE_POINT or -int(number.as_tuple().exponent) > MAX_DIGITS_AFTER_POINT:
        raise ValueError(f"{_abbreviated(value)} has more digits than Postgres keeps")
    return number


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{_abbreviated(value)} is neither true nor false")
    return value


def _moment(value: Any) -> datetime:
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    if not isinstance(moment, datetime):
        raise ValueError(f"{_abbreviated(value)} is no time (ISO 8601)")
    if moment.tzinfo is None:
        raise ValueError(f"{_abbreviated(value)} has no time zone")
    return _finite(moment.astimezone(UTC), datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))


def _naive_moment(value: Any) -> datetime:
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    if not isinstance(moment, datetime) or moment.tzinfo is not None:
        raise ValueError(f"{_abbreviated(value)} is no time without a zone")
    return _finite(moment, datetime.min, datetime.max)


def _date(value: Any) -> date:
    day = date.fromisoformat(value) if isinstance(value, str) else value
    if not isinstance(day, date) or isinstance(day, datetime):
        raise ValueError(f"{_abbreviated(value)} is no date (ISO 8601)")
    return _finite(day, date.min, date.max)


def _finite(value: _DateOrDatetime, first: _DateOrDatetime, last: _DateOrDatetime) -> _DateOrDatetime:
    if value in (first, last):
        raise ValueError(f"{value.isoformat()} would be stored as infinity")
    return value


def _time(value: Any) -> time:
    moment = time.fromisoformat(value) if isinstance(value, str) else value
    if not isinstance(moment, time) or moment.tzinfo is not None:
        raise ValueError(f"{_abbreviated(value)} is no time of day without a zone")
    return moment


def _interval(value: Any) -> timedelta:
    if not isinstance(value, timedelta):
        raise ValueError(f"{_abbreviated(value)} is no timedelta")
    return value


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise ValueError(f"{_abbreviated(value)} is no bytes")
    return bytes(value)


def _json(value: Any) -> str:
    text = orjson.dumps(value).decode()
    if "\\u0000" in text and _NUL_ESCAPE.search(text):
        raise ValueError("JSON with a NUL character")
    if "null" in text and not _finite_inside(value):  # orjson writes null for such a number
        raise ValueError("JSON with a number that is not finite")
    return text


def _finite_inside(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(map(_finite_inside, value.values()))
    return not isinstance(value, list | tuple) or all(map(_finite_inside, value))


def _uuid(value: Any) -> UUID:
    if not isinstance(value, UUID | str):
        raise ValueError(f"{_abbreviated(value)} is no UUID")
    return UUID(value) if isinstance(value, str) else value


def _abbreviated(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else text[: MAX_SHOWN_CHARACTERS - 3] + "..."


_CONVERSIONS: Mapping[str, Convert] = {
    "smallint": _integer(16),
    "integer": _integer(32),
    "bigint": _integer(64),
    "text": _text,
    "varchar": _text,
    "char": _text,
    "boolean": _boolean,
    "real": _real,
    "double precision": _double,
    "numeric": _numeric,
    "timestamptz": _moment,
    "timestamp": _naive_moment,
    "date": _date,
    "time": _time,
    "interval": _interval,
    "bytea": _bytes,
    "json": _json,
    "jsonb": _json,
    "uuid": _uuid,
}
