"""Pure: `as` of a column: a number, a moment or a day in a text as people and servers write it."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import Any, TypeAlias

from crawler.job.tables import ColumnType
from crawler.parse.values import exact_json
from crawler.parse.values.numbers import numeric
from crawler.parse.values.shown import abbreviated

Read: TypeAlias = Callable[[Any], Any]

_MINUS = "\u2212"  # the sign of mathematics, which browsers show
_GROUPS = "'\u2019 \u00a0\u202f"  # between thousands: Swiss apostrophes, and blanks of several widths
# One number with separators of any kind, and around it a currency or a unit: no other digit.
_NUMBER = re.compile(
    rf"[^\d+\-{_MINUS}.,]*(?P<sign>[+\-{_MINUS}]?)[^\d+\-{_MINUS}.,]*(?P<digits>\d[\d.,{_GROUPS}]*|[.,]\d+)\D*"
)
# Digits alone, groups of thousands, or groups as in India.
_WHOLE = re.compile(r"\d*|\d{1,3}([.,])\d{3}(?:\1\d{3})*|\d{1,2}(?:,\d{2})*,\d{3}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def read_number(value: Any) -> Any:
    """The number in a text, exactly: "$1,299.00" and "1.299,00 €" are 1299.00. Raises ValueError for none or several.

    The last of two kinds of separators is the decimal one. One that stands alone and once is decimal too, but for a
    comma before exactly three digits: 1,299 is 1299.
    """
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return value
    match = _NUMBER.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{abbreviated(value)} is not one number")
    digits = re.sub(f"[{_GROUPS}]", "", match["digits"]).rstrip(".,")
    separators = re.sub(r"\d", "", digits)
    decimal = separators[-1:] if len(set(separators)) > 1 or len(separators) == 1 else ""
    if re.fullmatch(r"\d{1,3},\d{3}", digits):
        decimal = ""
    whole, _, fraction = digits.rpartition(decimal) if decimal else (digits, "", "")
    if not _WHOLE.fullmatch(whole):
        raise ValueError(f"{abbreviated(value)} is not one number")
    sign = "-" if match["sign"] in ("-", _MINUS) else ""
    units = re.sub("[.,]", "", whole) or "0"
    return Decimal(f"{sign}{units}.{fraction}") if fraction else int(f"{sign}{units}")  # a bigint takes no Decimal


def read_seconds(value: Any) -> datetime:
    """The moment so many seconds after 1970 (Unix time). Raises ValueError."""
    return _moment(value, 1_000_000)


def read_milliseconds(value: Any) -> datetime:
    """The moment so many milliseconds after 1970. Raises ValueError."""
    return _moment(value, 1000)


def _moment(value: Any, microseconds: int) -> datetime:
    exact = Decimal(str(value)) if isinstance(value, float) else read_number(value)
    count = exact * microseconds
    if count != int(count):
        raise ValueError(f"{abbreviated(value)} has more digits than the microseconds that Postgres keeps")
    try:
        return _EPOCH + int(count) * _MICROSECOND
    except OverflowError as error:
        raise ValueError(f"{abbreviated(value)} is no time of the calendar") from error


def read_moment(value: Any) -> Any:
    """The moment in a text of ISO 8601 or of mail and HTTP (RFC 5322): "Tue, 3 Feb 2026 10:00:00 GMT".

    Raises ValueError.
    """
    if not isinstance(value, str):
        return value
    text = value.strip()
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        pass
    try:
        return parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError) as error:
        raise ValueError(f"{abbreviated(value)} is no time (ISO 8601 or RFC 5322)") from error


def formatted(layout: str) -> Read:
    """The moment in a text that is written as `strptime` names it. The function raises ValueError."""

    def read(value: Any) -> datetime:
        if not isinstance(value, str):
            raise ValueError(f"{abbreviated(value)} is no text")
        return datetime.strptime(value.strip(), layout)

    return read


def of_text(kind: ColumnType) -> Read | None:
    """The function from a text to what a column of this type takes; None when it takes the text itself.

    An empty text is null for every type but those of text. The function raises ValueError.
    """
    read = _OF_TEXT.get(kind.name)
    if read is None and kind.name in ("text", "varchar", "char"):
        return None

    def read_one(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        text = value.strip()
        return None if not text else text if read is None else read(text)

    if kind.is_array:
        return lambda values: [read_one(value) for value in values] if isinstance(values, list) else values
    return read_one


def _whole(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,30}", text):
        raise ValueError(f'{abbreviated(text)} is no whole number; as = "number" reads one with separators or a unit')
    return int(text)


def _exact(text: str) -> Decimal:
    try:
        return numeric(text)
    except ValueError as error:
        raise ValueError(f'{error}; as = "number" reads one with separators or a unit') from None


def _truth(text: str) -> bool:
    word = text.lower()
    if word not in _TRUTH:
        raise ValueError(f"{abbreviated(text)} is neither true nor false")
    return _TRUTH[word]


# What Postgres reads as a boolean (PostgreSQL documentation, 8.6), without the shortened words.
_TRUTH = dict.fromkeys(("true", "t", "yes", "y", "on", "1"), True) | dict.fromkeys(
    ("false", "f", "no", "n", "off", "0"), False
)
_OF_TEXT: dict[str, Read] = {
    **dict.fromkeys(("smallint", "integer", "bigint"), _whole),
    **dict.fromkeys(("numeric", "real", "double precision"), _exact),
    **dict.fromkeys(("json", "jsonb"), lambda text: exact_json.loads(text.encode())),
    "boolean": _truth,
}
READINGS: dict[str, Read] = {
    "number": read_number,
    "unix": read_seconds,
    "unix_ms": read_milliseconds,
    "date": read_moment,
}


def reading(name: str) -> Read:
    """The function of an `as`. Raises ValueError when it is not known."""
    if name in READINGS:
        return READINGS[name]
    if "%" in name:
        datetime(2000, 1, 1, tzinfo=UTC).strftime(name)
        return formatted(name)
    raise ValueError(f"as is {name!r}; known are {', '.join(READINGS)}, and a format like %d.%m.%Y")
