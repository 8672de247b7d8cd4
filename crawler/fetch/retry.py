"""Pure: what follows one attempt: the key's outcome, a retry after a delay, or another URL."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from coordinator.errors import FetchError
from coordinator.model import Attempts, Outcome
from coordinator.url import Target
from crawler.fetch.faults import THROTTLED
from crawler.fetch.network.redirect import REDIRECT_STATUSES, InvalidRedirect, redirect_target, redirected_payload
from crawler.fetch.ratelimit_headers import (
    LIMIT_HEADERS,
    MAX_PAUSE_SECONDS,
    is_throttled,
    requested_pause,
    retry_after,
)
from crawler.job.models import RetrySettings
from crawler.model import GET, Again, Headers, Payload

# Throttled attempts are counted apart. For each attempt that the job allows, a key may have this many of them.
THROTTLED_PER_ATTEMPT = 10
UNKNOWN = "outcome unknown"
NOT_AGAIN = "it is not sent again, because [request] idempotent is not true"
# The history of a deferred key is stored in Redis, so it is bounded.
MAX_HISTORY_LINES = 24
MAX_RESULT_CHARACTERS = 150
# 498 means "no capacity" or "invalid token": another attempt does no harm, and in the end the key fails.
TRANSIENT_CLIENT_ERRORS = frozenset({408, 421, 425, 498})
# Of all statuses from 500 on, only these would come again. What is not within 100 to 599 counts as 5xx (RFC 9110, 15).
FINAL_SERVER_ERRORS = frozenset({501, 505, 506, 510})
# Statuses of success that do not bring what was asked for, and why not.
INCOMPLETE_STATUSES = {202: "not ready yet", 206: "only a part of the body"}
NOT_READY = f"status 202: {INCOMPLETE_STATUSES[202]}"
# A key that waits is requested again after a twentieth of the time that it has waited: that is 200 requests in a day.
WAITED_PER_WAIT = 20
MIN_WAIT_SECONDS = 0.25
# How the history says since when a key waits, so that this comes with it to another worker.
_WAITS = "not ready since "
_WAIT_LINE = re.compile(rf"\S+ {_WAITS}(\S+Z): .*?(?: \u00d7(\d+))?", re.DOTALL)
# With these an upstream says that it does not know the crawl, or does not want it, whatever the key is.
UNAUTHORIZED_STATUSES = frozenset({401, 403, 407})


@dataclass(frozen=True, slots=True)
class End:
    """The key has its outcome."""

    outcome: Outcome
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """Make another attempt after `delay` seconds; `attempts` include the one that was just made."""

    attempts: Attempts
    delay: float


@dataclass(frozen=True, slots=True)
class Follow:
    """Send the request to where a redirect leads, after `delay` seconds."""

    target: Target
    delay: float = 0.0
    payload: Payload = GET


@dataclass(frozen=True, slots=True)
class Decision:
    """The next step for the request's keys. `pause` is for how many seconds all workers stop at the upstream, or None.

    `throttled` is true when the upstream said itself that it gets too many requests, `unauthorized` when it refused
    because of who asks.
    """

    step: End | Retry | Follow
    pause: float | None = None
    throttled: bool = field(default=False, compare=False)
    unauthorized: bool = field(default=False, compare=False)


# With these an upstream says that it has not carried out the request.
UNPROCESSED_STATUSES = frozenset({408, 413, 421, 425, 429, 503})

STORED = Decision(End(Outcome.STORED))
UNCHANGED = Decision(End(Outcome.UNCHANGED))


def after_response(
    status: int,
    headers: Headers,
    target: Target,
    attempts: Attempts,
    settings: RetrySettings,
    hops_left: int = 0,
    *,
    body: bytes = b"",
    reads_accepted: bool = False,
    payload: Payload = GET,
    now: float,
    jitter: float,
) -> Decision:
    """Decide on a response to what was sent to `target`.

    `attempts` are those before it, `hops_left` redirects may still be followed, `reads_accepted` says that the parser
    decides on a 202, `now` is seconds since 1970, and `jitter` a random number in [0, 1).
    """
    if (status == 200 or status == 304) and not headers.has(LIMIT_HEADERS):
        return STORED if status == 200 else UNCHANGED
    throttled = is_throttled(status, headers, body)
    pause = requested_pause(status, headers, now, throttled=throttled)
    if throttled:
        attempts = add_attempt(attempts, f"status {status}", now, throttled=True)
        if _is_out_of_throttled(attempts, settings):
            return Decision(_out_of_attempts(f"status {status}", attempts), pause, throttled=True)
        return Decision(Retry(attempts, 0.0), pause or _backoff(attempts.throttled, settings, 1.0), throttled=True)
    if status == 202 and reads_accepted:
        return Decision(End(Outcome.STORED), pause)
    if status in INCOMPLETE_STATUSES or is_transient(status) or (status == 413 and pause):
        result = f"status {status}: {why}" if (why := INCOMPLETE_STATUSES.get(status)) else f"status {status}"
        attempts = add_attempt(attempts, result, now)
        if attempts.failed >= settings.attempts:
            return Decision(_out_of_attempts(result, attempts), pause)
        # All keys wait for the end of a pause that the upstream asked for. Without one, each key has its own delay.
        delay = 0.0 if pause else _backoff(attempts.failed, settings, jitter)
        return Decision(Retry(attempts, max(delay, _own_wait(status, headers, now))), pause)
    if status in REDIRECT_STATUSES:
        delay = min(_own_wait(status, headers, now), settings.max_delay)
        return Decision(_follow_redirect(status, headers, target, hops_left, delay, payload), pause)
    if pause is None and 200 <= status < 300:
        return STORED
    return Decision(_end_with_status(status), pause, unauthorized=status in UNAUTHORIZED_STATUSES)


def is_transient(status: int) -> bool:
    """Whether another attempt may bring another response than one of this status."""
    return status < 200 or status in TRANSIENT_CLIENT_ERRORS or (status >= 500 and status not in FINAL_SERVER_ERRORS)


def after_error(
    error: FetchError, attempts: Attempts, settings: RetrySettings, *, now: float, jitter: float
) -> End | Retry:
    """Decide on an attempt that brought no response; the arguments are those of `after_response`."""
    if error.kind in ("url", "address"):
        return End(Outcome.REFUSED, str(error))
    if error.kind in ("too-large", "decode"):
        return End(Outcome.FAILED, str(error))
    if error.again and not _is_out_of_throttled(attempts, settings):
        return Retry(add_attempt(attempts, str(error), now, throttled=True), 0.0)
    throttled = error.kind == THROTTLED
    attempts = add_attempt(attempts, str(error), now, throttled=throttled)
    if attempts.failed >= settings.attempts or _is_out_of_throttled(attempts, settings):
        return _out_of_attempts(str(error), attempts)
    return Retry(attempts, _backoff(attempts.throttled if throttled else attempts.failed, settings, jitter))


def without_repeat(decision: Decision, result: str, status: int | None) -> Decision:
    """Return the decision for a request that must not be sent again after this attempt, which ended with `result`.

    A status of success is one, also when what was asked for is not ready.
    """
    if not isinstance(decision.step, Retry) or decision.throttled or status in UNPROCESSED_STATUSES:
        return decision
    if status is not None and 200 <= status < 300:
        return replace(decision, step=End(Outcome.STORED))
    return replace(decision, step=End(Outcome.FAILED, f"{UNKNOWN}: {result}; {NOT_AGAIN}"))


def after_parser(
    again: Again,
    headers: Headers,
    attempts: Attempts,
    settings: RetrySettings,
    wait_most: float,
    *,
    now: float,
    jitter: float,
) -> End | Retry:
    """Decide on a response whose parser wants another one; the arguments are those of `after_response`.

    A key may wait `wait_most` seconds in all.
    """
    requested = again.after if again.after is not None else retry_after(headers, now)
    requested = min(max(requested or 0.0, 0.0), MAX_PAUSE_SECONDS)
    if not again.waits:
        attempts = add_attempt(attempts, again.reason, now)
        if attempts.failed >= settings.attempts:
            return _out_of_attempts(again.reason, attempts)
        return Retry(attempts, max(_backoff(attempts.failed, settings, jitter), requested))
    since, waits = _waited(attempts)
    began = now if since is None else since.timestamp()
    text = f"{since or datetime.fromtimestamp(now, UTC):%Y-%m-%dT%H:%M:%SZ}"
    attempts = add_attempt(attempts, f"{_WAITS}{text}: {again.reason}", now, throttled=True)
    if (left := began + wait_most - now) <= 0:
        return End(
            Outcome.FAILED, f"not ready after {wait_most:g} s ([parse] wait_most): {'; '.join(attempts.history)}"
        )
    backoff = _backoff(waits + 1, settings, (1 + jitter) / 2)
    return Retry(attempts, min(max(requested, backoff, (now - began) / WAITED_PER_WAIT, MIN_WAIT_SECONDS), left))


def add_attempt(attempts: Attempts, result: str, now: float, *, throttled: bool = False) -> Attempts:
    """Return `attempts` with one more, which ended with `result` at `now` (seconds since 1970).

    Attempts in a row with the same result share a line of the history. A history that becomes too long keeps its first
    line and its latest ones.
    """
    result = result[:MAX_RESULT_CHARACTERS]
    line = f"{datetime.fromtimestamp(now, UTC):%H:%M:%S} {result}"
    history = attempts.history
    if history:
        since, _, last = history[-1].partition(" ")
        last_result, _, times = last.rpartition(" \u00d7")
        if last == result:
            history, line = history[:-1], f"{since} {result} \u00d72"
        elif last_result == result and times.isdigit():
            history, line = history[:-1], f"{since} {result} \u00d7{int(times) + 1}"
    if len(history) == MAX_HISTORY_LINES:
        history = (history[0], "\u2026", *history[3:])
    return Attempts(attempts.failed + (not throttled), attempts.throttled + throttled, (*history, line))


def _waited(attempts: Attempts) -> tuple[datetime | None, int]:
    """Since when a key waits, None if it does not, and how often it was told to; as far as the history has it."""
    found = [match for line in attempts.history if (match := _WAIT_LINE.fullmatch(line))]
    since = min((datetime.fromisoformat(match[1]) for match in found), default=None)
    return since, sum(int(match[2] or 1) for match in found)


def _is_out_of_throttled(attempts: Attempts, settings: RetrySettings) -> bool:
    most = settings.attempts * THROTTLED_PER_ATTEMPT
    return attempts.throttled >= most and attempts.throttled - _waited(attempts)[1] >= most


def _out_of_attempts(result: str, attempts: Attempts) -> End:
    return End(Outcome.FAILED, f"{result} after {attempts.total} attempts: {'; '.join(attempts.history)}")


def _end_with_status(status: int) -> End:
    if 200 <= status < 300:
        return End(Outcome.STORED)
    if status == 304:
        return End(Outcome.UNCHANGED)
    if status in (404, 410):
        return End(Outcome.GONE, f"status {status}")
    return End(Outcome.REFUSED, f"{'redirect' if 300 <= status < 400 else 'status'} {status}")


def _own_wait(status: int, headers: Headers, now: float) -> float:
    """The seconds of a Retry-After that is about this key alone: its response is being made, or it is elsewhere."""
    wait = retry_after(headers, now) if 202 <= status < 400 else None
    return min(max(wait or 0.0, 0.0), MAX_PAUSE_SECONDS)


def _follow_redirect(
    status: int, headers: Headers, target: Target, hops_left: int, delay: float, payload: Payload
) -> End | Follow:
    try:
        redirected = redirect_target(target, headers.get("location"))
        payload = payload if payload is GET else redirected_payload(payload, status, target, redirected)
    except InvalidRedirect as error:
        return End(Outcome.REFUSED, f"redirect {status}: {error}")
    if hops_left < 1:
        return End(Outcome.REFUSED, f"redirect {status} to {redirected.href}: no more redirects are followed")
    return Follow(redirected, delay, payload)


def _backoff(attempts: int, settings: RetrySettings, jitter: float) -> float:
    """Exponential backoff with full jitter, in seconds (Brooker, "Exponential Backoff And Jitter", AWS 2015)."""
    return float(min(settings.max_delay, settings.backoff * 2 ** min(max(attempts - 1, 0), 30))) * jitter
