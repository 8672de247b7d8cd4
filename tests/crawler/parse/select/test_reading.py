from __future__ import annotations

from datetime import UTC, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from crawler.parse.select.reading import reading


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("$1,299.00", "1299.00"),
        ("1.299,00 \u20ac", "1299.00"),
        ("1,299", "1299"),
        ("1.299", "1.299"),
        ("12,50", "12.50"),
        ("-3", "-3"),
        ("\u2212 4 \u00b0C", "-4"),
        ("EUR -5,00", "-5.00"),
        ("1\u202f234\u00a0567,8", "1234567.8"),
        ("1'000.50", "1000.50"),
        ("12,34,567", "1234567"),
        ("1.234.567", "1234567"),
        (".5", "0.5"),
        ("3.", "3"),
        (" 7 ", "7"),
        ("0,123", "0.123"),  # no group of thousands begins with 0
        ("1.299,- \u20ac", "1299"),
        ("(5)", "5"),
        ("5-", "5"),
        ("kr 1.299,\u2014", "1299"),
        ("12.-", "12"),
        ("Rs. 1,299.00", "1299.00"),
        ("Rs.500", "500"),
        ("S/.25", "25"),
        ("$.50", "0.50"),
        ("\u20135 \u00b0C", "-5"),
        ("Price \u2013 5 \u20ac", "5"),
        ("Pre-order 5", "5"),
        ("1\u2009234,5", "1234.5"),
    ],
)
def test_a_number_as_people_write_it(text: str, number: str) -> None:
    found = reading("number")(text)
    assert (found, str(found)) == (Decimal(number), number)


@pytest.mark.parametrize(
    "value",
    ["", "free", "5 of 10", "1-2", "2026-01-02", "1,2,3", "1,29,9", "1,2.3,4", True, [1]]
    + ["5 10", "1, 2", "1,234 567", "030 123 456", "Size - 42", "5\u00bd", "- -5"],
)
def test_what_is_not_one_number_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="is not one number"):
        reading("number")(value)


AT = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)


@pytest.mark.parametrize(
    ("name", "value", "moment"),
    [
        ("unix", 1_700_000_000, AT),
        ("unix", "1700000000", AT),
        ("unix", 1_700_000_000.000001, AT + timedelta(microseconds=1)),
        ("unix", Decimal("-1.5"), datetime(1969, 12, 31, 23, 59, 58, 500_000, tzinfo=UTC)),
        ("unix_ms", 1_700_000_000_000, AT),
        ("unix_ms", "1700000000000.5", AT + timedelta(microseconds=500)),
        ("date", "2023-11-14T22:13:20Z", AT),
        ("date", "Tue, 14 Nov 2023 22:13:20 GMT", AT),
        ("date", "Tue, 14 Nov 2023 23:13:20 +0100", AT.astimezone(timezone(timedelta(hours=1)))),
        ("date", "Tue, 14 Nov 2023 22:13:20 -0000", AT),
        ("date", "2023-11-14t22:13:20z", AT),
        ("date", AT, AT),
        ("date", "2023-11-14 22:13:20 +0000", AT),
        ("date", "Tue Nov 14 22:13:20 UTC 2023", AT),
        ("date", "14 Nov 2023 22:13:20 Z (a comment)", AT),
        ("%d.%m.%Y %I:%M:%S %p %Z", "14.11.2023 10:13:20 PM UTC", AT),
        ("%Y-%m-%d %H:%M:%S %Z", "2023-11-14 22:13:20 UTC", AT),
        ("%d.%m.%Y %H:%M:%S %z", " 14.11.2023 22:13:20 +0000 ", AT),
    ],
)
def test_a_moment_as_servers_write_it(name: str, value: Any, moment: datetime) -> None:
    assert reading(name)(value) == moment


def test_a_format_without_a_zone_gives_a_moment_without_one() -> None:
    assert reading("%d.%m.%Y")("14.11.2023").isoformat() == "2023-11-14T00:00:00"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("unix", 1e30, "no time of the calendar"),
        ("unix", "0.0000001", "more digits than the microseconds"),
        ("unix", "yesterday", "is not one number"),
        ("unix", Decimal("1e999999"), "no time of the calendar"),  # a whole number of it would take a minute
        ("unix", Decimal("1.00000000000000000000000000000001"), "more digits than the microseconds"),
        ("date", "2023-11-14T22:13:20.1234567Z", "more digits than the microseconds"),
        ("date", "Tue, 14 Nov 2023 22:13:20 CET", "has a zone, or more, of which RFC 5322 does not say"),
        *(
            ("date", f"3 Feb 2026 10:00{behind}", "has a zone, or more, of which RFC 5322 does not say")
            for behind in (
                ":00 +01",
                ":00 +02:00",
                " PM EST",
                ":00 GMT+0100 (CET)",
                " UTC+2",
                " 24 +0100",
            )
        ),
        ("date", "20260203123456Z", "is no time"),
        ("date", "2026-02-03+01:00", "is no time"),
        ("date", "2026-02-30T10:00:00Z", "day is out of range"),
        ("date", "yesterday", "is no time"),
        ("date", "", "is no time"),
        ("%d.%m.%Y", "1/2/2023", "does not match format"),
        ("%d.%m.%Y", 5, "is no text"),
    ],
)
def test_what_is_no_moment_is_refused(name: str, value: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        reading(name)(value)


@pytest.mark.parametrize(
    ("layout", "says"),
    [
        ("%d.%m.%Y %H:%M %p", "%I and %p stand together"),  # strptime passes over %p
        ("%d.%m.%Y %I:%M", "%I and %p stand together"),
        ("%Y %W", "a week without its day"),
        ("%d.%m.", "a day without its year"),
        ("%A %H:%M", "a day without its year"),
    ],
)
def test_a_format_that_would_be_read_as_another_time_is_refused(layout: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        reading(layout)


def test_a_format_without_a_day_gives_a_time_of_day() -> None:
    assert reading("%H:%M")("10:05") == time(10, 5)  # no 1 January 1900


def test_an_unknown_reading_names_those_there_are() -> None:
    with pytest.raises(ValueError, match="known are number, unix, unix_ms, date, and a format like"):
        reading("money")
