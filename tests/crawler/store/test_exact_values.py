"""What each type of column takes: from a response's JSON, or a value of Python, to what Postgres then holds.

Each value is stored exactly, or fails its key with a reason. Only what is written `json(…)` was JSON in a response; the
others are values that a parser made. `TAKEN` has what Postgres writes for a value, `REFUSED` words of the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import IntEnum
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from crawler.parse.columns import Table
from crawler.parse.values import exact_json
from tests.crawler.examples import a_loading_run, a_page, a_table

pytestmark = pytest.mark.anyio


def json(literal: str) -> Any:
    """What response.json() makes of this text."""
    return exact_json.loads(literal.encode())


class Colour(IntEnum):
    RED = 1


class Nanoseconds(datetime):
    """Like pandas.Timestamp, which keeps more than a datetime does."""

    nanosecond = 789


@dataclass
class Point:
    x: float


EAST = timezone(timedelta(hours=2))
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
NO_WHOLE = "is no whole number"
NO_NUMBER = "is no number"
ROUNDED = "would be rounded"
AS_IT_IS = "as it is"
DIGITS = "more digits than the microseconds"
UUID_TEXT = "12345678-1234-5678-1234-567812345678"

TAKEN: dict[str, list[tuple[Any, str]]] = {
    "smallint": [(json("-32768"), "-32768"), (json("-0"), "0")],
    "integer": [(json("2147483647"), "2147483647")],
    "bigint": [(json("9223372036854775807"), "9223372036854775807"), (json("12345678901234567"), "12345678901234567")],
    "numeric": [
        (json("12345678901234567.89"), "12345678901234567.89"),
        (json("0.1"), "0.1"),
        (json("0.10000000000000001"), "0.10000000000000001"),
        (json("1e400"), "1" + "0" * 400),
        (json("1e-400"), "0." + "0" * 399 + "1"),
        (json("1E-7"), "0.0000001"),
        (json("-0.0"), "0.0"),
        (json("123456789012345678901234567890"), "123456789012345678901234567890"),
        (json('"1.10"'), "1.10"),
        ("+1", "1"),
        (".5", "0.5"),
        ("5.", "5"),
        ("1e3", "1000"),
        (Decimal("1.10"), "1.10"),
        (2**70, str(2**70)),
        (0.1 + 0.2, "0.30000000000000004"),
        (5.0, "5.0"),
    ],
    "numeric(10, 2)": [("12.3400", "12.34"), (19.99, "19.99"), (5, "5.00")],
    "real": [(0.1, "0.1"), (16_777_216, "1.6777216e+07"), (Decimal("0.25"), "0.25"), (0.99999999, "1")],
    "double precision": [
        (0.1, "0.1"),
        (json("0.10000000000000000555"), "0.1"),
        (2**53, "9.007199254740992e+15"),
        (5, "5"),
        (Decimal("1e22"), "1e+22"),
        (-0.0, "-0"),
    ],
    "boolean": [(json("true"), "true"), (False, "false")],
    "text": [("Zoë \x01\n", "Zoë \x01\n"), ("", "")],
    "varchar(3)": [("Zoë", "Zoë"), ("a ", "a ")],
    "char(3)": [("ab", "ab")],
    "date": [("2026-01-31", "2026-01-31"), (date(1, 1, 2), "0001-01-02")],
    "time": [
        ("12:00:00.123456", "12:00:00.123456"),
        ("12:00:00.1234560", "12:00:00.123456"),
        ("12:00:00,5", "12:00:00.5"),
        (time(1), "01:00:00"),
    ],
    "timetz": [("12:00:00.5+02:00", "12:00:00.5+02"), (time(1, tzinfo=EAST), "01:00:00+02"), ("12:00Z", "12:00:00+00")],
    "timestamp": [
        ("2026-01-01T12:00:00.123456000", "2026-01-01 12:00:00.123456"),
        (datetime(2026, 1, 1), "2026-01-01 00:00:00"),
    ],
    "timestamp(3)": [("2026-01-01T12:00:00.123000", "2026-01-01 12:00:00.123")],
    "timestamptz": [
        ("2026-01-01T14:00:00.123456+02:00", "2026-01-01 12:00:00.123456+00"),
        ("2026-01-01T12:00:00.100000000Z", "2026-01-01 12:00:00.1+00"),
        (datetime(2026, 7, 1, 12, tzinfo=ZoneInfo("Europe/Berlin")), "2026-07-01 10:00:00+00"),
    ],
    "interval": [(timedelta(days=-1, microseconds=1), "-1 days +00:00:00.000001")],
    "uuid": [
        (UUID_TEXT, UUID_TEXT),
        (UUID_TEXT.upper(), UUID_TEXT),
        (UUID(UUID_TEXT), UUID_TEXT),
        (UUID_TEXT.replace("-", ""), UUID_TEXT),
        (f"{{{UUID_TEXT}}}", UUID_TEXT),
        (f"urn:uuid:{UUID_TEXT}", UUID_TEXT),
    ],
    "bytea": [(b"\0\xff", "\\x00ff"), (bytearray(b"a"), "\\x61")],
    "json": [
        (json('{"b": 12345678901234567.89, "a": 1e400}'), '{"b":12345678901234567.89,"a":1E+400}'),
        ([2**70, -(2**70), 2**64 - 1], f"[{2**70},{-(2**70)},{2**64 - 1}]"),
        (Decimal("1.10"), "1.10"),
        ({"a": (Decimal("0.1"), None, "é")}, '{"a":[0.1,null,"é"]}'),
    ],
    "jsonb": [
        (json("12345678901234567.89"), "12345678901234567.89"),
        ({"n": 2**70}, f'{{"n": {2**70}}}'),
        ({"n": Decimal("1.10")}, '{"n": 1.10}'),
        ([Decimal("1E-3"), 1e-7], "[0.001, 0.0000001]"),
        (Point(0.5), '{"x": 0.5}'),
        ("\\u0000", '"\\\\u0000"'),
    ],
    "bigint[]": [([1, None, 3], "{1,NULL,3}"), ([], "{}")],
    "numeric(5,2)[]": [(["1.50", 0.25], "{1.50,0.25}")],
    "timestamptz(3)[]": [(["2026-01-01T12:00:00.123Z"], '{"2026-01-01 12:00:00.123+00"}')],
    "jsonb[]": [([{"n": 2**70}], f'{{"{{\\"n\\": {2**70}}}"}}')],
}
REFUSED: dict[str, list[tuple[Any, str]]] = {
    "smallint": [(32768, "does not fit into 16 bits")],
    "bigint": [
        *((value, NO_WHOLE) for value in (5.0, json("5.0"), json("1e3"), True, "1", "1_000", Decimal(5), Colour.RED)),
        (json("9223372036854775808"), "does not fit into 64 bits"),
    ],
    "numeric": [
        *(
            (text, NO_NUMBER)
            for text in ("1_000", " 1", "1 ", "1\n", "\u0661", "\uff11", "0x10", "1,5", "", "1e", "e5")
        ),
        *((text, "is not finite") for text in ("NaN", "inf", "-Infinity", float("nan"), Decimal("sNaN"))),
        (True, NO_NUMBER),
        (json("1e131072"), "more digits than Postgres keeps"),
        ("1e-16384", "more digits than Postgres keeps"),
    ],
    "numeric(10, 2)": [(1.005, AS_IT_IS), ("0.001", AS_IT_IS), (json("12345678.901234567"), AS_IT_IS)],
    "real": [(16_777_217, ROUNDED), (1e300, ROUNDED), (1e-50, ROUNDED), (16777217.5, ROUNDED), (True, NO_NUMBER)],
    "double precision": [
        (json("12345678901234567.89"), ROUNDED),
        (2**53 + 1, ROUNDED),
        (json("1e-400"), ROUNDED),
        (json("1e400"), "is not finite"),
        (float("inf"), "is not finite"),
        ("1.5", NO_NUMBER),
    ],
    "boolean": [(1, "neither true nor false"), ("true", "neither true nor false")],
    "text": [(5, "is no text"), (b"a", "is no text"), ("a\0", "NUL"), ("\ud800", "surrogate")],
    "varchar(3)": [("abcd", AS_IT_IS), ("abc ", AS_IT_IS)],
    "char(3)": [("abcd", AS_IT_IS)],
    "date": [
        ("2026-02-30", "day is out of range"),
        ("\u0662026-01-01", "is no date (ISO 8601)"),
        (NOON, "is no date"),
        ("2026-01-01T00:00:00", "is no date (ISO 8601)"),
        ("0001-01-01", "infinity"),
        ("10000-01-01", "is no date (ISO 8601)"),
    ],
    "time": [
        ("12:00:00.1234567", DIGITS),
        ("24:00:00", "hour must be"),
        ("12:00:00Z", "without a zone"),
        (12, "no time"),
    ],
    "timetz": [
        ("12:00:00", "no time of day with a fixed zone"),
        ("12:00:00.1234567+02:00", DIGITS),
        (time(1, tzinfo=ZoneInfo("Europe/Berlin")), "fixed zone"),
        (time(1, tzinfo=timezone(timedelta(microseconds=5))), "fraction of a second"),
    ],
    "timestamp": [("2026-01-01T12:00:00.1234567", DIGITS), (NOON, "without a zone")],
    "timestamp(3)": [("2026-01-01T12:00:00.1234", AS_IT_IS), ("2026-01-01T12:00:00.1230001", DIGITS)],
    "timestamptz": [
        ("2026-01-01T12:00:00.123456789Z", DIGITS),
        ("2026-01-01T12:00:00,123456789Z", DIGITS),
        (Nanoseconds(2026, 1, 1, tzinfo=UTC), DIGITS),
        ("2026-01-01T12:00:00", "has no time zone"),
        (1_767_225_600, "is no time"),
        ("2026-12-31T23:59:60Z", "second must be in"),
        ("0001-01-01T00:00:00Z", "infinity"),
    ],
    "interval": [("1 day", "is no timedelta"), (5, "is no timedelta")],
    "uuid": [
        *(
            (text, "badly formed")
            for text in (
                "1234",
                "0x345678123456781234567812345678ab",
                "1_34567812345678123456781234567812",
                "1-2345678123456781234567812345678",
                "{12345678123456781234567812345678",
                "\u0661" * 32,
            )
        ),
        (5, "is no UUID"),
    ],
    "bytea": [("text", "is no bytes")],
    "jsonb": [
        ({"a": "\0"}, "NUL"),
        ("\ud800", "surrogate"),
        ([float("nan")], "not finite"),
        (Point(float("nan")), "not finite"),
        ([Decimal("Infinity")], "not finite"),
        (b"a", "bytes"),
        ({1: 2}, "must be str"),
    ],
    "bigint[]": [([1, 2.5], NO_WHOLE), ("12", "is no list"), ([[1]], NO_WHOLE)],
    "numeric(5,2)[]": [(["1.501"], AS_IT_IS)],
    "timestamptz(3)[]": [(["2026-01-01T12:00:00.1234Z"], AS_IT_IS)],
}


@pytest.mark.parametrize("kind", TAKEN)
async def test_what_a_column_takes_is_what_postgres_then_holds(database: str, kind: str) -> None:
    table = a_table(n="integer", c=kind)
    rows = [Table(table).row([number, value]) for number, (value, _) in enumerate(TAKEN[kind])]
    async with a_loading_run(database, table) as run:
        await run.store([a_page("a", records=rows)])
        await run.eye.execute("SET TimeZone = 'UTC'")
        stored = await run.eye.fetch(f"SELECT c::text AS c FROM facts_r{run.run_id} ORDER BY n")
        reason = (await run.pages())["a"]["reason"]
    assert reason is None
    assert [row["c"] for row in stored] == [text for _, text in TAKEN[kind]]


@pytest.mark.parametrize(
    ("kind", "value", "words"), [(kind, value, words) for kind, cases in REFUSED.items() for value, words in cases]
)
def test_what_a_column_does_not_take_is_an_error_that_says_why(kind: str, value: Any, words: str) -> None:
    with pytest.raises(ValueError, match="^facts[.]c: ") as caught:
        Table(a_table(c=kind)).row([value])
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
