"""How late a worker's event loop runs what is due: what blocks the loop delays every request in flight."""

from __future__ import annotations

import asyncio
import logging
from time import monotonic

from coordinator.tasks import until_tick

logger = logging.getLogger(__name__)

# Between two samples, of which each costs about 10 microseconds. A lag is measured at most this much too short.
SAMPLE_INTERVAL_SECONDS = 0.5
# A lag that is worth a warning. A worker's lease ends after ten times as long.
LONG_LAG_SECONDS = 1.0
_MAX_COUNTED_MS = 1000


class LoopLag:
    """Counts lags by milliseconds; logs a warning at the first long one, and a summary for debugging at the end."""

    def __init__(self) -> None:
        self._counts = [0] * (_MAX_COUNTED_MS + 1)
        self.largest = 0.0

    async def watch(self) -> None:
        """Sample twice a second until cancelled. By a callback: waking a coroutine takes three times as long."""
        self._timer = self._next_sample()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self._timer.cancel()
            logger.debug(
                "event loop lag: 99 %% within %.0f ms, largest %.0f ms", 1000 * self.within(0.99), 1000 * self.largest
            )

    def _next_sample(self) -> asyncio.TimerHandle:
        wait = until_tick(SAMPLE_INTERVAL_SECONDS)
        return asyncio.get_running_loop().call_later(wait, self._sample, monotonic() + wait)

    def _sample(self, due: float) -> None:
        self.record(monotonic() - due)
        self._timer = self._next_sample()

    def record(self, seconds: float) -> None:
        """Count one lag."""
        self._counts[min(_MAX_COUNTED_MS, max(0, int(1000 * seconds)))] += 1
        if seconds > self.largest:
            if self.largest < LONG_LAG_SECONDS <= seconds:
                logger.warning(
                    "the event loop stood still for %.1f s: this process was stopped, or got too little CPU, or code of"
                    " the job blocks it",
                    seconds,
                    extra={"event": "loop_stood_still"},
                )
            self.largest = seconds

    def within(self, share: float) -> float:
        """The lag in seconds that this share of all lags did not exceed, rounded up to a millisecond; 0 without any."""
        wanted, counted = share * sum(self._counts), 0
        for milliseconds, count in enumerate(self._counts, 1):
            counted += count
            if counted and counted >= wanted:
                return milliseconds / 1000
        return 0.0
