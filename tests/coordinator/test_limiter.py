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
from coordinator.limiter import HORIZON, MARGIN, Budget, Limiter
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
    granted = [(await workers[turn % 2].book(UPSTREAM, 300.0, 7 + turn))[0] for turn in range(6)]
    assert sum(granted) == len(ledger.slots)
    assert granted[0] == 7
    for before, after in pairwise(ledger.bookings):
        # The next slot is free, or it is past: then there was a gap in the asking, and the booking starts anew.
        free = before.times[-1] + MARGIN / 300 * 1e6
        assert abs(after.first - free) < 1 or free < before.asked <= after.first <= after.asked


@pytest.mark.parametrize("rate", [3.0, 70.0, 1_000.0, 20_000.0])
async def test_no_slot_is_booked_more_than_200_ms_ahead(redis: Redis, rate: float) -> None:
    ledger = Ledger(redis)
    limiter = limiter_of(redis, ledger)
    granted = [(await limiter.book(UPSTREAM, rate, 1_000))[0] for _ in range(6)]
    assert min(granted) < 1_000
    assert all(time <= booking.asked + HORIZON * 1e6 for booking in ledger.bookings for time in booking.times)
    last, interval = ledger.slots[-1], MARGIN / rate * 1e6
    assert last + interval > ledger.bookings[-1].asked + HORIZON * 1e6 - interval, "the horizon is used"


async def test_who_gets_no_slot_is_told_when_to_ask_again(redis: Redis) -> None:
    limiter = limiter_of(redis)
    wait = MARGIN / 4.0 - HORIZON
    before = monotonic()
    assert (await limiter.book(UPSTREAM, 4.0, 5))[0] == 1
    granted, again, _ = await limiter.book(UPSTREAM, 4.0, 5)
    assert granted == 0
    assert before + wait - 0.001 <= again <= monotonic() + wait

    async def granted_now() -> bool:
        return (await limiter.book(UPSTREAM, 4.0, 5))[0] == 1

    await eventually(granted_now, "the next slot")


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


def traced(budget: Budget) -> dict[asyncio.Task[Any] | None, float]:
    """The last slot of each task that acquires."""
    taken: dict[asyncio.Task[Any] | None, float] = {}
    booked = budget._slot

    async def slot() -> float:
        found = taken[asyncio.current_task()] = await booked()
        return found

    budget._slot = slot  # type: ignore[method-assign]
    return taken


async def test_two_workers_together_keep_the_rate(redis: Redis, redis_url: str) -> None:
    """The slots come out of one key in Redis, and nobody leaves before its own: so the rate holds on any machine."""
    rate, many = 400.0, 200
    ledger = Ledger(redis)
    other = connect(redis_url)
    left: list[tuple[float, float]] = []

    async def work(limiter: Limiter) -> None:
        budget = limiter.budget(UPSTREAM, rate)
        taken = traced(budget)

        async def request() -> None:
            await budget.acquire()
            left.append((taken[asyncio.current_task()], monotonic()))

        await asyncio.gather(*[request() for _ in range(many // 2)])

    try:
        await asyncio.gather(work(limiter_of(redis, ledger)), work(limiter_of(other, ledger)))
    finally:
        await other.aclose()
    assert len({slot for slot, _ in left}) == many, "nobody shares a slot"
    assert all(at >= slot - TICK for slot, at in left), "nobody leaves before its slot"
    slots = ledger.slots
    assert len(slots) >= many
    assert min(b - a for a, b in pairwise(slots)) >= MARGIN / rate * 1e6 - 1
    assert (len(slots) - 1) / (slots[-1] - slots[0]) * 1e6 <= rate * 1.02


async def test_a_worker_books_what_it_needs_and_at_most_a_share_at_a_time(redis: Redis) -> None:
    ledger = Ledger(redis)
    budget = limiter_of(redis, ledger).budget(UPSTREAM, 2_000.0)
    await asyncio.gather(*[budget.acquire() for _ in range(120)])
    await budget.acquire()
    assert sum(booking.slots for booking in ledger.bookings) >= 121
    assert max(booking.slots for booking in ledger.bookings) <= 50
    assert ledger.bookings[-1].slots == 1


async def test_without_a_rate_nothing_is_booked(redis: Redis) -> None:
    ledger = Ledger(redis)
    budget = limiter_of(redis, ledger).budget(UPSTREAM, None)
    for _ in range(100):
        await budget.acquire()
    assert not ledger.bookings
    assert not await redis.keys()


async def test_a_slot_that_was_slept_past_is_dropped(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was frozen for ten seconds must not send at once all that it had booked before."""
    clock, ledger = Clock(), Ledger(redis)
    limiter = limiter_of(redis, ledger, clock)
    budget = limiter.budget(UPSTREAM, 100.0)
    taken = traced(budget)
    book = limiter.book

    async def book_and_freeze(upstream: str, rate: float, wanted: int) -> tuple[int, float, float]:
        found = await book(upstream, rate, wanted)
        if len(ledger.bookings) == 1:
            clock.ahead += 10.0
        return found

    monkeypatch.setattr(limiter, "book", book_and_freeze)
    await budget.acquire()
    assert len(ledger.slots) == 2, "the stale slot is dropped and another one booked"
    assert clock() - taken[asyncio.current_task()] < 5


async def test_waiters_that_were_cancelled_take_no_slots(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    limiter = limiter_of(redis, ledger := Ledger(redis))
    budget = limiter.budget(UPSTREAM, 1_000.0)
    book, go, asked = limiter.book, asyncio.Event(), asyncio.Event()

    async def book_later(upstream: str, rate: float, wanted: int) -> tuple[int, float, float]:
        asked.set()
        await go.wait()
        return await book(upstream, rate, wanted)

    monkeypatch.setattr(limiter, "book", book_later)
    first = asyncio.create_task(budget.acquire())
    await asked.wait()
    others = [asyncio.create_task(budget.acquire()) for _ in range(10)]
    await eventually(lambda: len(budget._waiting) == 11, "all to wait")
    for task in others[2:8]:
        task.cancel()
    await asyncio.wait(others[2:8])
    go.set()
    async with asyncio.timeout(20):
        await asyncio.gather(first, *others[:2], *others[8:])
    assert all(task.cancelled() for task in others[2:8])
    assert [booking.slots for booking in ledger.bookings] == [1, 4]


async def test_cancelling_all_waiters_leaves_a_budget_that_works(redis: Redis) -> None:
    budget = limiter_of(redis).budget(UPSTREAM, 50.0)
    waiters = [asyncio.create_task(budget.acquire()) for _ in range(20)]
    await eventually(lambda: len(budget._waiting) > 0, "some to wait")
    for task in waiters:
        task.cancel()
    await asyncio.wait(waiters)
    await asyncio.wait_for(budget.acquire(), 10)


async def test_a_booking_waits_for_redis_and_goes_on(
    redis: Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    limiter = limiter_of(redis)
    monkeypatch.setattr(limiter, "_reserve", LostAnswer(limiter._reserve))
    await limiter.budget(UPSTREAM, 1_000.0).acquire()
    assert "rate limit of example.org waits for Redis: Redis does not answer" in caplog.text


async def test_an_error_that_waiting_does_not_heal_reaches_every_waiter(redis: Redis) -> None:
    await redis.hset(KEYS.slots(UPSTREAM), "not", "a string")
    budget = limiter_of(redis).budget(UPSTREAM, 10.0)
    async with asyncio.timeout(20):
        answers = await asyncio.gather(*[budget.acquire() for _ in range(3)], return_exceptions=True)
    assert [type(answer) for answer in answers] == [RedisRefused] * 3
    await redis.delete(KEYS.slots(UPSTREAM))
    await budget.acquire()


# -- pauses


async def test_a_pause_of_one_worker_is_seen_by_the_others(redis: Redis) -> None:
    one, two = limiter_of(redis), limiter_of(redis)
    async with watching(two):
        await one.pause(UPSTREAM, 30.0)
        await eventually(lambda: two.resumes(UPSTREAM) > monotonic() + 20, "the other to learn of the pause")
    assert two.resumes(UPSTREAM) == pytest.approx(one.resumes(UPSTREAM), abs=5)
    assert two.resumes("another upstream") <= monotonic()
    assert (await two.running_pauses()).keys() == {UPSTREAM}


async def test_a_worker_that_has_not_heard_of_a_pause_gets_no_slot_in_it(redis: Redis) -> None:
    one, two = limiter_of(redis), limiter_of(redis, ledger := Ledger(redis))
    before = monotonic()
    await one.pause(UPSTREAM, 60.0)
    granted, again, _ = await two.book(UPSTREAM, 1_000.0, 5)
    assert granted == 0
    assert before + 59 < again < monotonic() + 60
    await one.pause("short", 0.1)
    assert (await two.book("short", 1_000.0, 1))[0] == 1
    pauses = {name: float(ends) for name, ends in (await redis.hgetall(KEYS.pauses)).items()}
    assert ledger.slots[0] >= pauses[b"short"], "it begins where the pause ends"


@pytest.mark.parametrize("rate", [None, 200.0])
async def test_nobody_leaves_during_a_pause(redis: Redis, rate: float | None) -> None:
    limiter = limiter_of(redis)
    budget = limiter.budget(UPSTREAM, rate)
    await limiter.pause(UPSTREAM, 0.2)
    left: list[float] = []

    async def request() -> None:
        await budget.acquire()
        left.append(monotonic())

    await asyncio.gather(*[request() for _ in range(5)])
    assert min(left) >= limiter.resumes(UPSTREAM) - TICK


@pytest.mark.parametrize("whose", ["own", "another worker's"])
async def test_a_pause_voids_slots_that_were_booked_before(
    redis: Redis, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    limiter = limiter_of(redis, ledger := Ledger(redis))
    other = limiter_of(redis)
    budget = limiter.budget(UPSTREAM, 1_000.0)
    book = limiter.book

    async def book_and_pause(upstream: str, rate: float, wanted: int) -> tuple[int, float, float]:
        found = await book(upstream, rate, wanted)
        if len(ledger.bookings) == 1:
            await (limiter if whose == "own" else other).pause(UPSTREAM, 0.3)
            await eventually(lambda: limiter.resumes(UPSTREAM) > 0, "the pause to be known")
        return found

    monkeypatch.setattr(limiter, "book", book_and_pause)
    async with watching(limiter):
        await asyncio.gather(*[budget.acquire() for _ in range(5)])
        left = monotonic()
    assert left >= limiter.resumes(UPSTREAM) - TICK
    ends = float(await redis.hget(KEYS.pauses, UPSTREAM) or 0)
    first = ledger.bookings[0]
    assert len([slot for slot in ledger.slots if slot >= ends]) >= 5, "all five got a slot after the pause"
    assert all(slot < ends for slot in first.times)


async def test_a_pause_is_only_ever_raised(redis: Redis) -> None:
    one, two = limiter_of(redis), limiter_of(redis)
    await one.pause(UPSTREAM, 60.0)
    ends = one.resumes(UPSTREAM)
    await one.pause(UPSTREAM, 1.0)
    assert one.resumes(UPSTREAM) >= ends
    await two.pause(UPSTREAM, 1.0)
    assert two.resumes(UPSTREAM) > monotonic() + 50, "who pauses learns of the longer pause"
    assert (await one.running_pauses())[UPSTREAM] > 50
    await two.pause(UPSTREAM, 120.0)
    assert (await one.running_pauses())[UPSTREAM] > 110


async def test_a_short_pause_never_ends_a_longer_one_that_redis_has_not_heard_of(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = limiter_of(redis), limiter_of(redis)

    async def cut_off(keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        raise OSError("cut off")

    with monkeypatch.context() as patch:
        patch.setattr(one, "_pause", cut_off)
        with pytest.raises(RedisUnavailable):
            await one.pause(UPSTREAM, 60.0)
    assert one.resumes(UPSTREAM) > monotonic() + 50
    await one.pause(UPSTREAM, 2.0)
    await two.pause(UPSTREAM, 2.0)
    await two.pause("later", 30.0)
    async with watching(one):
        await eventually(lambda: one.resumes("later") > 0, "the other's pauses to be heard")
    assert one.resumes(UPSTREAM) > monotonic() + 50


async def test_a_pause_that_is_over_is_none(redis: Redis) -> None:
    limiter = limiter_of(redis)
    await limiter.pause(UPSTREAM, 0.0)
    assert await limiter.running_pauses() == {}
    assert 0 < await redis.ttl(KEYS.pauses) <= 86_400
    await limiter.budget(UPSTREAM, None).acquire()


async def test_the_watch_survives_a_redis_that_is_away(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    limiter = limiter_of(redis)
    monkeypatch.setattr(limiter, "_paused", LostAnswer(limiter._paused))
    await limiter_of(redis).pause(UPSTREAM, 30.0)
    async with watching(limiter):
        await eventually(lambda: limiter.resumes(UPSTREAM) > 0, "the watch to go on")
