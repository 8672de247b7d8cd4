from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.errors import FetchError
from coordinator.model import Outcome
from coordinator.settings import RetrySettings
from crawler.fetch.retry import LONGEST_PAUSE, Again, End, Tries, after_error, after_status, pause_asked

SETTINGS = RetrySettings(attempts=3, backoff=0.5, max_delay=60.0)
FIRST, LAST = Tries(failed=1), Tries(failed=3)
FINAL = {
    200: End(Outcome.STORED),
    204: End(Outcome.STORED),
    206: End(Outcome.STORED),
    301: End(Outcome.REFUSED, "redirect 301"),
    304: End(Outcome.UNCHANGED),
    400: End(Outcome.REFUSED, "status 400"),
    401: End(Outcome.REFUSED, "status 401"),
    403: End(Outcome.REFUSED, "status 403"),
    404: End(Outcome.GONE, "status 404"),
    410: End(Outcome.GONE, "status 410"),
    418: End(Outcome.REFUSED, "status 418"),
    451: End(Outcome.REFUSED, "status 451"),
}
PASSING = (408, 429, 500, 502, 503, 504, 520)
SENT_AT = "Thu, 01 Jan 2026 00:00:00 GMT"


@pytest.mark.parametrize("tries", [FIRST, LAST], ids=["attempts left", "none left"])
@pytest.mark.parametrize("status", FINAL)
def test_a_final_status_decides_at_once(status: int, tries: Tries) -> None:
    assert after_status(status, "7", SENT_AT, tries, SETTINGS, 0.5) == FINAL[status]


@pytest.mark.parametrize("status", PASSING)
def test_a_passing_status_is_tried_again_while_attempts_are_left(status: int) -> None:
    assert isinstance(after_status(status, None, None, Tries(failed=2), SETTINGS, 0.5), Again)


@pytest.mark.parametrize("status", PASSING)
def test_a_passing_status_fails_the_key_when_no_attempts_are_left(status: int) -> None:
    assert after_status(status, "7", None, LAST, SETTINGS, 0.5) == End(
        Outcome.FAILED, f"status {status} after 3 attempts"
    )


def test_the_reason_counts_throttled_tries_too() -> None:
    end = after_status(500, None, None, Tries(failed=3, throttled=4), SETTINGS, 0.5)
    assert end == End(Outcome.FAILED, "status 500 after 7 attempts")


@pytest.mark.parametrize(
    ("retry_after", "date", "seconds"),
    [
        ("0", None, 0.0),
        ("7", None, 7.0),
        (" 120 ", None, 120.0),
        ("000000000012", None, 12.0),
        ("21600", None, LONGEST_PAUSE),
        ("21601", None, LONGEST_PAUSE),
        ("9" * 5000, None, LONGEST_PAUSE),
        ("Thu, 01 Jan 2026 00:01:30 GMT", SENT_AT, 90.0),
        ("Thursday, 01-Jan-26 00:01:30 GMT", SENT_AT, 90.0),
        ("Wed, 31 Dec 2025 23:59:00 GMT", SENT_AT, 0.0),
        ("Fri, 01 Jan 2027 00:00:00 GMT", SENT_AT, LONGEST_PAUSE),
        ("Thu, 01 Jan 1970 00:00:00 GMT", None, 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", None, LONGEST_PAUSE),
        (None, SENT_AT, None),
        ("", SENT_AT, None),
        ("-1", SENT_AT, None),
        ("1e9", SENT_AT, None),
        ("1.5", SENT_AT, None),
        ("²", SENT_AT, None),
        ("inf", SENT_AT, None),
        ("soon", SENT_AT, None),
        ("Thu, 32 Jan 2026 00:00:00 GMT", SENT_AT, None),
        ("Thu, 01 Jan 2026 00:01:30 GMT", "yesterday", None),
    ],
)
def test_retry_after_is_read_in_seconds_or_as_a_date_against_the_responses_own(
    retry_after: str | None, date: str | None, seconds: float | None
) -> None:
    assert pause_asked(retry_after, date) == seconds


@pytest.mark.parametrize("status", [429, 503])
def test_a_pause_that_the_upstream_asks_for_stops_the_fleet(status: int) -> None:
    assert after_status(status, "90", None, FIRST, SETTINGS, 0.5) == Again(delay=0.0, pause=90.0)


@pytest.mark.parametrize("status", [408, 500, 502, 504, 520])
def test_retry_after_of_another_status_is_not_obeyed(status: int) -> None:
    decision = after_status(status, "90", None, FIRST, SETTINGS, 0.5)
    assert decision == Again(delay=0.25, pause=None)


@pytest.mark.parametrize("retry_after", [None, "0", "garbage"])
def test_a_429_without_a_time_pauses_the_fleet_by_its_own_backoff(retry_after: str | None) -> None:
    pauses = [after_status(429, retry_after, None, Tries(throttled=tried), SETTINGS, 0.0) for tried in range(1, 10)]
    assert pauses == [Again(0.0, pause) for pause in (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0)]


def test_a_503_that_asks_to_come_back_at_once_is_still_backed_off_from() -> None:
    assert after_status(503, "0", None, FIRST, SETTINGS, 0.5) == Again(delay=0.25, pause=None)


def test_429_hardly_counts_against_the_attempts_but_not_for_ever() -> None:
    assert isinstance(after_status(429, "1", None, Tries(throttled=29), SETTINGS, 0.5), Again)
    assert isinstance(after_status(500, None, None, Tries(failed=2, throttled=29), SETTINGS, 0.5), Again)
    assert after_status(429, "1", None, Tries(throttled=30), SETTINGS, 0.5) == End(
        Outcome.FAILED, "status 429 after 30 attempts"
    )


@given(
    tried=st.integers(1, 100),
    backoff=st.floats(0, 3600),
    max_delay=st.floats(0, 86_400),
    jitter=st.floats(0, 1, exclude_max=True),
)
def test_a_delay_lies_within_the_bounds_for_every_jitter(
    tried: int, backoff: float, max_delay: float, jitter: float
) -> None:
    settings = RetrySettings(attempts=101, backoff=backoff, max_delay=max_delay)
    decision = after_status(500, None, None, Tries(failed=tried), settings, jitter)
    assert isinstance(decision, Again)
    assert 0 <= decision.delay <= min(max_delay, backoff * 2 ** (tried - 1))


def test_delays_double_from_try_to_try() -> None:
    delays = []
    for tried in range(1, 11):
        decision = after_status(
            500, None, None, Tries(failed=tried), RetrySettings(attempts=99, backoff=0.5, max_delay=60), 0.5
        )
        assert isinstance(decision, Again)
        delays.append(decision.delay)
    assert delays == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


@pytest.mark.parametrize("kind", ["url", "address"])
def test_a_request_that_must_not_be_sent_is_refused(kind: str) -> None:
    assert after_error(FetchError(kind, "why"), FIRST, SETTINGS, 0.5) == End(Outcome.REFUSED, f"{kind}: why")


@pytest.mark.parametrize("kind", ["too-large", "decode"])
def test_a_body_that_cannot_be_taken_fails_at_once(kind: str) -> None:
    assert after_error(FetchError(kind, "why"), FIRST, SETTINGS, 0.5) == End(Outcome.FAILED, f"{kind}: why")


@pytest.mark.parametrize("kind", ["timeout", "reset", "connect", "dns", "tls", "protocol"])
def test_a_connection_that_fails_is_tried_again_until_the_attempts_are_used_up(kind: str) -> None:
    error = FetchError(kind, "why")
    assert after_error(error, FIRST, SETTINGS, 0.5) == Again(delay=0.25)
    assert after_error(error, LAST, SETTINGS, 0.5) == End(Outcome.FAILED, f"{kind}: why after 3 attempts")
