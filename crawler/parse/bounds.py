"""Pure: does a value go as it is into a type with bounds, like numeric(p, s), varchar(n) or timestamp(p)?

Postgres refuses what is too long or too large. But it rounds digits beyond a scale or a precision, and cuts blanks at
the end of a text, without an error (PostgreSQL documentation, chapters 8.1.2, 8.3 and 8.5).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, time, timedelta
from decimal import Decimal
from typing import Any, TypeAlias

Fits: TypeAlias = Callable[[Any], bool]
# Characters and bytes of one record. With 4 bytes a character it stays below 1 GiB. From there on Postgres ends the
# connection and names no row (measured), so that the batch would be sent again and again.
MAX_RECORD_CHARACTERS = 128 * 1024 * 1024
_SMALL_TYPES = frozenset(
    {
        *("smallint", "integer", "bigint", "real", "double precision", "numeric", "boolean", "uuid"),
        *("date", "time", "timestamp", "timestamptz", "interval"),
    }
)
_MICROSECOND_DIGITS = 6


def measure(kind: str) -> Callable[[Any], int] | None:
    """How large a value of a type is, in characters or bytes; None for a type whose values are all small."""
    if kind.partition("(")[0].removesuffix("[]") in _SMALL_TYPES:
        return None
    return _list_size if kind.endswith("[]") else len


def _list_size(values: Sequence[Any]) -> int:
    return sum(len(value) for value in values if value is not None)


def fits(kind: str) -> Fits | None:
    """The check of a type, in lower case; None when Postgres changes no value of that type."""
    name, _, arguments = kind.partition("(")
    bounds = [int(bound) for bound in arguments.rstrip(") ").split(",") if bound]
    if name == "char" and not bounds:
        bounds = [1]
    check = _CHECKS.get(name)
    return (lambda value: check(value, bounds)) if check and bounds else None


def _has_scale(number: Decimal, bounds: Sequence[int]) -> bool:
    scale = bounds[1] if len(bounds) > 1 else 0
    _, digits, exponent = number.as_tuple()  # Decimal's own arithmetic would round to 28 digits
    surplus = -int(exponent) - scale
    return surplus <= 0 or not any(digits[-surplus:])


def _has_length(text: str, bounds: Sequence[int]) -> bool:
    return len(text) <= bounds[0]


def _has_precision(moment: datetime | time, bounds: Sequence[int]) -> bool:
    return _is_multiple(moment.microsecond, bounds[0])


def _has_interval_precision(interval: timedelta, bounds: Sequence[int]) -> bool:
    return _is_multiple(interval.microseconds, bounds[0])


def _is_multiple(microseconds: int, digits: int) -> bool:
    return microseconds % int(10 ** max(0, _MICROSECOND_DIGITS - digits)) == 0


_CHECKS: Mapping[str, Callable[[Any, Sequence[int]], bool]] = {
    "numeric": _has_scale,
    "varchar": _has_length,
    "char": _has_length,
    "timestamptz": _has_precision,
    "timestamp": _has_precision,
    "time": _has_precision,
    "interval": _has_interval_precision,
}
