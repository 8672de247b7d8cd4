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

    def joined(self, name: str) -> str | None:
        return ", ".join(value for field, value in self._lines if field == name) or None

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
        ("1.5", None, 2.0),
        ("3.5", None, 4.0),
        ("3.0", None, 3.0),
        ("21601", None, MAX_PAUSE_SECONDS),
        ("1000000000", None, MAX_PAUSE_SECONDS),
        ("-3.5", None, None),
        ("30s", None, 30.0),
        ("1m30s", None, 90.0),
        ("1.5h", None, 5400.0),
        ("PT1M", None, 60.0),
        ("P1DT2H", None, MAX_PAUSE_SECONDS),
        ("120, 120", None, 120.0),
        (f"{NOW + 30:.0f}", None, 30.0),
        (f"{NOW - 30:.0f}", None, None),
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
        # The three forms of an HTTP-date (RFC 9110, 5.6.7), and ISO 8601.
        ("Thu, 09 Oct 2025 08:55:20 GMT", None, 120.0),
        ("Thursday, 09-Oct-25 08:55:20 GMT", None, 120.0),
        ("Thu Oct  9 08:55:20 2025", None, 120.0),
        ("2025-10-09T08:55:20Z", None, 120.0),
        ("2025-10-09T10:55:20.5+02:00", None, 121.0),
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


@pytest.mark.parametrize("status", [408, 413, 425, 429, 500, 502, 503, 504, 529])
def test_retry_after_holds_with_every_status_that_another_attempt_may_mend(status: int) -> None:
    assert requested_pause(status, headers(retry_after="90"), NOW) == 90.0
    assert requested_pause(status, headers(retry_after="90", retry_after_ms="1500"), NOW) == 1.5
    assert requested_pause(status, headers(x_ms_retry_after_ms="1500"), NOW) == 1.5


@pytest.mark.parametrize("status", [200, 202, 301, 401, 404])
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
        ("0", "9" * 5000, None, MAX_PAUSE_SECONDS),
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


@pytest.mark.parametrize(
    ("reset", "seconds"),
    [
        # Seconds, as long as anybody would wait for them; what is more is meant in milliseconds.
        ("1", 1.0),
        ("0.4", 0.4),
        ("3600", 3600.0),
        ("20000", 20.0),
        ("30500", 30.5),
        ("60000", 60.0),
        ("3600000", 3600.0),
        ("99999999", MAX_PAUSE_SECONDS),
        # Since 1970, in seconds, milliseconds, microseconds and nanoseconds.
        (f"{NOW + 30:.3f}", 30.0),
        (f"{NOW + 30:.0f}", 30.0),
        (f"{NOW + 30:.0f}000", 30.0),
        (f"{NOW + 30:.0f}000000", 30.0),
        (f"{NOW + 30:.0f}000000000", 30.0),
        (f"{NOW - 30:.0f}000", None),
        # Durations (OpenAI) and dates (Atlassian, Anthropic).
        ("30s", 30.0),
        ("1m30s", 90.0),
        ("6m0s", 360.0),
        ("1h2m3.5s", 3723.5),
        ("1d", MAX_PAUSE_SECONDS),
        ("250ms", 0.25),
        ("0s", None),
        (http_date(30), 30.0),
        ("2025-10-09T08:53:50Z", 30.0),
        ("2025-10-09 08:53:50", 30.0),
        # Nothing that can be followed.
        ("30 apples", None),
        ("m", None),
        ("-60000", None),
        ("2025-99-99T00:00:00Z", None),
    ],
)
def test_a_reset_is_read_in_the_form_that_is_plausible(reset: str, seconds: float | None) -> None:
    sent = headers(x_ratelimit_remaining="0", x_ratelimit_reset=reset)
    found = [requested_pause(status, sent, NOW) for status in (200, 429, 403, 503)]
    assert found == [None if seconds is None else pytest.approx(seconds)] * 4


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        ({"x_ratelimit_limit": "100, 100;w=86400"}, 21_600.0),  # Envoy, with a daily limit: 60,000 seconds it is
        ({"ratelimit_policy": "100;w=60"}, 60.0),
        ({"ratelimit_limit": "100, 100;w=3600"}, 60.0),
    ],
)
def test_a_reset_lies_within_the_window_of_its_limit(fields: dict[str, str], seconds: float) -> None:
    assert requested_pause(429, headers(ratelimit_remaining="0", ratelimit_reset="60000", **fields), NOW) == seconds


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        ({"x_ratelimit_remaining_requests": "0", "x_ratelimit_reset_requests": "1m30s"}, 90.0),
        ({"x_ratelimit_remaining_requests": "0", "x_ratelimit_reset_requests": "2s",
          "x_ratelimit_remaining_tokens": "9", "x_ratelimit_reset_tokens": "6m0s"}, 2.0),
        ({"x_ratelimit_requests_remaining": "0", "x_ratelimit_requests_reset": "90"}, 90.0),
        ({"anthropic_ratelimit_requests_remaining": "0",
          "anthropic_ratelimit_requests_reset": "2025-10-09T08:53:50Z"}, 30.0),
        ({"x_ratelimit_remaining": "0", "x_ratelimit_reset_after": "0.75"}, 0.75),
        ({"x_ratelimit_reset_ms": "1500"}, 1.5),
        ({"x_rate_limit_reset": "7"}, 7.0),
    ],
)  # fmt: skip
def test_a_refusal_is_searched_for_every_name_of_a_limit(fields: dict[str, str], seconds: float) -> None:
    assert requested_pause(429, headers(**fields), NOW) == seconds
    assert requested_pause(404, headers(x_ratelimit_reset_requests="1m30s"), NOW) is None


def test_a_long_name_of_a_header_costs_little() -> None:
    """One of 64 KB, which engines take, cost a fifth of a second, and a response may have six."""
    before = time.process_time()
    assert requested_pause(403, Lines(*[("ratelimit" * 7000, "1")] * 6), NOW) is None
    assert time.process_time() - before < 0.5


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
        (420, headers(), True),
        (430, headers(), True),
        (200, headers(), False),
        (200, headers(mediawiki_api_error="badtoken, ratelimited"), True),
        (200, headers(mediawiki_api_error="missingtitle"), False),
        (200, headers(x_ratelimit_remaining="0", x_ratelimit_reset="9"), False),
        (403, headers(), False),
        (403, headers(x_ratelimit_remaining="59"), False),
        (403, headers(x_ratelimit_remaining="0"), True),
        (403, headers(x_ratelimit_remaining_requests="0"), True),
        (403, headers(x_ratelimit_remaining_requests="1"), False),
        (403, headers(ratelimit='"default";r=0;t=2'), True),
        (403, headers(ratelimit="limit=10, remaining=0, reset=5"), True),
        (403, headers(ratelimit='"default";r=7;t=2'), False),
        (403, headers(retry_after="60"), True),
        (503, headers(retry_after="60"), False),
    ],
)
def test_only_a_response_that_refuses_for_too_many_requests_is_throttled(
    status: int, lines: Lines, expected: bool
) -> None:
    assert is_throttled(status, lines) is expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"message":"You have exceeded a secondary rate limit. Please wait a few minutes."}', True),  # GitHub
        (b'{"message":"API rate limit exceeded for 192.0.2.1. (But here is the good news: ...)"}', True),
        (b'{"message":"You have triggered an abuse detection mechanism. Please wait."}', True),
        (b'{"error":{"errors":[{"domain":"usageLimits","reason":"rateLimitExceeded"}],"code":403}}', True),  # Google
        (b'{"error":{"errors":[{"reason":"userRateLimitExceeded"}]}}', True),
        (b'{"error":{"errors":[{"reason":"quotaExceeded"}]}}', True),
        (b'{"error":{"errors":[{"reason":"dailyLimitExceeded"}]}}', True),
        (b'{"error":{"message":"(#4) Application request limit reached","code":4}}', True),  # Facebook
        (b'{"error_id":502,"error_name":"throttle_violation","error_message":"too many requests"}', True),
        (b"<h1>Developer Over Qps</h1>", True),  # Mashery
        (b"<title>Access denied | you are being rate limited</title>", True),  # Cloudflare
        (b"<Error><Code>RequestThrottled</Code></Error>", True),
        (b'{"error":{"errors":[{"reason":"dailyLimitExceededUnreg"}]}}', False),  # it wants a key
        (b'{"error":{"errors":[{"reason":"accessNotConfigured"}]}}', False),
        (b'{"message":"Bad credentials"}', False),
        (b'{"message":"Resource not accessible by integration", "rate": 5, "limit": 6}', False),
        (b"<html><head><title>403 Forbidden</title></head></html>", False),
        (b"", False),
        (b"\xff\xfe\x00", False),
        (b" " * 5000 + b"rate limit exceeded", False),  # too far down to be the message
    ],
)
def test_a_403_whose_body_speaks_of_a_limit_is_throttled(body: bytes, expected: bool) -> None:
    assert is_throttled(403, headers(), body) is is_throttled(400, headers(), body) is expected
    assert not is_throttled(401, headers(), body)
    assert not is_throttled(200, headers(), body)


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
        "x-ratelimit-reset-requests",
        "retry-after-ms",
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
