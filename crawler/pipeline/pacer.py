"""Slots of one upstream, reserved ahead for the lanes of this worker that are free."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from coordinator.errors import RedisUnavailable
from coordinator.limits.limiter import SLOT_EXPIRY_SECONDS, Limiter
from coordinator.redis.retrying import REDIS_RETRY_SECONDS

logger = logging.getLogger(__name__)

# One call reserves the slots of all lanes that become free within this time.
SLOT_GATHER_SECONDS = 0.005
# While a reservation waits, it checks this often whether a slot is still wanted.
RECHECK_SECONDS = 2.0


class Pacer:
    """Reserves slots of one upstream in a task of its own while some are wanted.

    `wanted` says how many could be used now. `on_reserved` is called with None when there are slots or when none is
    wanted any more, and with the error when one ended the reservation: else the lanes that need a slot would wait for
    ever. A slot is a time on the limiter's clock, in seconds.
    """

    __slots__ = (
        *("_limiter", "_limits_changed", "_not_before", "_on_reserved", "_reserving", "_slots", "_turn_at"),
        *("_upstream", "_wanted"),
    )

    def __init__(
        self,
        limiter: Limiter,
        upstream: str,
        *,
        wanted: Callable[[], int],
        on_reserved: Callable[[BaseException | None], None],
    ) -> None:
        self._limiter = limiter
        self._upstream = upstream
        self._wanted = wanted
        self._on_reserved = on_reserved
        self._slots: deque[float] = deque()
        self._reserving: asyncio.Task[None] | None = None
        self._not_before = self._turn_at = 0.0
        self._limits_changed = asyncio.Event()

    def take_slot(self) -> float | None:
        """Take the next slot, None when none is reserved.

        Slots that have expired are dropped: after the process was frozen, they would let many requests leave at once.
        """
        oldest = self._limiter.clock() - SLOT_EXPIRY_SECONDS
        while self._slots:
            slot = self._slots.popleft()
            if slot >= oldest:
                return slot
            self._limiter.slot_missed(self._upstream)
        return None

    async def wait_for(self, slot: float) -> bool:
        """Wait for a slot; False when it has expired meanwhile, or when a pause has begun."""
        ahead = slot - self._limiter.clock()
        if ahead > 0:
            await asyncio.sleep(ahead)
        now = self._limiter.clock()
        if now - slot <= SLOT_EXPIRY_SECONDS and self._limiter.resumes_at(self._upstream) <= now:
            return True
        self._limiter.slot_missed(self._upstream)
        return False

    @property
    def reserving(self) -> bool:
        """Whether a reservation is under way."""
        return self._reserving is not None

    def reserve(self) -> None:
        """Begin a reservation, unless one is under way."""
        if self._reserving is None:
            self._reserving = asyncio.create_task(self._reserve(), name=f"reserve {self._upstream}")
            self._reserving.add_done_callback(self._ended)

    def limits_changed(self) -> None:
        """Ask again now: with a higher limit, or after a probe, requests may leave earlier than Redis said."""
        self._not_before = 0.0
        self._limits_changed.set()

    def close(self) -> None:
        """Cancel the reservation that is under way."""
        if self._reserving is not None:
            self._reserving.cancel()

    async def _reserve(self) -> None:
        clock = self._limiter.clock
        while not self._slots and (wanted := self._wanted()):
            if (wait := self._not_before - clock()) > 0:
                self._limits_changed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(wait, RECHECK_SECONDS)):
                        await self._limits_changed.wait()
                continue
            try:
                reservation = await self._limiter.reserve(self._upstream, wanted, self._turn_at)
            except RedisUnavailable as error:
                logger.warning("rate limit of %s waits for Redis: %s", self._upstream, error)
                await asyncio.sleep(REDIS_RETRY_SECONDS)
                continue
            self._slots.extend(reservation.slots)
            self._turn_at, now = reservation.again_at, clock()
            if not reservation.slots:
                now += 0.001
            elif reservation.slots[0] - now > SLOT_GATHER_SECONDS:
                now += SLOT_GATHER_SECONDS
            self._not_before = max(reservation.again_at, now)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._reserving = None
        if not task.cancelled():
            self._on_reserved(task.exception())
