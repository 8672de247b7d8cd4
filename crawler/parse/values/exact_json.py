"""Pure: JSON in and out with every digit of its numbers.

orjson reads each number with a fraction or an exponent as a float, and whole numbers from 2^64 on too; it writes no
Decimal, and no whole number beyond 64 bits.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import is_dataclass
from decimal import Decimal
from typing import Any

import orjson

from crawler.parse.values.numbers import numeric

# Each digit as 0, and e for E. With the points taken out, a number that a float may not hold shows: it has 16 digits (a
# float holds any 15), or an exponent below -99. Most bodies have none, and looking takes a third of what orjson does.
_DIGIT_CLASSES = bytes(ord("0") if 48 <= byte <= 57 else ord("e") if byte == ord("E") else byte for byte in range(256))
_LONG_NUMBER, _SMALL_NUMBER = b"0" * 16, b"0e-000"
_NUL_ESCAPE = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_LARGEST_INTEGER = 2**64 - 1
_SMALLEST_INTEGER = -(2**63)
_MOST_DIGITS_OF_INT = 4000  # Python makes no int of a text that has 300 more


def loads(body: bytes) -> Any:
    """The value in JSON of UTF-8. Raises ValueError when it is none.

    A number is an int; or a float, when Python writes that float with the same value; else a Decimal, as is an int of
    more than 4000 digits.
    """
    classes = body.translate(_DIGIT_CLASSES, b".")
    if _LONG_NUMBER not in classes and _SMALL_NUMBER not in classes:
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError:
            pass  # 1e400 is too large for orjson, and good JSON
    return _DECODER.decode(body.decode())


def fault(error: ValueError | RecursionError) -> str:
    """What is wrong with a text of which `loads` raised this."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"wrong at line {error.lineno}, column {error.colno}"
    return str(error)


def _number(literal: str) -> float | Decimal:
    value = float(literal)
    if (written := repr(value)) == literal:
        return value
    exact = Decimal(literal)
    return value if exact == Decimal(written) else exact


def _whole_number(literal: str) -> int | Decimal:
    return int(literal) if len(literal) <= _MOST_DIGITS_OF_INT else Decimal(literal)


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


_DECODER = json.JSONDecoder(parse_float=_number, parse_int=_whole_number, parse_constant=_refuse_constant)


def sorted_dumps(value: Any) -> str:
    """What `dumps` makes, members by their names: for jsonb, of which Postgres orders them too, and for digests."""
    return dumps(value, orjson.OPT_SORT_KEYS)


def dumps(value: Any, option: int = 0) -> str:
    """The value as JSON that Postgres takes. Raises TypeError or ValueError when it would change."""
    try:
        text = orjson.dumps(value, default=_digits, option=option).decode()
    except TypeError:
        try:
            text = orjson.dumps(_with_digits(value), default=_digits, option=option).decode()
        except TypeError as error:
            raise error.__cause__ or error from None
    if "\\u0000" in text and _NUL_ESCAPE.search(text):
        raise ValueError("JSON with a NUL character")
    if "null" in text and not _is_finite(value):  # orjson writes null for such a number
        raise ValueError("JSON with a number that is not finite")
    return text


def _digits(value: Any) -> orjson.Fragment:
    if not isinstance(value, Decimal):
        raise TypeError(f"{type(value).__name__} is not JSON")
    return orjson.Fragment(str(numeric(value)))


def _with_digits(value: Any) -> Any:
    """The value with each whole number that orjson does not write as the text of its digits."""
    if isinstance(value, dict):
        return {name: _with_digits(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_with_digits(inner) for inner in value]
    if type(value) is int and not _SMALLEST_INTEGER <= value <= _LARGEST_INTEGER:
        return orjson.Fragment(str(numeric(value)))
    return value


def _is_finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    if is_dataclass(value):
        return all(_is_finite(getattr(value, name)) for name in value.__dataclass_fields__)
    return not isinstance(value, list | tuple) or all(map(_is_finite, value))
