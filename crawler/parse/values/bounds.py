"""Pure: whether a type with bounds, like numeric(p, s), varchar(n) or timestamp(p), keeps a value as it is.

Postgres refuses what is too long or too large, but names no column. And without an error it rounds digits beyond a
scale or a precision, and cuts blanks at the end of a text (PostgreSQL documentation, chapters 8.1.2, 8.3 and 8.5).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, time, timedelta
from decimal import Decimal
from typing import Any, TypeAlias

from crawler.job.tables import ColumnType

Fits: TypeAlias = Callable[[Any], bool]
# Characters and bytes of one record together. At 4 bytes a character that is below 1 GiB. From 1 GiB on, Postgres ends
# the connection and names no row (measured), so the batch would be sent again and again.
MAX_RECORD_CHARACTERS = 128 * 1024 * 1024
_SMALL_TYPES = frozenset(
    {
        *("smallint", "integer", "bigint", "real", "double precision", "numeric", "boolean", "uuid"),
        *("date", "time", "timetz", "timestamp", "timestamptz", "interval"),
    }
)
_MICROSECOND_DIGITS = 6


def measure(kind: ColumnType) -> Callable[[Any], int] | None:
    """The function that returns a value's size in characters or bytes; None for a type whose values are all small."""
    if kind.name in _SMALL_TYPES:
        return None
    return _list_size if kind.is_array else len


def _list_size(values: Sequence[Any]) -> int:
    return sum(len(value) for value in values if value is not None)


def fits(kind: ColumnType) -> Fits | None:
    """The function that says whether a type keeps a value, for an array one element; None when it keeps every value."""
    bounds = kind.bounds or ((1,) if kind.name == "char" else ())
    check = _CHECKS.get(kind.name)
    return (lambda value: check(value, bounds)) if check and bounds else None


def _fits_digits(number: Decimal, bounds: Sequence[int]) -> bool:
    precision, scale = (*bounds, 0)[:2]
    _, digits, exponent = number.as_tuple()  # Decimal's own arithmetic would round to 28 digits
    surplus = -int(exponent) - scale
    return (not number or number.adjusted() < precision - scale) and (surplus <= 0 or not any(digits[-surplus:]))


def _fits_length(text: str, bounds: Sequence[int]) -> bool:
    return len(text) <= bounds[0]


def _fits_precision(moment: datetime | time, bounds: Sequence[int]) -> bool:
    return _is_multiple(moment.microsecond, bounds[0])


def _fits_interval_precision(interval: timedelta, bounds: Sequence[int]) -> bool:
    return _is_multiple(interval.microseconds, bounds[0])


def _is_multiple(microseconds: int, digits: int) -> bool:
    return microseconds % int(10 ** max(0, _MICROSECOND_DIGITS - digits)) == 0


_CHECKS: Mapping[str, Callable[[Any, Sequence[int]], bool]] = {
    "numeric": _fits_digits,
    "varchar": _fits_length,
    "char": _fits_length,
    "timestamptz": _fits_precision,
    "timestamp": _fits_precision,
    "time": _fits_precision,
    "timetz": _fits_precision,
    "interval": _fits_interval_precision,
}
