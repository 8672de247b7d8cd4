"""What follows an attempt: a table of statuses and errors, and bounds on delays and on the history."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.errors import FetchError
from coordinator.model import NO_ATTEMPTS, Attempts, Outcome
from coordinator.queue.sharding import digest
from coordinator.queue.wire import Deferral, decode_deferral, encode_deferral
from coordinator.url import parse
from crawler.fetch.ratelimit_headers import MAX_PAUSE_SECONDS
from crawler.fetch.retry import (
    MAX_HISTORY_LINES,
    MAX_RESULT_CHARACTERS,
    Decision,
    End,
    Follow,
    Retry,
    add_attempt,
    after_error,
    after_parser,
    after_response,
    is_transient,
)
from crawler.job.models import RetrySettings
from crawler.model import Again
from tests.servers.scripted import headers

SETTINGS = RetrySettings(attempts=3, backoff=0.5, max_delay=60.0)
NOON = 1_767_268_800.0  # 2026-01-01 12:00:00 UTC
HERE = parse("https://upstream.example/a")
LAST = Attempts(2, 0, ("11:59:00 timeout: read", "11:59:10 status 502"))


def after(
    status: int,
    attempts: Attempts = NO_ATTEMPTS,
    *,
    settings: RetrySettings = SETTINGS,
    jitter: float = 0.5,
    hops: int = 0,
    **sent: str,
) -> Decision:
    return after_response(status, headers(**sent), HERE, attempts, settings, hops, now=NOON, jitter=jitter)


def after_failure(kind: str, attempts: Attempts = NO_ATTEMPTS, settings: RetrySettings = SETTINGS) -> End | Retry:
    return after_error(FetchError(kind, "why"), attempts, settings, now=NOON, jitter=0.5)


# -- an attempt that decides the outcome


FINAL = {
    200: End(Outcome.STORED),
    201: End(Outcome.STORED),
    203: End(Outcome.STORED),
    204: End(Outcome.STORED),
    205: End(Outcome.STORED),
    207: End(Outcome.STORED),
    226: End(Outcome.STORED),
    299: End(Outcome.STORED),
    300: End(Outcome.REFUSED, "redirect 300"),
    304: End(Outcome.UNCHANGED),
    305: End(Outcome.REFUSED, "redirect 305"),
    306: End(Outcome.REFUSED, "redirect 306"),
    399: End(Outcome.REFUSED, "redirect 399"),
    400: End(Outcome.REFUSED, "status 400"),
    401: End(Outcome.REFUSED, "status 401"),
    402: End(Outcome.REFUSED, "status 402"),
    403: End(Outcome.REFUSED, "status 403"),
    404: End(Outcome.GONE, "status 404"),
    407: End(Outcome.REFUSED, "status 407"),
    410: End(Outcome.GONE, "status 410"),
    413: End(Outcome.REFUSED, "status 413"),
    418: End(Outcome.REFUSED, "status 418"),
    451: End(Outcome.REFUSED, "status 451"),
    499: End(Outcome.REFUSED, "status 499"),
    501: End(Outcome.REFUSED, "status 501"),
    505: End(Outcome.REFUSED, "status 505"),
}
# Statuses that another attempt may mend: the upstream is in trouble, or the status has no meaning (RFC 9110, 15).
TRANSIENT = (
    *(101, 199, 408, 421, 425, 498),
    *(500, 502, 503, 504, 507, 508, 509, 511, 520, 521, 522, 523, 524, 525, 529, 530, 599),
    *(600, 999),
)


@pytest.mark.parametrize("attempts", [NO_ATTEMPTS, LAST], ids=["the first attempt", "the last attempt"])
@pytest.mark.parametrize("status", FINAL)
def test_a_final_status_decides_at_once(status: int, attempts: Attempts) -> None:
    assert after(status, attempts) == Decision(FINAL[status])


@pytest.mark.parametrize("kind", ["url", "address"])
def test_a_request_that_must_not_be_sent_is_refused(kind: str) -> None:
    assert after_failure(kind) == End(Outcome.REFUSED, f"{kind}: why")


@pytest.mark.parametrize("kind", ["too-large", "decode"])
def test_a_body_that_cannot_be_read_fails_at_once(kind: str) -> None:
    assert after_failure(kind) == End(Outcome.FAILED, f"{kind}: why")


# -- an attempt that another one may mend


def test_a_status_is_final_or_transient() -> None:
    assert all(map(is_transient, TRANSIENT))
    assert not any(map(is_transient, FINAL))


@pytest.mark.parametrize("status", TRANSIENT)
def test_a_transient_status_is_retried_while_attempts_are_left(status: int) -> None:
    assert after(status) == Decision(Retry(Attempts(1, 0, (f"12:00:00 status {status}",)), 0.25))
    assert after(status, LAST) == Decision(
        End(
            Outcome.FAILED,
            f"status {status} after 3 attempts: 11:59:00 timeout: read; "
            + ("11:59:10 status 502 \u00d72" if status == 502 else f"11:59:10 status 502; 12:00:00 status {status}"),
        )
    )


@pytest.mark.parametrize(
    ("status", "result"), [(202, "status 202: not ready yet"), (206, "status 206: only a part of the body")]
)
def test_a_success_without_the_whole_body_is_requested_again_and_fails_in_the_end(status: int, result: str) -> None:
    assert after(status) == Decision(Retry(Attempts(1, 0, (f"12:00:00 {result}",)), 0.25))
    end = after(status, LAST).step
    assert isinstance(end, End)
    assert end.outcome is Outcome.FAILED
    assert end.reason is not None
    assert end.reason.startswith(f"{result} after 3 attempts: ")


@pytest.mark.parametrize("kind", ["timeout", "reset", "connect", "dns", "tls", "protocol"])
def test_a_connection_that_fails_is_retried_while_attempts_are_left(kind: str) -> None:
    assert after_failure(kind) == Retry(Attempts(1, 0, (f"12:00:00 {kind}: why",)), 0.25)
    assert after_failure(kind, LAST) == End(
        Outcome.FAILED,
        f"{kind}: why after 3 attempts: 11:59:00 timeout: read; 11:59:10 status 502; 12:00:00 {kind}: why",
    )


def test_a_job_with_one_attempt_has_no_retry() -> None:
    once = RetrySettings(attempts=1)
    assert isinstance(after(500, settings=once).step, End)
    assert isinstance(after_failure("reset", settings=once), End)


# -- what the upstream asks for


@pytest.mark.parametrize("status", [420, 429, 430, 403])
def test_a_throttled_request_waits_for_the_fleets_pause_and_counts_apart(status: int) -> None:
    attempts = Attempts(0, 1, (f"12:00:00 status {status}",))
    assert after(status, retry_after="90") == Decision(Retry(attempts, 0.0), pause=90.0)


@pytest.mark.parametrize("status", [400, 403])
def test_a_refusal_whose_body_speaks_of_a_limit_is_a_pause(status: int) -> None:
    body = b'{"message": "You have exceeded a secondary rate limit. Please wait a few minutes before you try again."}'
    decision = after_response(status, headers(), HERE, NO_ATTEMPTS, SETTINGS, body=body, now=NOON, jitter=0.5)
    assert decision == Decision(Retry(Attempts(0, 1, (f"12:00:00 status {status}",)), 0.0), pause=0.5)
    assert decision.throttled


@pytest.mark.parametrize("status", [408, 413, 500, 502, 503, 504, 520, 529])
def test_a_transient_status_that_names_a_time_pauses_the_fleet_and_counts_as_an_attempt(status: int) -> None:
    attempts = Attempts(1, 0, (f"12:00:00 status {status}",))
    assert after(status, retry_after="90") == Decision(Retry(attempts, 0.0), pause=90.0)
    last = after(status, LAST, retry_after="90")
    assert isinstance(last.step, End)
    assert last.step.outcome is Outcome.FAILED
    assert last.pause == 90.0, "the others should wait all the same"


def test_what_is_not_ready_yet_waits_alone_for_as_long_as_the_upstream_says() -> None:
    decision = after(202, retry_after="90")
    assert decision == Decision(Retry(Attempts(1, 0, ("12:00:00 status 202: not ready yet",)), 90.0))
    assert after(202, retry_after="-9").step == Retry(Attempts(1, 0, ("12:00:00 status 202: not ready yet",)), 0.25)


def test_a_redirect_that_names_a_time_is_followed_after_it_but_within_max_delay() -> None:
    assert after(302, hops=1, location="/b", retry_after="3.5") == Decision(
        Follow(parse("https://upstream.example/b"), 4.0)
    )
    assert after(302, hops=1, location="/b", retry_after="90") == Decision(
        Follow(parse("https://upstream.example/b"), 60.0)
    )


@pytest.mark.parametrize("retry_after", [None, "0", "garbage"])
def test_a_429_without_a_time_pauses_the_fleet_by_its_own_backoff(retry_after: str | None) -> None:
    sent = {"retry_after": retry_after} if retry_after else {}
    decisions = [after(429, Attempts(0, attempts_before), jitter=0.0, **sent) for attempts_before in range(9)]
    assert [decision.pause for decision in decisions] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    assert {decision.step.delay for decision in decisions if isinstance(decision.step, Retry)} == {0.0}


def test_a_good_response_that_uses_up_a_limit_pauses_the_fleet_and_is_stored() -> None:
    decision = after(200, x_ratelimit_remaining="0", x_ratelimit_reset="30")
    assert decision == Decision(End(Outcome.STORED), pause=30.0)


def test_429_hardly_counts_against_the_attempts_but_not_for_ever() -> None:
    assert isinstance(after(429, Attempts(2, 28)).step, Retry)
    assert isinstance(after(500, Attempts(1, 29)).step, Retry)
    end = after(429, Attempts(0, 29, ("11:00:00 status 429 \u00d729",)), retry_after="5")
    assert end == Decision(End(Outcome.FAILED, "status 429 after 30 attempts: 11:00:00 status 429 \u00d730"), pause=5.0)


# -- delays


@given(
    attempts_before=st.integers(0, 98),
    backoff=st.floats(0, 3600),
    max_delay=st.floats(0, 86_400),
    jitter=st.floats(0, 1, exclude_max=True),
)
def test_a_delay_lies_within_the_bounds_for_every_jitter(
    attempts_before: int, backoff: float, max_delay: float, jitter: float
) -> None:
    settings = RetrySettings(attempts=100, backoff=backoff, max_delay=max_delay)
    step = after(500, Attempts(attempts_before), settings=settings, jitter=jitter).step
    assert isinstance(step, Retry)
    assert 0 <= step.delay <= min(max_delay, backoff * 2**attempts_before)


def test_delays_double_from_attempt_to_attempt() -> None:
    settings = RetrySettings(attempts=99, backoff=0.5, max_delay=60)
    steps = [after(500, Attempts(attempts_before), settings=settings).step for attempts_before in range(10)]
    delays = [step.delay for step in steps if isinstance(step, Retry)]
    assert delays == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


# -- the history


def test_attempts_in_a_row_with_the_same_result_share_a_line() -> None:
    attempts = NO_ATTEMPTS
    results = ["status 500", "status 500", "status 500", "reset: peer", "status 500", "status 429", "status 429"]
    for second, result in enumerate(results):
        attempts = add_attempt(attempts, result, NOON + second, throttled=result == "status 429")
    assert attempts == Attempts(
        5,
        2,
        ("12:00:00 status 500 \u00d73", "12:00:03 reset: peer", "12:00:04 status 500", "12:00:05 status 429 \u00d72"),
    )


def test_what_only_looks_like_a_count_is_not_taken_for_one() -> None:
    assert add_attempt(add_attempt(NO_ATTEMPTS, "odd \u00d7x", NOON), "odd", NOON).history == (
        "12:00:00 odd \u00d7x",
        "12:00:00 odd",
    )
    assert add_attempt(Attempts(1, 0, ("12:00:00 \u00d7",)), "\u00d7", NOON).history == ("12:00:00 \u00d7 \u00d72",)


@given(st.lists(st.sampled_from(["status 500", "status 429", "reset: peer", "x" * 400]), max_size=200))
def test_the_history_is_bounded_and_every_attempt_is_counted(results: list[str]) -> None:
    attempts = NO_ATTEMPTS
    for result in results:
        attempts = add_attempt(attempts, result, NOON, throttled=result == "status 429")
    assert attempts.total == len(results)
    assert attempts.throttled == results.count("status 429")
    assert len(attempts.history) <= MAX_HISTORY_LINES
    assert all(len(line) <= MAX_RESULT_CHARACTERS + 15 for line in attempts.history)
    if results:
        assert attempts.history[0].startswith(f"12:00:00 {results[0][:MAX_RESULT_CHARACTERS]}")
        assert f" {results[-1][:MAX_RESULT_CHARACTERS]}" in attempts.history[-1]


def test_of_a_long_history_the_first_line_and_the_latest_are_kept() -> None:
    attempts = NO_ATTEMPTS
    for number in range(100):
        attempts = add_attempt(attempts, f"status {500 + number}", NOON)
    assert attempts.history[:3] == ("12:00:00 status 500", "…", f"12:00:00 status {600 - MAX_HISTORY_LINES + 2}")
    assert attempts.history[-1] == "12:00:00 status 599"


# -- a parser that wants another response


def after_parsing(
    again: Again, attempts: Attempts = NO_ATTEMPTS, *, at: float = NOON, most: float = 3600, **sent: str
) -> End | Retry:
    return after_parser(again, headers(**sent), attempts, SETTINGS, most, now=at, jitter=0.5)


@pytest.mark.parametrize(
    ("again", "sent", "delay"),
    [
        (Again("busy"), {}, 0.25),
        (Again("busy"), {"retry_after": "7"}, 7.0),
        (Again("busy", after=5), {"retry_after": "7"}, 5.0),
        (Again("busy", after=1e9), {}, MAX_PAUSE_SECONDS),
    ],
)
def test_a_retry_of_the_parser_is_a_failed_attempt(again: Again, sent: dict[str, str], delay: float) -> None:
    assert after_parsing(again, **sent) == Retry(Attempts(1, 0, ("12:00:00 busy",)), delay)
    reason = "busy after 3 attempts: 11:59:00 timeout: read; 11:59:10 status 502; 12:00:00 busy"
    assert after_parsing(again, LAST, **sent) == End(Outcome.FAILED, reason)


def test_a_key_waits_longer_and_longer_at_no_attempts_cost_until_its_time_is_over() -> None:
    attempts, now, delays = LAST, NOON, []
    while isinstance(step := after_parsing(Again(f"at {len(delays) // 40}", waits=True), attempts, at=now), Retry):
        assert step.attempts.failed == 2
        # A deferred key and its attempts go through Redis to any worker.
        deferral = encode_deferral(Deferral(digest("k"), "k", step.attempts))
        attempts = decode_deferral(digest("k"), deferral).attempts
        delays.append(step.delay)
        now += step.delay
    assert now == NOON + 3600
    assert 40 < len(delays) < 120
    assert delays[:3] == [0.375, 0.75, 1.5]
    assert max(delays) <= 3600 / 20
    assert step.outcome is Outcome.FAILED
    assert str(step.reason).startswith("not ready after 3600 s ([parse] wait_most): 11:59:00 timeout: read; ")
    assert "12:00:00 not ready since 2026-01-01T12:00:00Z: at 0 \u00d740" in str(step.reason)
    # A throttled response counts the other ones only.
    assert isinstance(after(429, attempts).step, Retry)
    assert after(503, attempts, retry_after="9").step != after(503, LAST).step


@pytest.mark.parametrize(
    ("sent", "most", "delay"), [({"retry_after": "30"}, 3600, 30.0), ({"retry_after": "30"}, 10, 10.0), ({}, 0.3, 0.3)]
)
def test_a_wait_is_as_long_as_the_upstream_says_but_never_longer_than_it_may(
    sent: dict[str, str], most: float, delay: float
) -> None:
    step = after_parsing(Again("r", waits=True), most=most, **sent)
    assert isinstance(step, Retry)
    assert step.delay == pytest.approx(delay)


@pytest.mark.parametrize("status", [202, 206])
def test_a_202_is_for_the_parser_when_it_decides_on_it(status: int) -> None:
    decision = after_response(status, headers(), HERE, NO_ATTEMPTS, SETTINGS, reads_accepted=True, now=NOON, jitter=0.5)
    assert (decision.step == End(Outcome.STORED)) is (status == 202)


# -- redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed_while_hops_are_left(status: int) -> None:
    assert after(status, LAST, hops=1, location="/b") == Decision(Follow(parse("https://upstream.example/b")))
    assert after(status, LAST, hops=0, location="/b") == Decision(
        End(Outcome.REFUSED, f"redirect {status} to https://upstream.example/b: no more redirects are followed")
    )


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        ({}, "it has no Location that can be read"),
        ({"location": "ftp://x.example/"}, "its Location does not start with http:// or https://"),
        ({"location": "https://me:secret@x.example/"}, "its Location contains user information before the host"),
    ],
)
def test_an_invalid_redirect_is_refused_with_the_reason(sent: dict[str, str], why: str) -> None:
    assert after(301, hops=5, **sent) == Decision(End(Outcome.REFUSED, f"redirect 301: {why}"))


def test_a_304_is_never_followed() -> None:
    assert after(304, hops=5, location="/b") == Decision(End(Outcome.UNCHANGED))
