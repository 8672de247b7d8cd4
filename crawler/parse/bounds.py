"""Pure: does a value go as it is into a type with bounds, like numeric(p, s), varchar(n) or timestamp(p)?

What is too long or too large Postgres refuses by itself. But it rounds what stands behind a scale or a precision, and
cuts blanks at the end of a text, without a word (PostgreSQL documentation, chapters 8.1.2, 8.3 and 8.5).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, time, timedelta
from decimal import Decimal
from typing import Any, TypeAlias

Fits: TypeAlias = Callable[[Any], bool]
# Characters and bytes of one record. With 4 bytes a character it stays below the 1 GiB at which Postgres ends the
# connection instead of naming the row (measured), so that the batch would be sent again and again.
RECORD_SIZE = 128 * 1024 * 1024
_SMALL = frozenset(
    {
        *("smallint", "integer", "bigint", "real", "double precision", "numeric", "boolean", "uuid"),
        *("date", "time", "timestamp", "timestamptz", "interval"),
    }
)
_MOST_DIGITS = 6


def measure(kind: str) -> Callable[[Any], int] | None:
    """How large a value of a type is, in characters or bytes; None for a type whose values are all small."""
    if kind.partition("(")[0].removesuffix("[]") in _SMALL:
        return None
    return _size_of_list if kind.endswith("[]") else len


def _size_of_list(values: Sequence[Any]) -> int:
    return sum(len(value) for value in values if value is not None)


def fits(kind: str) -> Fits | None:
    """The check of a type, written in lower case; None for one without bounds, or with none that change a value."""
    name, _, written = kind.partition("(")
    bounds = [int(bound) for bound in written.rstrip(") ").split(",") if bound]
    if name == "char" and not bounds:
        bounds = [1]
    check = _CHECKS.get(name)
    return (lambda value: check(value, bounds)) if check and bounds else None


def _has_scale(number: Decimal, bounds: Sequence[int]) -> bool:
    scale = bounds[1] if len(bounds) > 1 else 0
    _, digits, exponent = number.as_tuple()  # Decimal's own arithmetic would round to 28 digits
    behind = -int(exponent) - scale
    return behind <= 0 or not any(digits[-behind:])


def _has_length(text: str, bounds: Sequence[int]) -> bool:
    return len(text) <= bounds[0]


def _has_precision(moment: datetime | time, bounds: Sequence[int]) -> bool:
    return _is_multiple(moment.microsecond, bounds[0])


def _has_precision_as_span(span: timedelta, bounds: Sequence[int]) -> bool:
    return _is_multiple(span.microseconds, bounds[0])


def _is_multiple(microseconds: int, digits: int) -> bool:
    return microseconds % int(10 ** max(0, _MOST_DIGITS - digits)) == 0


_CHECKS: Mapping[str, Callable[[Any, Sequence[int]], bool]] = {
    "numeric": _has_scale,
    "varchar": _has_length,
    "char": _has_length,
    "timestamptz": _has_precision,
    "timestamp": _has_precision,
    "time": _has_precision,
    "interval": _has_precision_as_span,
}
