"""Pure: times for columns, to the microsecond that Postgres keeps, or not at all. Each function raises ValueError.

A text is ISO 8601, with T or a blank before the time, as in RFC 3339. Python would cut the digits beyond microseconds;
here only zeros may stand there. It would also read 2026-02-03+01:00 as 1 o'clock, 20260203123456Z as 23:45, and a week
without its day as a Monday.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, TypeVar

from crawler.parse.values.shown import abbreviated

_DateOrDatetime = TypeVar("_DateOrDatetime", date, datetime)
_Moment = TypeVar("_Moment", datetime, date, time)

_DAY = r"\d{4}(?:-\d\d-\d\d|\d{4}|-W\d\d-\d|W\d{3})"
_TIME = r"\d\d(?::?\d\d(?::?\d\d(?:[.,]\d{1,6}0*)?)?)?"
_ZONED = rf"{_TIME}(?: ?(?:Z|[+-]\d\d(?::?\d\d(?::?\d\d(?:\.\d+)?)?)?))?"
# What a text has, and how it is written.
_WRITTEN: Mapping[type, tuple[str, re.Pattern[str]]] = {
    datetime: ("time", re.compile(rf"{_DAY}(?:[T ]{_ZONED})?", re.ASCII)),
    date: ("date", re.compile(_DAY, re.ASCII)),
    time: ("time of day", re.compile(rf"T?{_ZONED}", re.ASCII)),
}
_BEYOND_MICROSECONDS = re.compile(r"[.,][0-9]{6}[0-9]*[1-9]")
# What pandas' subclasses of datetime and timedelta have beside the microseconds.
_NANOSECOND_FIELDS = ("nanosecond", "nanoseconds")


def moment(value: Any) -> datetime:
    """A moment with a time zone, as UTC."""
    at = _read(datetime, value)
    if not isinstance(at, datetime):
        raise ValueError(f"{abbreviated(value)} is no time (ISO 8601)")
    if at.tzinfo is None:
        raise ValueError(f"{abbreviated(value)} has no time zone; a column of type timestamp takes it")
    return _finite(at.astimezone(UTC), datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))


def naive_moment(value: Any) -> datetime:
    """A date and time without a time zone."""
    at = _read(datetime, value)
    if not isinstance(at, datetime) or at.tzinfo is not None:
        raise ValueError(f"{abbreviated(value)} is no time without a zone")
    return _finite(at, datetime.min, datetime.max)


def day(value: Any) -> date:
    """A date."""
    found = _read(date, value)
    if not isinstance(found, date) or isinstance(found, datetime):
        raise ValueError(f"{abbreviated(value)} is no date (ISO 8601)")
    return _finite(found, date.min, date.max)


def time_of_day(value: Any) -> time:
    """A time of day without a time zone."""
    at = _read(time, value)
    if not isinstance(at, time) or at.tzinfo is not None:
        raise ValueError(f"{abbreviated(value)} is no time of day without a zone")
    return at


def zoned_time_of_day(value: Any) -> time:
    """A time of day with a fixed distance from UTC, in whole seconds."""
    at = _read(time, value)
    if not isinstance(at, time) or (offset := at.utcoffset()) is None:
        raise ValueError(f"{abbreviated(value)} is no time of day with a fixed zone")
    if offset.microseconds:
        raise ValueError(f"{abbreviated(value)} has a zone with a fraction of a second")
    return at


def interval(value: Any) -> timedelta:
    """A span of time."""
    if not isinstance(value, timedelta):
        raise ValueError(f"{abbreviated(value)} is no timedelta")
    _check_nanoseconds(value)
    return value


def _read(kind: type[_Moment], value: Any) -> Any:
    """The moment in a text; any other value as it is. Raises ValueError for a fraction of a microsecond."""
    if isinstance(value, str):
        if (found := iso(kind, value)) is None:
            raise ValueError(f"{abbreviated(value)} is no {_WRITTEN[kind][0]} (ISO 8601)")
        return found
    _check_nanoseconds(value)
    return value


def iso(kind: type[_Moment], text: str) -> _Moment | None:
    """The moment, day or time of day in a text of ISO 8601, None when it is none.

    Raises ValueError for a fraction of a microsecond, and for what is not in the calendar.
    """
    written = text.upper()  # RFC 3339 has t and z too
    if _WRITTEN[kind][1].fullmatch(written) is None:
        if _BEYOND_MICROSECONDS.search(text):
            raise ValueError(f"{abbreviated(text)} has more digits than the microseconds that Postgres keeps")
        return None
    before, _, last = written.rpartition(" ")
    try:
        return kind.fromisoformat(before + last if last[0] in "+-Z" else written)
    except ValueError as error:  # there is no such day or hour
        raise ValueError(f"{abbreviated(text)} is no {_WRITTEN[kind][0]}: {error}") from None


def _check_nanoseconds(value: Any) -> None:
    if any(getattr(value, name, 0) for name in _NANOSECOND_FIELDS):
        raise ValueError(f"{abbreviated(value)} has more digits than the microseconds that Postgres keeps")


def _finite(value: _DateOrDatetime, first: _DateOrDatetime, last: _DateOrDatetime) -> _DateOrDatetime:
    if value in (first, last):
        raise ValueError(f"{value.isoformat()} would be stored as infinity")
    return value
