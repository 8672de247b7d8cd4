"""Pure: what follows one HTTP try: the key's outcome, or another try after a while."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from coordinator.errors import FetchError
from coordinator.model import Outcome
from coordinator.settings import RetrySettings

# urllib3's bound on a Retry-After, six hours: a longer one is a mistake or a refusal in disguise.
LONGEST_PAUSE = 21_600.0
# An upstream that is asked to wait and answers 429 again is not charged to the key, but not for ever either.
THROTTLED_FACTOR = 10
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504, 507, 509, 520, 521, 522, 523, 524, 529})


@dataclass(frozen=True, slots=True)
class End:
    """The key has its outcome."""

    outcome: Outcome
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Again:
    """Try again after `delay` seconds; `pause` stops the whole fleet at this upstream for so many seconds."""

    delay: float
    pause: float | None = None


@dataclass(frozen=True, slots=True)
class Tries:
    """How often one request was tried: `failed` ones count against the attempts, `throttled` ones (429) hardly."""

    failed: int = 0
    throttled: int = 0

    @property
    def total(self) -> int:
        """Requests sent so far."""
        return self.failed + self.throttled


def after_status(
    status: int, retry_after: str | None, date: str | None, tries: Tries, settings: RetrySettings, jitter: float
) -> End | Again:
    """The decision on a response; `tries` includes this one, `jitter` is a random number in [0, 1)."""
    if 200 <= status < 300:
        return End(Outcome.STORED)
    if status == 304:
        return End(Outcome.UNCHANGED)
    if status in (404, 410):
        return End(Outcome.GONE, f"status {status}")
    if status not in PASSING:
        words = "redirect" if 300 <= status < 400 else "status"
        return End(Outcome.REFUSED, f"{words} {status}")
    exhausted = tries.failed >= settings.attempts or tries.throttled >= settings.attempts * THROTTLED_FACTOR
    if exhausted:
        return End(Outcome.FAILED, f"status {status} after {tries.total} attempts")
    asked = pause_asked(retry_after, date) if status in (429, 503) else None
    if asked:  # none, or "now": an upstream that refuses and asks for no pause gets our own
        return Again(delay=0.0, pause=asked)
    if status == 429:
        return Again(delay=0.0, pause=_backoff(tries.throttled, settings, 1.0))
    return Again(delay=_backoff(tries.failed, settings, jitter))


def after_error(error: FetchError, tries: Tries, settings: RetrySettings, jitter: float) -> End | Again:
    """The decision on a try that brought no response."""
    if error.kind in ("url", "address"):
        return End(Outcome.REFUSED, str(error))
    if error.kind in ("too-large", "decode"):
        return End(Outcome.FAILED, str(error))
    if tries.failed >= settings.attempts:
        return End(Outcome.FAILED, f"{error} after {tries.total} attempts")
    return Again(delay=_backoff(tries.failed, settings, jitter))


def pause_asked(retry_after: str | None, date: str | None) -> float | None:
    """Seconds that a Retry-After asks for, at most six hours; None when there is none or it is malformed.

    A date is counted from the response's own Date, so that the two clocks need not agree.
    """
    if retry_after is None:
        return None
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return min(float(text), LONGEST_PAUSE)
    try:
        until = parsedate_to_datetime(text)
        now = parsedate_to_datetime(date) if date else datetime.now(UTC)
        return min(max((until - now).total_seconds(), 0.0), LONGEST_PAUSE)
    except (ValueError, TypeError, OverflowError):
        return None


def _backoff(tried: int, settings: RetrySettings, jitter: float) -> float:
    """Exponential backoff with full jitter, in seconds (Brooker, "Exponential Backoff And Jitter", AWS 2015)."""
    return float(min(settings.max_delay, settings.backoff * 2 ** min(max(tried - 1, 0), 30))) * jitter
