"""How long upstreams ask to wait, in the headers that they really send."""

from __future__ import annotations

import time
from collections.abc import Iterable
from email.utils import formatdate

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from crawler.fetch.ratelimit_headers import MAX_PAUSE_SECONDS, is_throttled, requested_pause

NOW = 1_760_000_000.0
DATE = formatdate(NOW, usegmt=True)


class Lines:
    """Header lines as an engine returns them; a name may come twice."""

    def __init__(self, *lines: tuple[str, str]) -> None:
        self._lines = list(lines)

    def get(self, name: str) -> str | None:
        return next((value for field, value in self._lines if field == name), None)

    def has(self, names: Iterable[str]) -> bool:
        return any(field in set(names) for field, _ in self._lines)

    def items(self) -> list[tuple[str, str]]:
        return self._lines


def headers(**fields: str) -> Lines:
    return Lines(*((name.replace("_", "-"), value) for name, value in fields.items()))


def http_date(seconds: float) -> str:
    return formatdate(NOW + seconds, usegmt=True)


@pytest.mark.parametrize(
    ("value", "date", "seconds"),
    [
        ("90", None, 90.0),
        (" 90 ", None, 90.0),
        ("0", None, None),
        ("9" * 5000, None, MAX_PAUSE_SECONDS),
        ("1e9", None, None),
        ("-1", None, None),
        ("1.5", None, None),
        ("²", None, None),
        ("", None, None),
        ("soon", None, None),
        (http_date(120), None, 120.0),
        (http_date(120), http_date(30), 90.0),
        (http_date(120), http_date(-7200), 7320.0),  # the upstream's clock is two hours slow
        (http_date(120), "Thu, 01 Jan 1970 00:00:00 GMT", 120.0),
        (http_date(120), "yesterday", 120.0),
        (http_date(10**7), None, MAX_PAUSE_SECONDS),
        (http_date(-120), DATE, None),
        ("Fri, 31 Dec 99999 23:59:59 GMT", None, None),
        ("Fri, 32 Dec 2025 23:59:59 GMT", None, None),
    ],
)
def test_retry_after_is_read_in_both_its_forms(value: str, date: str | None, seconds: float | None) -> None:
    sent = headers(retry_after=value, **({"date": date} if date else {}))
    assert requested_pause(429, sent, NOW) == requested_pause(503, sent, NOW) == seconds


def test_a_date_without_a_time_zone_is_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        assert requested_pause(429, headers(retry_after=http_date(120).replace("GMT", "-0000")), NOW) == 120.0
    time.tzset()


@pytest.mark.parametrize("status", [200, 202, 301, 404, 408, 500, 502, 504])
def test_retry_after_of_another_status_asks_nobody_to_wait(status: int) -> None:
    assert requested_pause(status, headers(retry_after="90"), NOW) is None


def test_retry_after_wins_over_the_limits() -> None:
    limits = {"ratelimit": '"a";r=0;t=30', "x_ratelimit_remaining": "0", "x_ratelimit_reset": "60"}
    assert requested_pause(429, headers(retry_after="5", **limits), NOW) == 5.0
    assert requested_pause(429, headers(retry_after="0", **limits), NOW) is None
    assert requested_pause(429, headers(retry_after="garbage", **limits), NOW) == 60.0


@pytest.mark.parametrize(
    ("lines", "seconds"),
    [
        (['"default";r=0;t=30'], 30.0),
        (['"default"; r=0; t=30'], 30.0),
        (['"default";t=30;pk=:cHsdsRa894==:;r=0'], 30.0),
        (['"default";r=50;t=30'], None),
        (['"burst";r=0;t=3, "daily";r=7;t=3600'], 3.0),
        (['"burst";r=0;t=3,\t"daily";r=0;t=3600'], 3600.0),
        (['"burst";r=0;t=3', '"daily";r=0;t=3600'], 3600.0),
        (['"a, \\"b";r=0;t=30'], 30.0),
        (["default;r=0;t=30"], 30.0),
        (["limit=100, remaining=0, reset=20"], 20.0),
        (["limit=100, remaining=1, reset=20"], None),
        (['"default";r=0'], None),
        (['"default";r=0;t=999999999'], MAX_PAUSE_SECONDS),
        (['"default";r=0;t=0'], None),
        # Malformed: the whole field says nothing.
        (['"default";r=0;t=-5'], None),
        (['"default";r=0;t="30"'], None),
        (['"default";r=0;t=9999999999999999'], None),
        (['"default";r=0;t=30,'], None),
        (['"default";r=0;t=30 "other"'], None),
        (['"default;r=0;t=30'], None),
        (['"default";R=0;t=30'], None),
        (['"default" ;r=0;t=30'], None),
        (['"burst";r=0;t=3, "daily";;'], None),
        ([""], None),
        (["é"], None),
        (['"' + "a" * 50_000], None),
    ],
)
@pytest.mark.parametrize("status", [200, 429])
def test_a_spent_policy_of_the_ratelimit_field_asks_for_a_pause(
    lines: list[str], seconds: float | None, status: int
) -> None:
    assert requested_pause(status, Lines(*(("ratelimit", line) for line in lines)), NOW) == seconds


def test_a_spent_policy_without_a_reset_lasts_as_long_as_its_window() -> None:
    policy = '"burst";q=100;w=60, "daily";q=1000;w=86400'
    assert requested_pause(200, headers(ratelimit='"burst";r=0', ratelimit_policy=policy), NOW) == 60.0
    assert requested_pause(200, headers(ratelimit='"other";r=0', ratelimit_policy=policy), NOW) is None
    assert requested_pause(200, headers(ratelimit='"burst";r=0', ratelimit_policy=policy + ";"), NOW) is None


@pytest.mark.parametrize("prefix", ["", "x-", "x-rate"])
@pytest.mark.parametrize(
    ("remaining", "reset", "date", "seconds"),
    [
        ("0", "30", None, 30.0),
        ("0.0", "30.5", None, 30.5),
        ("0.5", "30", None, 30.0),
        ("1", "30", None, None),
        ("-1", "30", None, None),
        ("0", f"{NOW + 30:.0f}", None, 30.0),
        ("0", f"{(NOW + 30) * 1000:.0f}", None, 30.0),
        ("0", f"{NOW + 30:.0f}", http_date(20), 10.0),
        ("0", f"{NOW + 30:.0f}", http_date(10**8), 30.0),
        ("0", f"{NOW - 30:.0f}", DATE, None),
        ("0", f"{NOW + 10**6:.0f}", None, MAX_PAUSE_SECONDS),
        ("0", "1e9", None, None),
        ("0", "-1", None, None),
        ("0", "", None, None),
        ("0", "9" * 5000, None, None),
        ("none", "30", None, None),
    ],
)
def test_a_spent_limit_asks_for_a_pause_until_its_reset_however_that_is_counted(
    prefix: str, remaining: str, reset: str, date: str | None, seconds: float | None
) -> None:
    name = f"{prefix}-limit" if prefix == "x-rate" else f"{prefix}ratelimit"
    lines = [(f"{name}-remaining", remaining), (f"{name}-reset", reset)]
    sent = Lines(*lines, *([("date", date)] if date else []))
    assert requested_pause(200, sent, NOW) == requested_pause(429, sent, NOW) == seconds


def test_the_longest_of_several_spent_limits_counts() -> None:
    sent = headers(ratelimit='"a";r=0;t=30', ratelimit_remaining="0", ratelimit_reset="40", x_ratelimit_reset="50")
    assert requested_pause(200, sent, NOW) == 40.0
    assert requested_pause(429, sent, NOW) == 50.0  # which does not say what remains, but the status does


def test_mediawiki_reports_its_lag_with_status_200() -> None:
    lagging = headers(mediawiki_api_error="maxlag", retry_after="7", x_database_lag="12")
    assert is_throttled(200, lagging)
    assert requested_pause(200, lagging, NOW) == 7.0
    assert requested_pause(200, headers(mediawiki_api_error="maxlag", x_database_lag="12.5"), NOW) == 12.5
    assert requested_pause(200, headers(mediawiki_api_error="maxlag", x_database_lag="0"), NOW) == 5.0
    assert requested_pause(200, headers(mediawiki_api_error="maxlag"), NOW) == 5.0


@pytest.mark.parametrize(
    ("status", "lines", "expected"),
    [
        (429, headers(), True),
        (200, headers(), False),
        (200, headers(mediawiki_api_error="badtoken, ratelimited"), True),
        (200, headers(mediawiki_api_error="missingtitle"), False),
        (200, headers(x_ratelimit_remaining="0", x_ratelimit_reset="9"), False),
        (403, headers(), False),
        (403, headers(x_ratelimit_remaining="59"), False),
        (403, headers(x_ratelimit_remaining="0"), True),
        (403, headers(retry_after="60"), True),
        (503, headers(retry_after="60"), False),
    ],
)
def test_only_a_response_that_refuses_for_too_many_requests_is_throttled(
    status: int, lines: Lines, expected: bool
) -> None:
    assert is_throttled(status, lines) is expected


FIELDS = st.sampled_from(
    [
        "retry-after",
        "date",
        "ratelimit",
        "ratelimit-policy",
        "ratelimit-remaining",
        "ratelimit-reset",
        "x-ratelimit-remaining",
        "x-ratelimit-reset",
        "x-database-lag",
        "mediawiki-api-error",
    ]
)
PIECES = st.sampled_from(
    ['"p"', ";r=0", ";t=", "=", ",", " ", "\t", "0", "30", "-", ".", "1e9", "maxlag", DATE, "\\", ":"]
)
VALUES = st.text() | st.lists(PIECES).map("".join) | st.integers().map(str) | st.floats().map(str)


@given(
    st.sampled_from([200, 304, 403, 404, 429, 500, 503]),
    st.lists(st.tuples(FIELDS, VALUES)),
    st.floats(0, 4e9),
)
@example(429, [("retry-after", "Mon, 01 Jan 0001 00:00:00 +2359")], NOW)
def test_no_header_raises_and_every_pause_is_within_its_bounds(
    status: int, lines: list[tuple[str, str]], now: float
) -> None:
    is_throttled(status, Lines(*lines))
    sent = requested_pause(status, Lines(*lines), now)
    assert sent is None or 0 < sent <= MAX_PAUSE_SECONDS
