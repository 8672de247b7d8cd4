"""Slots of one upstream, booked ahead for the lanes of this worker that are free."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from coordinator.errors import RedisUnavailable
from coordinator.limits.limiter import SLOT_EXPIRY_SECONDS, Limiter

logger = logging.getLogger(__name__)

# Slots for lanes that come free within this time are booked by one call.
GATHER = 0.005
# Who sleeps until a slot can be booked hears within this time that it can be booked earlier.
NEWS_WITHIN = 0.25


class Pacer:
    """`wanted` says how many could be used now; `reserved` is called when there are some, or none is wanted any more.

    An error in booking is handed to `reserved`: those who wait for a slot would wait for ever.
    """

    __slots__ = ("_at", "_limiter", "_reserved", "_reserving", "_times", "_upstream", "_wanted")

    def __init__(
        self,
        limiter: Limiter,
        upstream: str,
        *,
        wanted: Callable[[], int],
        reserved: Callable[[BaseException | None], None],
    ) -> None:
        self._limiter = limiter
        self._upstream = upstream
        self._wanted = wanted
        self._reserved = reserved
        self._times: deque[float] = deque()
        self._reserving: asyncio.Task[None] | None = None
        self._at = 0.0

    def take(self) -> float | None:
        """The next slot; older ones were slept past, in a frozen process say, and would make a burst."""
        oldest = self._limiter.clock() - SLOT_EXPIRY_SECONDS
        while self._times:
            slot = self._times.popleft()
            if slot >= oldest:
                return slot
        return None

    async def wait_for(self, slot: float) -> bool:
        """Wait for a slot; False when it was slept past, or when a pause that began meanwhile voids it."""
        ahead = slot - self._limiter.clock()
        if ahead > 0:
            await asyncio.sleep(ahead)
        now = self._limiter.clock()
        return now - slot <= SLOT_EXPIRY_SECONDS and self._limiter.resumes_at(self._upstream) <= now

    @property
    def reserving(self) -> bool:
        """Whether slots are being booked."""
        return self._reserving is not None

    def reserve(self) -> None:
        """Begin to book, if that has not begun."""
        if self._reserving is None:
            self._reserving = asyncio.create_task(self._reserve(), name=f"book {self._upstream}")
            self._reserving.add_done_callback(self._ended)

    def hurry(self) -> None:
        """Ask again now: a higher limit, or a probe that ended, lets requests leave earlier than was said."""
        self._at = 0.0

    def close(self) -> None:
        """Stop booking."""
        if self._reserving is not None:
            self._reserving.cancel()

    async def _reserve(self) -> None:
        clock = self._limiter.clock
        while not self._times and (wanted := self._wanted()):
            if (wait := self._at - clock()) > 0:
                await asyncio.sleep(min(wait, NEWS_WITHIN))
                continue
            try:
                reserving = await self._limiter.reserve(self._upstream, wanted)
            except RedisUnavailable as error:
                logger.warning("rate limit of %s waits for Redis: %s", self._upstream, error)
                await asyncio.sleep(1.0)
                continue
            self._times.extend(reserving.slots)
            if not reserving.slots:
                self._at = max(reserving.again_at, clock() + 0.001)
            elif reserving.slots[0] - clock() > GATHER:
                self._at = clock() + GATHER

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._reserving = None
        if not task.cancelled():
            self._reserved(task.exception())
