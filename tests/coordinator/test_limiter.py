"""The fleet's rate at one upstream: slots booked on a real Redis, pauses that stop everybody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from time import monotonic
from typing import Any

import pytest
from redis.asyncio import Redis

from coordinator.connection import connect
from coordinator.errors import RedisRefused, RedisUnavailable
from coordinator.keys import RunKeys
from coordinator.limiter import HORIZON, MARGIN, STALE, Budget, Limiter
from coordinator.scripts import Argument, Script
from tests.conftest import eventually

from .parts import LostAnswer

pytestmark = pytest.mark.anyio

KEYS = RunKeys("run")
UPSTREAM = "example.org"
# uvloop's timers count whole milliseconds, and may be half of one early.
TICK = 0.002


@dataclass(frozen=True)
class Booking:
    """Slots as Redis booked them, in µs of its clock; `asked` is the latest that it can have been then."""

    first: float
    slots: int
    interval: float
    asked: int

    @property
    def times(self) -> list[float]:
        return [self.first + index * self.interval for index in range(self.slots)]


class Ledger:
    """Stands between limiters and Redis, and writes down what was booked: the next free slot is read in the same
    transaction in which the script runs."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._script: Any = Script(client, "reserve")._script
        self.bookings: list[Booking] = []

    async def __call__(self, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        sha = await self._client.script_load(self._script.script)
        async with self._client.pipeline(transaction=True) as pipe:
            pipe.evalsha(sha, len(keys), *keys, *arguments)
            pipe.get(keys[0])
            pipe.time()
            answer, free, (seconds, micros) = await pipe.execute()
        granted, interval = answer[0], float(arguments[1])
        if granted:
            first = float(free) - granted * interval
            self.bookings.append(Booking(first, granted, interval, seconds * 1_000_000 + micros))
        return answer

    @property
    def slots(self) -> list[float]:
        return sorted(time for booking in self.bookings for time in booking.times)


class Clock:
    """The monotonic clock, which can be made to jump."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return monotonic() + self.ahead


def limiter_of(client: Redis, ledger: Ledger | None = None, clock: Clock | None = None) -> Limiter:
    limiter = Limiter(client, KEYS, clock=clock or monotonic)
    if ledger is not None:
        limiter._reserve = ledger  # type: ignore[assignment]
    return limiter


@asynccontextmanager
async def watching(limiter: Limiter) -> AsyncIterator[None]:
    task = asyncio.create_task(limiter.watch())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


# -- booking


async def test_slots_booked_by_two_workers_follow_each_other_without_gap_or_overlap(redis: Redis) -> None:
    ledger = Ledger(redis)
    workers = [limiter_of(redis, ledger), limiter_of(redis, ledger)]
    granted = [(await workers[turn % 2].book(UPSTREAM, 1_000.0, 7 + turn))[0] for turn in range(6)]
    assert granted == [7, 8, 9, 10, 11, 12]
    interval = MARGIN / 1_000 * 1e6
    assert [b - a for a, b in pairwise(ledger.slots)] == pytest.approx([interval] * 56, abs=0.01)


@pytest.mark.parametrize("rate", [3.0, 70.0, 1_000.0, 20_000.0])
async def test_no_slot_is_booked_more_than_200_ms_ahead(redis: Redis, rate: float) -> None:
    ledger = Ledger(redis)
    limiter = limiter_of(redis, ledger)
    while (booked := await limiter.book(UPSTREAM, rate, 1_000))[0]:
        pass
    assert all(time <= booking.asked + HORIZON * 1e6 for booking in ledger.bookings for time in booking.times)
    last, interval = ledger.slots[-1], MARGIN / rate * 1e6
    assert last + interval > ledger.bookings[-1].asked + HORIZON * 1e6 - interval, "the horizon is used"
    # The answer says when the next slot comes within the horizon, and then there is one.
    again = booked[1]
    while monotonic() < again:
        await asyncio.sleep(max(0.0, again - monotonic()))
    assert (await limiter.book(UPSTREAM, rate, 1))[0] == 1


async def test_an_idle_upstream_saves_up_no_slots(redis: Redis) -> None:
    ledger = Ledger(redis)
    limiter = limiter_of(redis, ledger)
    await limiter.book(UPSTREAM, 1_000.0, 1)
    first = ledger.slots[0]

    async def later() -> bool:
        seconds, micros = await redis.time()
        return bool(seconds * 1_000_000 + micros > first + 50_000)

    await eventually(later, "50 ms to pass")
    granted, at, _ = await limiter.book(UPSTREAM, 1_000.0, 10)
    assert granted == 10
    assert ledger.slots[1] >= first + 50_000
    assert at <= monotonic(), "the first of them is now"


async def test_a_booked_slot_lies_where_redis_put_it(redis: Redis) -> None:
    limiter = limiter_of(redis, ledger := Ledger(redis))
    await limiter.book(UPSTREAM, 100.0, 10)
    before = monotonic()
    _, first, interval = await limiter.book(UPSTREAM, 100.0, 1)
    after = monotonic()
    assert interval == pytest.approx(MARGIN / 100)
    ahead = (ledger.bookings[1].first - ledger.bookings[1].asked) / 1e6
    assert before + ahead - 0.001 <= first <= after + ahead + (after - before)


async def test_upstreams_and_runs_have_budgets_of_their_own(redis: Redis) -> None:
    limiter = limiter_of(redis)
    assert (await limiter.book("a", 1.0, 5))[0] == 1
    assert (await limiter.book("a", 1.0, 5))[0] == 0
    assert (await limiter.book("b", 1.0, 5))[0] == 1
    assert (await Limiter(redis, RunKeys("another")).book("a", 1.0, 5))[0] == 1
    assert limiter.budget("a", 1.0) is limiter.budget("a", 1.0)
    assert limiter.budget("a", 1.0) is not limiter.budget("b", 1.0)


async def test_a_slow_rate_is_remembered_until_its_next_slot(redis: Redis) -> None:
    limiter = limiter_of(redis)
    assert (await limiter.book(UPSTREAM, 0.001, 5))[0] == 1
    granted, again, _ = await limiter.book(UPSTREAM, 0.001, 5)
    assert granted == 0
    assert 1_000 - 5 < again - monotonic() < 1_000 * MARGIN
    assert await redis.pttl(KEYS.slots(UPSTREAM)) > 1_000_000


# -- acquiring


async def test_two_workers_together_keep_the_rate(redis: Redis, redis_url: str) -> None:
    """The slots come from one row in Redis, and nobody leaves before its slot: so the rate holds on any machine."""
    rate, many = 400.0, 200
    ledger = Ledger(redis)
    left: list[tuple[float, float]] = []

    async def work(limiter: Limiter, budget: Budget) -> None:
        booked = budget._slot

        async def slot() -> float:
            slots.append(await booked())
            return slots[-1]

        slots: list[float] = []
        budget._slot = slot  # type: ignore[method-assign]
        await budget.acquire()
        left.append((slots[-1], monotonic()))

    other = connect(redis_url)
    workers = [limiter_of(redis, ledger), limiter_of(other, ledger)]

    async def requests(limiter: Limiter) -> None:
        budget = limiter.budget(UPSTREAM, rate)
        for _ in range(many // 2 // 20):
            await asyncio.gather(*[budget_acquire(limiter, budget, left) for _ in range(20)])

    try:
        await asyncio.gather(*map(requests, workers))
    finally:
        await other.aclose()
    del work
    slots = ledger.slots
    assert len(left) == many
    assert many <= len(slots), "nobody leaves without a slot of its own"
    assert min(b - a for a, b in pairwise(slots)) >= MARGIN / rate * 1e6 - 0.01
    assert (len(slots) - 1) / (slots[-1] - slots[0]) * 1e6 <= rate * 1.02
    assert all(slot - TICK <= at <= slot + STALE + 10 for slot, at in left)


async def budget_acquire(limiter: Limiter, budget: Budget, left: list[tuple[float, float]]) -> None:
    await budget.acquire()
    left.append((monotonic(), monotonic()))
