"""Pure: what follows one attempt: the key's outcome, a retry after a delay, or another URL."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

from coordinator.errors import FetchError
from coordinator.model import Attempts, Outcome
from crawler.fetch.ratelimit_headers import LIMIT_HEADERS, is_throttled, requested_pause
from crawler.fetch.redirect import REDIRECT_STATUSES, InvalidRedirect, redirect_target
from crawler.job.models import RetrySettings
from crawler.model import Headers

# Throttled attempts are counted apart. For each attempt that the job allows, a key may have this many of them.
THROTTLED_PER_ATTEMPT = 10
# The history of a deferred key is stored in Redis, so it is bounded.
MAX_HISTORY_LINES = 24
MAX_RESULT_CHARACTERS = 150
TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504, 507, 509, 520, 521, 522, 523, 524, 529})


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
    """Send the request to the URL that a redirect names."""

    url: str


@dataclass(frozen=True, slots=True)
class Decision:
    """The next step for the request's keys. `pause` is for how many seconds all workers stop at the upstream, or None.

    `throttled` is true when the upstream said itself that it gets too many requests.
    """

    step: End | Retry | Follow
    pause: float | None = None
    throttled: bool = field(default=False, compare=False)


STORED = Decision(End(Outcome.STORED))


def after_response(
    status: int,
    headers: Headers,
    url: str,
    attempts: Attempts,
    settings: RetrySettings,
    hops_left: int = 0,
    *,
    now: float,
    jitter: float,
) -> Decision:
    """Decide on a response to `url`.

    `attempts` are those before it, `hops_left` redirects may still be followed, `now` is seconds since 1970, and
    `jitter` a random number in [0, 1).
    """
    if status == 200 and not headers.has(LIMIT_HEADERS):
        return STORED
    pause = requested_pause(status, headers, now)
    if is_throttled(status, headers):
        attempts = add_attempt(attempts, f"status {status}", now, throttled=True)
        if attempts.throttled >= settings.attempts * THROTTLED_PER_ATTEMPT:
            return Decision(_out_of_attempts(f"status {status}", attempts), pause, throttled=True)
        return Decision(Retry(attempts, 0.0), pause or _backoff(attempts.throttled, settings, 1.0), throttled=True)
    if status in TRANSIENT_STATUSES:
        attempts = add_attempt(attempts, f"status {status}", now)
        if attempts.failed >= settings.attempts:
            return Decision(_out_of_attempts(f"status {status}", attempts), pause)
        # All keys wait for the end of a pause that the upstream asked for. Without one, each key has its own delay.
        return Decision(Retry(attempts, 0.0 if pause else _backoff(attempts.failed, settings, jitter)), pause)
    if status in REDIRECT_STATUSES:
        return Decision(_follow_redirect(status, headers, url, hops_left), pause)
    if pause is None and 200 <= status < 300:
        return STORED
    return Decision(_end_with_status(status), pause)


def after_error(
    error: FetchError, attempts: Attempts, settings: RetrySettings, *, now: float, jitter: float
) -> End | Retry:
    """Decide on an attempt that brought no response; the arguments are those of `after_response`."""
    if error.kind in ("url", "address"):
        return End(Outcome.REFUSED, str(error))
    if error.kind in ("too-large", "decode"):
        return End(Outcome.FAILED, str(error))
    attempts = add_attempt(attempts, str(error), now)
    if attempts.failed >= settings.attempts:
        return _out_of_attempts(str(error), attempts)
    return Retry(attempts, _backoff(attempts.failed, settings, jitter))


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


def _follow_redirect(status: int, headers: Headers, url: str, hops_left: int) -> End | Follow:
    try:
        target = redirect_target(url, headers.get("location"))
    except InvalidRedirect as error:
        return End(Outcome.REFUSED, f"redirect {status}: {error}")
    if hops_left < 1:
        return End(Outcome.REFUSED, f"redirect {status} to {target}: no more redirects are followed")
    return Follow(target)


def _backoff(attempts: int, settings: RetrySettings, jitter: float) -> float:
    """Exponential backoff with full jitter, in seconds (Brooker, "Exponential Backoff And Jitter", AWS 2015)."""
    return float(min(settings.max_delay, settings.backoff * 2 ** min(max(attempts - 1, 0), 30))) * jitter
