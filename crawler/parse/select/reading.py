"""Pure: `as` of a column: a number, a moment or a day in a text as people and servers write it."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import Any, TypeAlias

from crawler.job.tables import ColumnType
from crawler.parse.values import exact_json
from crawler.parse.values.numbers import numeric
from crawler.parse.values.shown import abbreviated
from crawler.parse.values.times import check_fraction

Read: TypeAlias = Callable[[Any], Any]

_MINUS = "\u2212"  # the sign of mathematics, which browsers show
_SIGNS = f"+\\-\u2013{_MINUS}"
_FRACTIONS = "\u00bc-\u00be\u2044\u2150-\u215f"  # a half and the like, which are no digits
_GROUPS = "'\u2019 \u00a0\u2007\u2009\u202f"  # between thousands: Swiss apostrophes, and blanks of several widths
# Digits with separators of any kind. A point behind a letter or a slash ends a word: "Rs.500", "S/.25".
_DIGITS = re.compile(rf"(?:(?<![^\W\d_])(?<!/)[.,])?\d+(?:[.,{_GROUPS}]\d+)*")
# A hyphen in a word, and a dash between blanks.
_NO_SIGN = re.compile(r"(?<=[^\W\d_])-(?=[^\W\d_])|(?<=\s)\u2013(?=\s)")
_SIGN = re.compile(f"[{_SIGNS}]")
_ANOTHER = re.compile(rf"[\d{_FRACTIONS}]")
_BLANK, _DIGIT, _SEPARATOR = re.compile(f"[{_GROUPS}]"), re.compile(r"\d"), re.compile("[., ]")
_THOUSANDS = re.compile(r"[1-9]\d{0,2},\d{3}")
_NO_CENTS = re.compile(r"[.,](?=[-\u2013\u2014=])")
# Groups of thousands, or groups as in India; the first one does not begin with 0.
_GROUPED = re.compile(r"[1-9]\d{0,2}([., ])\d{3}(?:\1\d{3})*|[1-9]\d?(?:,\d{2})*,\d{3}")
_ZONE = re.compile(r"-0000|(?<=\d )[A-Za-z]+$")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NO_DAY = date(1900, 1, 1)  # what strptime gives a text that has none
_MICROSECOND = timedelta(microseconds=1)
# The seconds of no moment have more. Making a whole number of 1e999999 takes a minute.
_MAX_DIGITS = 18


def read_number(value: Any) -> Any:
    """The number in a text, exactly: "$1,299.00" and "1.299,00 €" are 1299.00. Raises ValueError for none or several.

    The last of two kinds of separators is the decimal one. One that stands alone and once is decimal too, but for a
    comma before exactly three digits, and for one before another without cents: 1,299 and 1.299,- are 1299.
    """
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return value
    text = value.strip() if isinstance(value, str) else ""
    match = _DIGITS.search(text)
    if match is None or _ANOTHER.search(text, match.end()):
        raise ValueError(f"{abbreviated(value)} is not one number")
    signs: list[tuple[int, str]] = []
    before = text[: match.start()]
    if _SIGN.search(before):
        before = _NO_SIGN.sub("", before)
        signs = [(found.start(), found[0]) for found in _SIGN.finditer(before)]
    # A hyphen before a blank may stand between a name and its number.
    if len(signs) > 1 or any(at and sign != _MINUS and before[at + 1 : at + 2].isspace() for at, sign in signs):
        raise ValueError(f"{abbreviated(value)} is not one number")
    digits = match[0] if match[0].isalnum() else _BLANK.sub(" ", match[0])
    separators = "" if digits.isdecimal() else _DIGIT.sub("", digits)
    decimal = separators[-1:].strip() if len(separators) == 1 or len(set(separators)) > 1 else ""
    cents = decimal and _NO_CENTS.match(text, match.end())
    if (cents and cents[0] not in separators) or (separators == "," and _THOUSANDS.fullmatch(digits)):
        decimal = ""
    whole, _, fraction = digits.rpartition(decimal) if decimal else (digits, "", "")
    if not (not whole or whole.isdecimal() or _GROUPED.fullmatch(whole)):
        raise ValueError(f"{abbreviated(value)} is not one number")
    minus = "-" if signs and signs[0][1] != "+" else ""
    units = _SEPARATOR.sub("", whole) or "0"
    return Decimal(f"{minus}{units}.{fraction}") if fraction else int(f"{minus}{units}")  # a bigint takes no Decimal


def read_seconds(value: Any) -> datetime:
    """The moment so many seconds after 1970 (Unix time). Raises ValueError."""
    return _moment(value, 6)


def read_milliseconds(value: Any) -> datetime:
    """The moment so many milliseconds after 1970. Raises ValueError."""
    return _moment(value, 3)


def _moment(value: Any, places: int) -> datetime:
    number = Decimal(str(value)) if isinstance(value, float) else Decimal(read_number(value))
    if number.adjusted() > _MAX_DIGITS:
        raise ValueError(f"{abbreviated(value)} is no time of the calendar")
    sign, digits, exponent = number.as_tuple()
    exact = Decimal((sign, digits, int(exponent) + places))  # Decimal's own arithmetic would round to 28 digits
    if exact != (count := int(exact)):
        raise ValueError(f"{abbreviated(value)} has more digits than the microseconds that Postgres keeps")
    try:
        return _EPOCH + count * _MICROSECOND
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
        moment = datetime.fromisoformat(text.upper())
    except ValueError:
        pass
    else:
        check_fraction(text)
        return moment
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError) as error:
        raise ValueError(f"{abbreviated(value)} is no time (ISO 8601 or RFC 5322)") from error
    if moment.tzinfo is None and (zone := _ZONE.search(text)):
        if zone[0] != "-0000":
            raise ValueError(f"{abbreviated(value)} has a zone of which RFC 5322 does not say where it is")
        return moment.replace(tzinfo=UTC)
    return moment


def _formatted(layout: str) -> Read:
    """The moment in a text that is written as `strptime` names it. The function raises ValueError."""
    # What other names of zones mean depends on the machine.
    layouts = {zone: layout.replace("%Z", zone) for zone in ("UTC", "GMT")} if "%Z" in layout else {}

    def read(value: Any) -> datetime:
        if not isinstance(value, str):
            raise ValueError(f"{abbreviated(value)} is no text")
        text = value.strip()
        for zone, in_zone in layouts.items():
            if zone in text:
                return datetime.strptime(text, in_zone).replace(tzinfo=UTC)
        return datetime.strptime(text, layout)

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

    return _of_each(read_one) if kind.is_array else read_one


def for_column(read: Read, kind: ColumnType, *, is_text: bool) -> Read:
    """The function of an `as` for a column of this type: each element of an array, a day for `date`, a time for `time`.

    With `is_text`, of a format whose values are all texts, an empty one is null. The function raises ValueError.
    """

    def read_one(value: Any) -> Any:
        if value is None or (is_text and isinstance(value, str) and not value.strip()):
            return None
        found = read(value)
        if not isinstance(found, datetime):
            return found
        if kind.name == "date" and found.timetz() == time.min:
            return found.date()
        return found.timetz() if kind.name in ("time", "timetz") and found.date() == _NO_DAY else found

    return _of_each(read_one) if kind.is_array else read_one


def _of_each(read: Read) -> Read:
    return lambda values: [read(value) for value in values] if isinstance(values, list) else values


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
        try:
            datetime.strptime("", name)
        except ValueError as error:
            if "does not match" not in str(error):  # as an empty text does not
                raise ValueError(f"as is {name!r}; {error}") from None
        return _formatted(name)
    raise ValueError(f"as is {name!r}; known are {', '.join(READINGS)}, and a format like %d.%m.%Y")
