"""Which retries a worker makes itself, and which go to the deferred set."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

# A key with a longer delay waits in the deferred set: then its block can be completed, and any worker may retry it.
MAX_IN_PLACE_SECONDS = 2.0
WINDOW_SECONDS = 60
# This many retries in a window are always granted, because at the start of a run half of the requests are too few.
MIN_RETRIES = 10
REQUESTS_PER_CLOCK_READ = 64


class RetryBudget:
    """Limits retries in place to half of the requests of the last minute, so that a failing upstream gets fewer."""

    def __init__(self, *, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._second = int(clock())
        self._requests = [0] * WINDOW_SECONDS
        self._retries = [0] * WINDOW_SECONDS
        self._requests_total = 0

    def add_request(self) -> None:
        """Count one request. It may count as a little older than it is: then fewer retries are granted, not more."""
        self._requests_total += 1
        if self._requests_total % REQUESTS_PER_CLOCK_READ == 0:
            self._advance()
        self._requests[self._second % WINDOW_SECONDS] += 1

    def grant_retry(self, delay: float) -> bool:
        """Return whether a retry after `delay` seconds may be made in place; if so, count it."""
        index = self._advance()
        if delay > MAX_IN_PLACE_SECONDS or sum(self._retries) >= max(MIN_RETRIES, sum(self._requests) // 2):
            return False
        self._retries[index] += 1
        return True

    def _advance(self) -> int:
        """Clear the counts of the seconds since the last call, and return the index of this second."""
        second = int(self._clock())
        for passed in range(self._second + 1, min(second, self._second + WINDOW_SECONDS) + 1):
            self._requests[passed % WINDOW_SECONDS] = self._retries[passed % WINDOW_SECONDS] = 0
        self._second = max(second, self._second)
        return self._second % WINDOW_SECONDS
