from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import IntEnum
from typing import Any
from uuid import UUID

import pytest

from crawler.parse.columns import Table
from tests.crawler.examples import a_table


class Colour(IntEnum):
    RED = 1


EAST = timezone(timedelta(hours=2))
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SOME_UUID = UUID("12345678-1234-5678-1234-567812345678")
MOMENTS = [
    ("2026-01-01T12:00:00Z", NOON),
    ("2026-01-01T12:00:00+00:00", NOON),
    ("2026-01-01 14:00:00.123456+02:00", NOON.replace(microsecond=123456)),
    (datetime(2026, 1, 1, 14, tzinfo=EAST), NOON),
    ("9999-12-31T23:59:59.999998Z", datetime(9999, 12, 31, 23, 59, 59, 999998, tzinfo=UTC)),
]
GOOD: list[tuple[str, Any, Any]] = [
    *(("smallint", value, value) for value in (0, -(2**15), 2**15 - 1)),
    *(("integer", value, value) for value in (-(2**31), 2**31 - 1)),
    *(("bigint", value, value) for value in (-(2**63), 2**63 - 1)),
    *((kind, "Zoë 日本 \U0001f600 \x01", "Zoë 日本 \U0001f600 \x01") for kind in ("text", "varchar(40)", "char(40)")),
    ("text", "", ""),
    ("TEXT", "a", "a"),
    *(("boolean", value, value) for value in (True, False)),
    *(("double precision", value, float(value)) for value in (0.1, -1e308, 5e-324, 3, 2**53, -(2**60))),
    *(("real", value, float(value)) for value in (0.1, 1.5, 16_777_216, 2.0**127, -0.0)),
    ("numeric", 0.1, Decimal("0.1")),
    ("numeric(10, 2)", 19.99, Decimal("19.99")),
    ("numeric", 1e22, Decimal("1e22")),
    ("numeric", 10**40, Decimal(10**40)),
    ("numeric", "1.10", Decimal("1.10")),
    ("numeric", Decimal("-0.5"), Decimal("-0.5")),
    ("numeric", "1e131071", Decimal("1e131071")),
    ("numeric", "1e-16383", Decimal("1e-16383")),
    *(("numeric(10, 2)", value, Decimal(value)) for value in ("-1.23", "1.2300", "0E-9", "120E+3", f"1.{'0' * 40}")),
    ("numeric(4)", "12.000", Decimal(12)),
    *(("timestamptz", value, moment) for value, moment in MOMENTS),
    ("timestamp", "2026-01-01T12:00:00.5", datetime(2026, 1, 1, 12, 0, 0, 500_000)),
    ("timestamp(3)", datetime(2026, 1, 1), datetime(2026, 1, 1)),
    ("timestamptz(3)", NOON.replace(microsecond=123_000), NOON.replace(microsecond=123_000)),
    ("time(9)", time(1, 2, 3, 4), time(1, 2, 3, 4)),
    ("interval(1)", timedelta(seconds=-0.5), timedelta(seconds=-0.5)),
    ("date", "2026-01-31", date(2026, 1, 31)),
    ("date", date(9999, 12, 30), date(9999, 12, 30)),
    ("time", "12:30:01.000001", time(12, 30, 1, 1)),
    ("time", time(1), time(1)),
    ("interval", timedelta(days=-1, microseconds=1), timedelta(days=-1, microseconds=1)),
    ("bytea", b"\0\xff", b"\0\xff"),
    ("bytea", bytearray(b"a"), b"a"),
    ("bytea", memoryview(b"a"), b"a"),
    ("uuid", SOME_UUID, SOME_UUID),
    ("uuid", str(SOME_UUID), SOME_UUID),
    ("uuid", "12345678123456781234567812345678", SOME_UUID),
    ("bigint[]", [1, None, 3], [1, None, 3]),
    ("bigint[]", (), []),
    ("text[]", ["a", "b"], ["a", "b"]),
    ("numeric(5,2)[]", [0.1], [Decimal("0.1")]),
    ("timestamptz[]", ["2026-01-01T12:00:00Z"], [NOON]),
]
WHOLE, AS_IT_IS = "no whole number", "as it is"
BAD: list[tuple[str, Any, str]] = [
    *(
        (kind, value, WHOLE)
        for kind in ("smallint", "integer", "bigint")
        for value in (1.7, 1.0, True, "1", Decimal(1), Colour.RED, math.nan, [1])
    ),
    ("smallint", 2**15, "does not fit into 16 bits"),
    ("integer", -(2**31) - 1, "does not fit into 32 bits"),
    ("bigint", 2**63, "does not fit into 64 bits"),
    ("bigint", 10**400, "does not fit into 64 bits"),
    *((kind, 1, "no text") for kind in ("text", "varchar(3)", "char(3)")),
    ("text", b"a", "no text"),
    ("text", "a\0b", "NUL"),
    ("text", "a\ud800", "a lone surrogate"),
    *(("boolean", value, "neither true nor false") for value in (1, 0, "true")),
    *((kind, value, "no number") for kind in ("real", "double precision") for value in (True, "1.5", [1])),
    *(
        (kind, value, "not finite")
        for kind in ("real", "double precision", "numeric")
        for value in (math.nan, math.inf, -math.inf)
    ),
    ("double precision", 2**53 + 1, "would be rounded"),
    ("double precision", 10**400, "too large"),
    ("real", 2**24 + 1, "would be rounded"),
    ("real", 2.0**24 + 1, "would be rounded"),
    ("real", 1e-50, "would be rounded"),
    ("real", 1e300, "would be rounded"),
    *(("numeric", value, "no number") for value in (True, "one", "", None.__class__, [1])),
    *(("numeric", value, "not finite") for value in ("NaN", "Infinity", Decimal("sNaN"))),
    *(("numeric", value, "more digits") for value in ("1e131072", Decimal("1E+999999999"), "1e-16384")),
    # Postgres would round or cut these without a word.
    *(("numeric(10, 2)", value, AS_IT_IS) for value in ("1.239", Decimal("0.001"), 1.005, f"1.{'0' * 40}1")),
    *(("numeric(4)", value, AS_IT_IS) for value in ("1.5", "0.1")),
    ("numeric(4,2)[]", ["1.50", "1.501"], AS_IT_IS),
    *(("numeric(5, 2)", value, AS_IT_IS) for value in (1000, "-1e3", Decimal("1E+900"), 999.995)),
    ("numeric(2, 4)", "0.0100", AS_IT_IS),
    *((kind, "ab ", AS_IT_IS) for kind in ("varchar(2)", "char(2)", "char")),
    *(("timestamp(3)", f"2026-01-01T12:00:00.{fraction}", AS_IT_IS) for fraction in ("000001", "1234")),
    ("timestamptz(0)", NOON.replace(microsecond=1), AS_IT_IS),
    ("time(5)", time(1, 2, 3, 4), AS_IT_IS),
    ("interval(0)", timedelta(seconds=-0.5), AS_IT_IS),
    ("timestamptz", datetime(2026, 1, 1), "no time zone"),
    ("timestamptz", "2026-01-01T12:00:00", "no time zone"),
    ("timestamptz", "2026-01-01", "no time zone"),
    ("timestamptz", "yesterday", "no time (ISO 8601)"),
    ("timestamptz", 1_767_225_600, "no time (ISO 8601)"),
    ("timestamptz", date(2026, 1, 1), "no time (ISO 8601)"),
    # asyncpg stores both ends of the calendar as infinity; Go's zero time is the first one.
    ("timestamptz", "0001-01-01T00:00:00Z", "infinity"),
    ("timestamptz", datetime.max.replace(tzinfo=UTC), "infinity"),
    ("timestamptz", "9999-12-31T22:59:59.999999-01:00", "infinity"),
    ("timestamptz", "0001-01-01T00:00:00+02:00", "out of range"),
    ("timestamp", datetime.min, "infinity"),
    ("timestamp", datetime.max, "infinity"),
    ("timestamp", NOON, "without a zone"),
    ("timestamp", "2026-01-01T12:00:00Z", "without a zone"),
    ("date", date.min, "infinity"),
    ("date", date.max, "infinity"),
    ("date", datetime(2026, 1, 1), "no date"),
    ("date", "2026-02-30", "day is out of range"),
    ("date", "2026-01-01T00:00:00", "no date (ISO 8601)"),
    # Python reads these as 1:00, 5:00, 23:45, a Monday, and any character for the T.
    *(
        ("timestamp", text, "no time (ISO 8601)")
        for text in ("2026-02-03+01:00", "2026-02-03-05:00", "2026-02-03x10:00")
    ),
    ("timestamptz", "20260203123456Z", "no time (ISO 8601)"),
    *(("date", text, "no date (ISO 8601)") for text in ("2026-W06", "2026W06", "2026-02-03Z", "20260203100000")),
    *(("time", text, "no time of day (ISO 8601)") for text in ("10:00 PM", "+10:00", "")),
    ("time", "25:00", "'25:00' is no time of day: hour must be in"),
    ("time", "12:00:00+02:00", "without a zone"),
    ("time", time(12, tzinfo=UTC), "without a zone"),
    ("time", 12, "no time of day"),
    ("interval", 5, "no timedelta"),
    ("interval", "1 day", "no timedelta"),
    ("bytea", "text", "no bytes"),
    ("bytea", 5, "no bytes"),
    ("uuid", "1234", "badly formed"),
    ("uuid", 12345678123456781234567812345678, "no UUID"),
    ("bigint[]", "12", "no list"),
    ("bigint[]", {"a": 1}, "no list"),
    ("bigint[]", [1, 2.5], WHOLE),
    ("text[]", [["a"]], "no text"),
]


@pytest.mark.parametrize(("kind", "value", "stored"), GOOD)
def test_a_value_that_fits_is_taken_exactly(kind: str, value: Any, stored: Any) -> None:
    (taken,) = Table(a_table(c=kind)).row({"c": value})
    assert taken == stored
    assert type(taken) is type(stored)


@pytest.mark.parametrize(("kind", "value", "words"), BAD)
def test_a_value_that_would_change_is_an_error_that_names_table_and_column(kind: str, value: Any, words: str) -> None:
    table = Table(a_table(fine="bigint", c=kind))
    with pytest.raises(ValueError, match="^facts[.]c: ") as caught:
        table.row({"fine": 1, "c": value})
    assert words in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, 2.5, None, True, "Zoë"], "b": {}},
        [],
        "text",
        None.__class__.__name__,
        {"null": "null", "nan": "NaN"},
        r"\u0000",
        "\\\\u0000",
        2**63,
        1e308,
    ],
)
@pytest.mark.parametrize("kind", ["json", "jsonb"])
def test_json_keeps_its_value(kind: str, value: Any) -> None:
    (text,) = Table(a_table(c=kind)).row([value])
    assert json.loads(text) == value


def test_json_takes_times_and_uuids_as_text() -> None:
    (text,) = Table(a_table(c="jsonb")).row([{"at": NOON, "id": SOME_UUID}])
    assert json.loads(text) == {"at": "2026-01-01T12:00:00+00:00", "id": str(SOME_UUID)}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": "x\0"}, "NUL"),
        ({"a\0": 1}, "NUL"),
        ("\\\0", "NUL"),
        ({"a": [1, (math.nan,)]}, "not finite"),
        ([-math.inf, None], "not finite"),
        ({"a": "\ud800"}, "surrogates"),
        ({"a": b"bytes"}, "bytes"),
        ({"a": {1, 2}}, "set"),
        ({1: 2}, "must be str"),
        (Decimal("NaN"), "not finite"),
        (Decimal("1e999999"), "more digits"),
    ],
)
def test_json_that_would_change_is_an_error(value: Any, words: str) -> None:
    with pytest.raises(ValueError, match="^facts[.]c: ") as caught:
        Table(a_table(c="jsonb")).row([value])
    assert words in str(caught.value)


def test_a_mapping_comes_in_column_order_and_what_it_leaves_out_is_null() -> None:
    table = Table(a_table(a="bigint", b="text", c="text"))
    assert table.row({"c": "x", "a": 1}) == (1, None, "x")
    assert table.row((1, None, "x")) == (1, None, "x")


@pytest.mark.parametrize(
    "record",
    ["ab", b"ab", (1,), (1, 2, 3), {1, 2}, 5, (value for value in (1, 2)), None],
    ids=["text", "bytes", "few", "many", "set", "number", "generator", "none"],
)
def test_what_is_no_record_is_refused(record: Any) -> None:
    with pytest.raises(ValueError, match="^facts: a record is a mapping or 2 values in column order"):
        Table(a_table(a="bigint", b="bigint")).row(record)


def test_a_column_that_the_table_does_not_have_is_an_error() -> None:
    with pytest.raises(ValueError, match="^facts has no column b, c$"):
        Table(a_table(a="bigint")).row({"a": 1, "c": 2, "b": 3})


@pytest.mark.parametrize(
    "record",
    [{"a": "x" * 11}, {"a": "x" * 6, "b": b"y" * 5}, {"c": ["x" * 5, None, "y" * 6]}, {"d": {"key": "x"}}],
    ids=["a text", "text and bytes", "a list", "JSON"],
)
def test_a_record_that_no_row_can_hold_is_an_error(record: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crawler.parse.columns.MAX_RECORD_CHARACTERS", 10)
    table = Table(a_table(a="text", b="bytea", c="varchar(9)[]", d="jsonb", n="bigint", m="numeric(30,2)[]"))
    with pytest.raises(ValueError, match="^facts: a record of 1[1-3] characters; at most 10"):
        table.row(record)
    table.row({"a": "x" * 5, "b": b"y" * 5, "n": 10**15, "m": ["1"] * 20})
