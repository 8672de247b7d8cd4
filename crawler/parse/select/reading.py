"""Pure: `as` of a column: a number, a moment or a day in a text as people and servers write it."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import Any, TypeAlias

from crawler.job.tables import ColumnType
from crawler.parse.values import exact_json
from crawler.parse.values.numbers import numeric
from crawler.parse.values.shown import abbreviated
from crawler.parse.values.times import iso

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
# RFC 5322, section 3.3 and 4.3: what may stand behind the time, and asctime's year. Python passes over anything else,
# takes +01 for a minute, and 10:00 PM for the morning.
_BEHIND_TIME = re.compile(
    r"[^:]*\d:\d\d(?::\d\d)?(?P<zone>\s+(?:[+-]\d{4}|UTC?|GMT|Z|[ECMP][SD]T))?(?:\s+\d{4})?(?:\s*\(.*\))?",
    re.ASCII | re.IGNORECASE | re.DOTALL,
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# The directives of strptime that say a part of a day, and those that say its year.
_OF_DAY, _OF_YEAR = frozenset("aAwdbBmyYjUWcxGuV"), frozenset("yYGcx")
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
    if (moment := iso(datetime, text)) is not None:
        return moment
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError) as error:
        hint = 'write its format, like as = "%d.%m.%Y"'
        raise ValueError(f"{abbreviated(value)} is no time (ISO 8601 or RFC 5322); {hint}") from error
    behind = _BEHIND_TIME.fullmatch(text)
    if behind is None:
        hint = 'write its format, like as = "%d %b %Y %I:%M %p %z"'
        raise ValueError(f"{abbreviated(value)} has a zone, or more, of which RFC 5322 does not say what it is; {hint}")
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None and behind["zone"] else moment  # for -0000


def _formatted(layout: str) -> Read:
    """The moment in a text that is written as `strptime` names it. The function raises ValueError."""
    # What other names of zones mean depends on the machine.
    layouts = {zone: layout.replace("%Z", zone) for zone in ("UTC", "GMT")} if "%Z" in layout else {}

    has_day = not _OF_DAY.isdisjoint(_directives(layout))  # strptime gives a text that has none the 1 January 1900

    def read(value: Any) -> datetime | time:
        if not isinstance(value, str):
            raise ValueError(f"{abbreviated(value)} is no text")
        text = value.strip()
        zone = next((zone for zone in layouts if zone in text), None)
        moment = datetime.strptime(text, layouts[zone] if zone else layout)
        moment = moment.replace(tzinfo=UTC) if zone else moment
        return moment if has_day else moment.timetz()

    return read


def _directives(layout: str) -> frozenset[str]:
    return frozenset(re.findall("%(.)", layout.replace("%%", "")))


def _check_layout(layout: str) -> None:
    """Raise ValueError for a format with which strptime passes over a part, or fills in what is not there."""
    found = _directives(layout)
    if ("I" in found) != ("p" in found):
        raise ValueError(f"as is {layout!r}; %I and %p stand together; the hour of a day with 24 is %H")
    if not found.isdisjoint("UW") and found.isdisjoint("aAwu"):
        raise ValueError(f"as is {layout!r}; a week without its day is no date; write %a, %A, %w or %u beside %U or %W")
    if not found.isdisjoint(_OF_DAY) and found.isdisjoint(_OF_YEAR):
        raise ValueError(f"as is {layout!r}; a day without its year is no date; write %Y or %y")


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
        return found.date() if kind.name == "date" and found.timetz() == time.min else found

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


def _json(text: str) -> Any:
    try:
        return exact_json.loads(text.encode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{abbreviated(text)} is no JSON ({exact_json.fault(error)})") from None


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
    **dict.fromkeys(("json", "jsonb"), _json),
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
        _check_layout(name)
        return _formatted(name)
    raise ValueError(f"as is {name!r}; known are {', '.join(READINGS)}, and a format like %d.%m.%Y")
