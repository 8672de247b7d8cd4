"""How late a worker's event loop comes to what is due: whatever holds it up holds up every request in flight."""

from __future__ import annotations

import asyncio
import logging
from time import monotonic

logger = logging.getLogger(__name__)

# Seconds between two looks, of which each costs some 10 microseconds; a hold-up is seen this much too short at most.
TICK = 0.02
# Seconds that are worth a warning: a lease ends after ten times that.
LONG = 1.0
_MOST_MS = 1000


class LoopLag:
    """Counts by milliseconds; the first long one is a warning, and all of them one debug line at the end."""

    def __init__(self) -> None:
        self._counts = [0] * (_MOST_MS + 1)
        self.largest = 0.0

    async def watch(self) -> None:
        """Look until cancelled. By a callback: to wake a coroutine takes three times as long, fifty times a second."""
        self._timer = self._look_later()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self._timer.cancel()
            logger.debug(
                "event loop lag: 99 %% within %.0f ms, largest %.0f ms", 1000 * self.within(0.99), 1000 * self.largest
            )

    def _look_later(self) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(TICK, self._look, monotonic() + TICK)

    def _look(self, due: float) -> None:
        self.record(monotonic() - due)
        self._timer = self._look_later()

    def record(self, seconds: float) -> None:
        """The loop came this much late."""
        self._counts[min(_MOST_MS, max(0, int(1000 * seconds)))] += 1
        if seconds > self.largest:
            if self.largest < LONG <= seconds:
                logger.warning(
                    "the event loop stood still for %.1f s: this process was stopped, or got too little CPU, or code of"
                    " the job blocks it",
                    seconds,
                )
            self.largest = seconds

    def within(self, share: float) -> float:
        """Seconds within which this share of all lags was, in whole milliseconds, rounded up; 0 before the first."""
        wanted, seen = share * sum(self._counts), 0
        for milliseconds, count in enumerate(self._counts, 1):
            seen += count
            if seen and seen >= wanted:
                return milliseconds / 1000
        return 0.0
