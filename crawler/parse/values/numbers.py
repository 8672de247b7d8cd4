"""Pure: numbers for columns, exactly or not at all. Each function raises ValueError or OverflowError."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any

from crawler.parse.values.shown import abbreviated

# Postgres' bounds on a numeric. asyncpg stores 1E+200000 as 0.
MAX_DIGITS_BEFORE_POINT = 131_072
MAX_DIGITS_AFTER_POINT = 16_383
# From here on the distance from one number to the next is 1 or more, so that a fraction cannot even be rounded.
WHOLE_FROM_DOUBLE = 2**53
WHOLE_FROM_REAL = 2**24
# Python would also take 1_000, digits of other scripts, and blanks around the number.
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def integer(bits: int) -> Callable[[Any], int]:
    """The function for whole numbers of so many bits. A float or a text is none, also when it has no fraction."""
    lowest, highest = -(1 << (bits - 1)), (1 << (bits - 1)) - 1

    def convert(value: Any) -> int:
        if type(value) is not int:
            raise ValueError(f"{abbreviated(value)} is no whole number")
        if not lowest <= value <= highest:
            raise ValueError(f"{abbreviated(value)} does not fit into {bits} bits")
        return value

    return convert


def double(value: Any) -> float:
    """A float of 8 bytes. Fractions become the nearest one, as usual; from 2^53 on nothing is rounded, nor to 0."""
    number = _as_float(value)
    if (abs(number) >= WHOLE_FROM_DOUBLE and number != value) or (value and not number):
        raise ValueError(f"{abbreviated(value)} would be rounded")
    return number


def real(value: Any) -> float:
    """A float of 4 bytes. Fractions become the nearest one, as usual; from 2^24 on nothing is rounded, nor to 0."""
    number = _as_float(value)
    narrow: float = struct.unpack("f", struct.pack("f", number))[0]
    if (abs(number) >= WHOLE_FROM_REAL and narrow != value) or (value and not narrow):
        raise ValueError(f"{abbreviated(value)} would be rounded")
    return number


def _as_float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise ValueError(f"{abbreviated(value)} is no number")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{abbreviated(value)} is not finite as a float")
    return number


def numeric(value: Any) -> Decimal:
    """A number with all of its digits: an int, a Decimal, a text, or a float as Python writes it (0.1 is 0.1)."""
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        raise ValueError(f"{abbreviated(value)} is no number")
    try:
        number = Decimal(float.__repr__(value) if isinstance(value, float) else value)
    except InvalidOperation:
        raise ValueError(f"{abbreviated(value)} is no number") from None
    if not number.is_finite():
        raise ValueError(f"{abbreviated(value)} is not finite")
    if isinstance(value, str) and not _NUMBER.fullmatch(value):
        raise ValueError(f"{abbreviated(value)} is no number; write digits, a point and an exponent only")
    if number.adjusted() >= MAX_DIGITS_BEFORE_POINT or -int(number.as_tuple().exponent) > MAX_DIGITS_AFTER_POINT:
        raise ValueError(f"{abbreviated(value)} has more digits than Postgres keeps")
    return number
