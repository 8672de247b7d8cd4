"""Which retries a worker may make itself, and which go to the delayed set."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

# A key that waits longer than this waits in the delayed set: its block is finished, and whoever is free tries it.
LONGEST_HERE = 2.0
MINUTE = 60
# Retries that are always granted: at a run's start no share of anything is fair.
FLOOR = 10
LOOKS_AT_CLOCK = 64


class RetryBudget:
    """Lets retries in place be at most half of the requests of the last minute; a failing upstream is left alone."""

    def __init__(self, *, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._second = int(clock())
        self._requests = [0] * MINUTE
        self._retries = [0] * MINUTE
        self._sent = 0

    def sent(self) -> None:
        """One request was sent. It may count as a little older than it is: fewer retries are granted then, not more."""
        self._sent += 1
        if self._sent % LOOKS_AT_CLOCK == 0:
            self._now()
        self._requests[self._second % MINUTE] += 1

    def grants(self, delay: float) -> bool:
        """Whether a retry after `delay` seconds may be made in place; if so it is counted."""
        now = self._now()
        if delay > LONGEST_HERE or sum(self._retries) >= max(FLOOR, sum(self._requests) // 2):
            return False
        self._retries[now] += 1
        return True

    def _now(self) -> int:
        """The index of this second, with the seconds since the last call cleared."""
        second = int(self._clock())
        for passed in range(self._second + 1, min(second, self._second + MINUTE) + 1):
            self._requests[passed % MINUTE] = self._retries[passed % MINUTE] = 0
        self._second = max(second, self._second)
        return self._second % MINUTE
