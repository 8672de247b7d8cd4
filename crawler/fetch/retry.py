"""Pure: what follows one HTTP try: the key's outcome, another try after a while, or another URL."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple

from coordinator.errors import FetchError
from coordinator.model import Attempts, Outcome
from crawler.fetch.ratelimit_headers import SPEAKING, requested_pause, throttled
from crawler.fetch.redirect import REDIRECTS, InvalidRedirect, target
from crawler.job.models import RetrySettings
from crawler.model import Headers

# An upstream that is asked to wait and answers 429 again is not charged to the key, but not for ever either.
THROTTLED_FACTOR = 10
# A history goes along with its key through Redis: at most so many lines, each with so many characters of a reason.
MOST_LINES = 24
MOST_WORDS = 150
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504, 507, 509, 520, 521, 522, 523, 524, 529})


@dataclass(frozen=True, slots=True)
class End:
    """The key has its outcome."""

    outcome: Outcome
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Again:
    """Try again after `delay` seconds; `attempts` include the one that was just made."""

    attempts: Attempts
    delay: float


@dataclass(frozen=True, slots=True)
class Follow:
    """Ask at another URL."""

    url: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows for the keys, and for how many seconds the whole fleet leaves the upstream alone.

    `throttled` tells the limiter that the upstream said so itself: too much is asked of it.
    """

    step: End | Again | Follow
    pause: float | None = None
    throttled: bool = field(default=False, compare=False)


STORED = Decision(End(Outcome.STORED))


class Moment(NamedTuple):
    """What a decision needs besides the answer: seconds since 1970, and a random number in [0, 1)."""

    now: float
    jitter: float


def after_answer(
    status: int,
    headers: Headers,
    url: str,
    attempts: Attempts,
    settings: RetrySettings,
    moment: Moment,
    hops_left: int = 0,
) -> Decision:
    """Decide on a response to `url`; `attempts` are those before it, `hops_left` redirects may still be followed."""
    if status == 200 and not headers.has(SPEAKING):
        return STORED
    pause = requested_pause(status, headers, moment.now)
    if throttled(status, headers):
        attempts = noted(attempts, f"status {status}", moment.now, throttled=True)
        if attempts.throttled >= settings.attempts * THROTTLED_FACTOR:
            return Decision(_out_of_attempts(f"status {status}", attempts), pause, throttled=True)
        return Decision(Again(attempts, 0.0), pause or _backoff(attempts.throttled, settings, 1.0), throttled=True)
    if status in PASSING:
        attempts = noted(attempts, f"status {status}", moment.now)
        if attempts.failed >= settings.attempts:
            return Decision(_out_of_attempts(f"status {status}", attempts), pause)
        # An upstream that asks for a pause has said when; without one each key waits a time of its own.
        return Decision(Again(attempts, 0.0 if pause else _backoff(attempts.failed, settings, moment.jitter)), pause)
    if status in REDIRECTS:
        return Decision(_redirected(status, headers, url, hops_left), pause)
    if pause is None and 200 <= status < 300:
        return STORED
    return Decision(_ended(status), pause)


def after_error(error: FetchError, attempts: Attempts, settings: RetrySettings, moment: Moment) -> End | Again:
    """The decision on a try that brought no response; `attempts` are those before it."""
    if error.kind in ("url", "address"):
        return End(Outcome.REFUSED, str(error))
    if error.kind in ("too-large", "decode"):
        return End(Outcome.FAILED, str(error))
    attempts = noted(attempts, str(error), moment.now)
    if attempts.failed >= settings.attempts:
        return _out_of_attempts(str(error), attempts)
    return Again(attempts, _backoff(attempts.failed, settings, moment.jitter))


def noted(attempts: Attempts, words: str, now: float, *, throttled: bool = False) -> Attempts:
    """The tries with one more, which ended as `words` say; like ones in a row share a line of the history.

    Of a long history the first line and the latest are kept.
    """
    words = words[:MOST_WORDS]
    line = f"{datetime.fromtimestamp(now, UTC):%H:%M:%S} {words}"
    history = attempts.history
    if history:
        since, _, before = history[-1].partition(" ")
        alike, _, times = before.rpartition(" \u00d7")
        if before == words:
            history, line = history[:-1], f"{since} {words} \u00d72"
        elif alike == words and times.isdigit():
            history, line = history[:-1], f"{since} {words} \u00d7{int(times) + 1}"
    if len(history) == MOST_LINES:
        history = (history[0], "\u2026", *history[3:])
    return Attempts(attempts.failed + (not throttled), attempts.throttled + throttled, (*history, line))


def _out_of_attempts(words: str, attempts: Attempts) -> End:
    return End(Outcome.FAILED, f"{words} after {attempts.total} attempts: {'; '.join(attempts.history)}")


def _ended(status: int) -> End:
    if 200 <= status < 300:
        return End(Outcome.STORED)
    if status == 304:
        return End(Outcome.UNCHANGED)
    if status in (404, 410):
        return End(Outcome.GONE, f"status {status}")
    return End(Outcome.REFUSED, f"{'redirect' if 300 <= status < 400 else 'status'} {status}")


def _redirected(status: int, headers: Headers, url: str, hops_left: int) -> End | Follow:
    try:
        there = target(url, headers.get("location"))
    except InvalidRedirect as error:
        return End(Outcome.REFUSED, f"redirect {status}: {error}")
    if hops_left < 1:
        return End(Outcome.REFUSED, f"redirect {status} to {there}: no more redirects are followed")
    return Follow(there)


def _backoff(attempted: int, settings: RetrySettings, jitter: float) -> float:
    """Exponential backoff with full jitter, in seconds (Brooker, "Exponential Backoff And Jitter", AWS 2015)."""
    return float(min(settings.max_delay, settings.backoff * 2 ** min(max(attempted - 1, 0), 30))) * jitter
