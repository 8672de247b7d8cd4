"""The fleet's rate at one upstream: slots reserved on a real Redis, pauses that stop everybody."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from time import monotonic
from typing import Any

import pytest
from redis.asyncio import Redis

from coordinator.errors import RedisUnavailable
from coordinator.limits.limiter import HORIZON_SECONDS, SLOT_MARGIN, Limiter
from coordinator.limits.matcher import UpstreamMatcher
from coordinator.limits.overrides import LimitOverrides
from coordinator.model import Steering
from coordinator.queue.registry import Runs
from coordinator.redis.keys import RunKeys
from coordinator.redis.scripts import Argument
from coordinator.settings import LimitSettings, Window
from tests.coordinator.parts import LostResult
from tests.simulation.upstream_fleet import UPSTREAM, RedisClock
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

KEYS = RunKeys("run")
# Redis' clock counts microseconds.
MICRO = 2e-6


def a_second(rate: float, *more: Window) -> LimitSettings:
    return LimitSettings((Window(rate, 1.0), *more))


def limiter_of(client: Redis, limit: LimitSettings | None = None) -> Limiter:
    return Limiter(client, KEYS, UpstreamMatcher({UPSTREAM: limit or LimitSettings(), "*": LimitSettings()}))


@pytest.fixture
async def clock(redis: Redis) -> RedisClock:
    """A simulated clock, for Redis too."""
    clock = RedisClock(redis)
    await clock.set(100.0)
    return clock


@asynccontextmanager
async def watching(limiter: Limiter) -> AsyncIterator[None]:
    task = asyncio.create_task(limiter.watch())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def all_slots(clock: RedisClock, limiters: Sequence[Limiter], until: float, wanted: int = 1000) -> list[float]:
    """Every slot that these workers get until then, each asking again when its reservation says so."""
    slots: list[float] = []
    turns = [0.0] * len(limiters)
    while clock() < until:
        again = until
        for number, limiter in enumerate(limiters):
            reservation = await limiter.reserve(UPSTREAM, wanted, turns[number])
            turns[number] = reservation.again_at
            slots += reservation.slots
            again = min(again, reservation.again_at or reservation.slots[0])
        await clock.set(max(again, clock() + 0.001))
    return sorted(slots)


def most_within(slots: Sequence[float], seconds: float) -> int:
    """The most slots in any window of that length."""
    most = first = 0
    for last, slot in enumerate(slots):
        while slots[first] <= slot - seconds:
            first += 1
        most = max(most, last - first + 1)
    return most


# -- reservation


@pytest.mark.parametrize("rate", [3.0, 70.0, 1_000.0, 20_000.0])
async def test_slots_of_two_workers_are_evenly_spaced_and_the_rate_is_kept(
    redis: Redis, clock: RedisClock, rate: float
) -> None:
    workers = [clock.limiter(KEYS, a_second(rate)) for _ in range(2)]
    slots = await all_slots(clock, workers, 100.0 + max(1.0, 10 / rate))
    assert min(b - a for a, b in pairwise(slots)) >= SLOT_MARGIN / rate - MICRO
    assert (len(slots) - 1) / (slots[-1] - slots[0]) == pytest.approx(rate / SLOT_MARGIN, rel=0.01)


async def test_workers_that_ask_alike_get_alike(redis: Redis, clock: RedisClock) -> None:
    one, two = (clock.limiter(KEYS, a_second(1_000.0)) for _ in range(2))
    got = [0, 0]
    for _ in range(100):
        got[0] += len((await one.reserve(UPSTREAM, 500)).slots)
        got[1] += len((await two.reserve(UPSTREAM, 500)).slots)
        await clock.set(clock() + 0.05)
    assert got[0] == pytest.approx(got[1], rel=0.05)


@pytest.mark.parametrize("rate", [3.0, 70.0, 1_000.0, 20_000.0])
async def test_no_slot_is_reserved_more_than_200_ms_ahead_nor_more_than_a_share_at_a_time(
    redis: Redis, clock: RedisClock, rate: float
) -> None:
    limiter = clock.limiter(KEYS, a_second(rate))
    reservations = []
    while (reservation := await limiter.reserve(UPSTREAM, 10_000)).slots:
        reservations.append(reservation.slots)
    assert max(len(slots) for slots in reservations) <= max(1, round(rate * 0.025))
    assert reservations[-1][-1] <= clock() + HORIZON_SECONDS + MICRO
    assert reservations[-1][-1] + SLOT_MARGIN / rate > clock() + HORIZON_SECONDS, "the horizon is used"


@pytest.mark.parametrize(("workers", "rate"), [(2, 3.0), (3, 5.1), (8, 50.0), (64, 50.0)])
async def test_workers_take_turns_in_asking_and_lose_none_of_the_rate(
    redis: Redis, clock: RedisClock, workers: int, rate: float
) -> None:
    limiters = [clock.limiter(KEYS, a_second(rate)) for _ in range(workers)]
    due = [(100.0, number) for number in range(workers)]
    turns, slots, calls = [0.0] * workers, list[float](), 0
    while (at := heapq.heappop(due))[0] < 110.0:
        number = at[1]
        await clock.set(max(at[0], clock()) + 0.0005)
        reservation = await limiters[number].reserve(UPSTREAM, 4, turns[number])
        calls += 1
        slots += reservation.slots
        turns[number] = reservation.again_at
        heapq.heappush(due, (max(turns[number], reservation.slots[-1] if reservation.slots else 0.0), number))
    late = [slot for slot in sorted(slots) if slot >= 103.0]
    assert (len(late) - 1) / (late[-1] - late[0]) == pytest.approx(rate / SLOT_MARGIN, rel=0.01)
    assert calls < 2 * len(slots) + workers, "and hardly ask for nothing"


async def test_a_worker_gets_no_more_than_it_wants(redis: Redis, clock: RedisClock) -> None:
    assert len((await clock.limiter(KEYS, a_second(1_000.0)).reserve(UPSTREAM, 3)).slots) == 3


async def test_who_gets_no_slot_knows_when_to_ask_again(redis: Redis, clock: RedisClock) -> None:
    limiter = clock.limiter(KEYS, a_second(0.001))
    assert len((await limiter.reserve(UPSTREAM, 5)).slots) == 1
    reservation = await limiter.reserve(UPSTREAM, 5)
    assert reservation.slots == ()
    assert reservation.again_at == pytest.approx(100 + 1_000 * SLOT_MARGIN - HORIZON_SECONDS, abs=1e-3)
    assert await redis.pttl(KEYS.slots(UPSTREAM)) > 1_000_000
    await clock.set(reservation.again_at)
    assert len((await limiter.reserve(UPSTREAM, 5)).slots) == 1


async def test_an_idle_upstream_saves_up_no_slots(redis: Redis, clock: RedisClock) -> None:
    limiter = clock.limiter(KEYS, a_second(1_000.0))
    await limiter.reserve(UPSTREAM, 1)
    await clock.set(105.0)
    slots = (await limiter.reserve(UPSTREAM, 10)).slots
    assert slots[0] == pytest.approx(105.0, abs=MICRO)
    assert min(b - a for a, b in pairwise(slots)) >= SLOT_MARGIN / 1_000 - MICRO


async def test_upstreams_and_runs_have_budgets_of_their_own(redis: Redis) -> None:
    upstreams = UpstreamMatcher({"*": a_second(1.0)})
    limiter = Limiter(redis, KEYS, upstreams)
    assert [len((await limiter.reserve(name, 5)).slots) for name in ("a", "a", "b")] == [1, 0, 1]
    assert len((await Limiter(redis, RunKeys("another"), upstreams).reserve("a", 5)).slots) == 1


async def test_slots_lie_on_the_workers_own_clock(redis: Redis) -> None:
    before = monotonic()
    reservation = await limiter_of(redis, a_second(100.0)).reserve(UPSTREAM, 2)
    assert before <= reservation.slots[0] <= monotonic()
    assert reservation.slots[1] - reservation.slots[0] == pytest.approx(SLOT_MARGIN / 100, abs=MICRO)


async def test_redis_that_is_away_or_refuses_is_an_error_of_ours(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    limiter = limiter_of(redis, a_second(10.0))
    with monkeypatch.context() as patch:
        patch.setattr(limiter, "_reserve", LostResult(limiter._reserve))
        with pytest.raises(RedisUnavailable):
            await limiter.reserve(UPSTREAM, 1)
    await redis.delete(KEYS.slots(UPSTREAM))
    await redis.set(KEYS.slots(UPSTREAM), "no hash")
    assert (await limiter.reserve(UPSTREAM, 1)).slots, "what is not ours is deleted, and it begins anew"


# -- several windows


@pytest.mark.parametrize(
    ("windows", "hours"),
    [((Window(50, 1), Window(300, 60)), 0.2), ((Window(5, 1), Window(40, 60), Window(1_000, 3600)), 2)],
)
async def test_no_window_ever_holds_more_than_its_count(
    redis: Redis, clock: RedisClock, windows: tuple[Window, ...], hours: float
) -> None:
    workers = [clock.limiter(KEYS, LimitSettings(windows)) for _ in range(2)]
    slots = await all_slots(clock, workers, 100.0 + hours * 3600)
    for window in windows:
        assert most_within(slots, window.seconds) <= window.count * (1 if window.seconds > 1 else 1.02)
    slowest = min(window.count / window.seconds for window in windows)
    assert len(slots) >= 0.95 * slowest * hours * 3600, "and none is left unused"


async def test_a_long_window_lets_a_burst_through_at_the_short_windows_rate(redis: Redis, clock: RedisClock) -> None:
    limiter = clock.limiter(KEYS, LimitSettings((Window(50, 1), Window(5_000, 3600))))
    slots = await all_slots(clock, [limiter], 160.0)
    assert len(slots) == pytest.approx(60 * 50, rel=0.02)


async def test_a_full_window_says_when_its_oldest_requests_leave_it(redis: Redis, clock: RedisClock) -> None:
    limiter = clock.limiter(KEYS, LimitSettings((Window(1_000, 1), Window(10, 60))))
    assert len((await limiter.reserve(UPSTREAM, 100)).slots) == 10
    reservation = await limiter.reserve(UPSTREAM, 1)
    assert reservation.slots == ()
    assert 160.0 < reservation.again_at <= 161.0
    assert 60_000 < await redis.pttl(KEYS.slots(UPSTREAM)) <= 61_000


async def test_what_is_counted_late_in_a_bucket_is_counted_until_it_is_a_whole_window_ago(
    redis: Redis, clock: RedisClock
) -> None:
    limiter = clock.limiter(KEYS, LimitSettings((Window(1_000, 1), Window(30, 60))))
    await clock.set(100.99)
    first = (await limiter.reserve(UPSTREAM, 100)).slots
    assert len(first) == 10, "one reservation goes into one bucket"
    assert len((await limiter.reserve(UPSTREAM, 100)).slots) == 20
    await clock.set(160.5)
    assert (await limiter.reserve(UPSTREAM, 1)).slots == ()
    await clock.set(161.0)
    assert len((await limiter.reserve(UPSTREAM, 100)).slots) == 10


# -- pauses


async def test_a_pause_of_one_worker_is_seen_by_the_others(redis: Redis) -> None:
    one, two = limiter_of(redis), limiter_of(redis)
    changes: list[float] = []
    two.on_change = lambda: changes.append(two.resumes_at(UPSTREAM))
    async with watching(two):
        await one.pause(UPSTREAM, 30.0)
        await eventually(lambda: bool(changes), "the other to see a change")
        assert changes[0] > monotonic() + 20
        await one.pause("another", 30.0)
        await eventually(lambda: two.resumes_at("another") > monotonic() + 20, "and of the next one")
    assert two.resumes_at(UPSTREAM) == pytest.approx(one.resumes_at(UPSTREAM), abs=5)
    assert two.resumes_at("a third") <= monotonic()


async def test_who_waits_for_changes_is_woken_by_a_pause_and_by_steering(redis: Redis) -> None:
    await redis.hset(KEYS.state, mapping={"state": "running", "epoch": "e"})
    limiter = limiter_of(redis)
    limiter._signal._block_ms = 0  # for ever
    changes = (lambda: limiter_of(redis).pause(UPSTREAM, 1.0), lambda: Runs(redis).steer(KEYS.run, Steering(True)))
    for change in changes:
        await limiter.refresh()
        waiting = asyncio.create_task(limiter._signal.wait())
        await change()
        await asyncio.wait_for(waiting, 20)


async def test_a_look_that_finds_nothing_new_changes_nothing(redis: Redis, clock: RedisClock) -> None:
    limiter = clock.limiter(KEYS, LimitSettings())
    changes: list[None] = []
    limiter.on_change = lambda: changes.append(None)
    await limiter._read_changes()
    for pause in (5.0, 6.0):
        await clock.limiter(KEYS, LimitSettings()).pause(UPSTREAM, pause)
    for _ in range(3):
        await limiter._read_changes()
    assert len(changes) == 1
    await redis.flushall()
    await clock.set(100.0)
    await clock.limiter(KEYS, LimitSettings()).pause("another", 5.0)
    await limiter._read_changes()
    assert limiter.resumes_at("another") > 100, "a Redis that begins anew is read too"


async def test_a_worker_that_does_not_know_of_a_pause_gets_no_slot_in_it(redis: Redis, clock: RedisClock) -> None:
    one, two = (clock.limiter(KEYS, a_second(1_000.0)) for _ in range(2))
    await one.pause(UPSTREAM, 60.0)
    reservation = await two.reserve(UPSTREAM, 5)
    assert reservation.slots == ()
    assert reservation.again_at == pytest.approx(160 - HORIZON_SECONDS, abs=1e-3)
    await clock.set(reservation.again_at)
    assert (await two.reserve(UPSTREAM, 5)).slots[0] >= 160 - MICRO


async def test_a_pause_is_only_ever_raised(redis: Redis, clock: RedisClock) -> None:
    one, two = (clock.limiter(KEYS, LimitSettings()) for _ in range(2))
    await one.pause(UPSTREAM, 60.0)
    await one.pause(UPSTREAM, 1.0)
    assert one.resumes_at(UPSTREAM) == pytest.approx(160)
    await two.pause(UPSTREAM, 1.0)
    assert two.resumes_at(UPSTREAM) == pytest.approx(160), "who pauses learns of the longer pause"
    await two.pause(UPSTREAM, 120.0)
    await one._read_changes()
    assert one.resumes_at(UPSTREAM) == pytest.approx(220)


async def test_a_short_pause_never_ends_a_longer_one_that_redis_does_not_know(
    redis: Redis, clock: RedisClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (clock.limiter(KEYS, LimitSettings()) for _ in range(2))

    async def cut_off(keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        raise OSError("cut off")

    with monkeypatch.context() as patch:
        patch.setattr(one, "_pause", cut_off)
        with pytest.raises(RedisUnavailable):
            await one.pause(UPSTREAM, 60.0)
    await two.pause(UPSTREAM, 2.0)
    await one._read_changes()
    assert one.resumes_at(UPSTREAM) == pytest.approx(160)


async def test_a_pause_that_is_over_is_none_and_leaves_nothing_for_ever(redis: Redis, clock: RedisClock) -> None:
    limiter = clock.limiter(KEYS, LimitSettings())
    await limiter.pause(UPSTREAM, 0.0)
    assert limiter.resumes_at(UPSTREAM) <= clock()
    assert not limiter.needs_slots(UPSTREAM)
    await limiter.pause(UPSTREAM, 1.0)
    assert 0 < await redis.ttl(KEYS.upstreams) <= 7 * 86_400
    assert 0 < await redis.ttl(KEYS.changes) <= 7 * 86_400


async def test_the_watch_survives_a_redis_that_is_away(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    limiter = limiter_of(redis)
    monkeypatch.setattr(limiter, "_changes_since", LostResult(limiter._changes_since))
    await limiter_of(redis).pause(UPSTREAM, 30.0)
    async with watching(limiter):
        await eventually(lambda: limiter.resumes_at(UPSTREAM) > 0, "the watch to go on")


# -- rising after a pause


async def test_after_a_pause_the_rate_rises_from_a_quarter(redis: Redis, clock: RedisClock) -> None:
    workers = [clock.limiter(KEYS, a_second(200.0)) for _ in range(2)]
    await workers[0].pause(UPSTREAM, 10.0)
    slots = await all_slots(clock, workers, 117.0)
    assert slots[0] >= 110 - MICRO
    seconds = [sum(110 + second <= slot < 111 + second for slot in slots) for second in range(7)]
    assert seconds[0] == pytest.approx(200 * 0.325, rel=0.1)
    assert seconds[4] == pytest.approx(200 * 0.925, rel=0.1)
    assert seconds[5] == pytest.approx(200, rel=0.02)
    assert seconds[:5] == sorted(seconds[:5])


async def test_without_a_rate_slots_bound_the_rise_and_then_nothing_does(redis: Redis, clock: RedisClock) -> None:
    workers = [clock.limiter(KEYS, LimitSettings()) for _ in range(2)]
    assert not workers[1].needs_slots(UPSTREAM)
    await workers[0].pause(UPSTREAM, 10.0)
    await workers[1]._read_changes()
    await clock.set(110.0)
    assert all(worker.needs_slots(UPSTREAM) for worker in workers)
    slots = await all_slots(clock, workers, 115.0)
    assert sum(slot < 110.5 for slot in slots) <= 10, "no herd"
    assert sum(114.5 <= slot < 115 for slot in slots) > 1_000
    await clock.set(115.01)
    assert not any(worker.needs_slots(UPSTREAM) for worker in workers)
    assert len((await workers[0].reserve(UPSTREAM, 7)).slots) == 7, "who asks all the same may leave at once"


async def test_the_rise_is_as_long_as_the_pause_but_no_longer_than_five_seconds(
    redis: Redis, clock: RedisClock
) -> None:
    limiter = clock.limiter(KEYS, LimitSettings())
    await limiter.pause("short", 0.5)
    await limiter.pause("long", 500.0)
    rising = {name: limiter._states[name].rising_until - limiter.resumes_at(name) for name in ("short", "long")}
    assert rising == {"short": pytest.approx(0.5), "long": pytest.approx(5.0)}


# -- overrides


async def test_an_override_reaches_every_worker_and_those_that_start_after_it(redis: Redis, clock: RedisClock) -> None:
    await redis.hset(KEYS.state, "state", "running")
    one = clock.limiter(KEYS, LimitSettings((Window(0.01, 1.0),), concurrency=4))
    await one.reserve(UPSTREAM, 1)
    assert (await one.reserve(UPSTREAM, 1)).slots == ()
    changes: list[None] = []
    one.on_change = lambda: changes.append(None)
    live = LimitOverrides(redis, KEYS)
    assert await live.change(UPSTREAM, a_second(100.0), 9)
    await one._read_changes()
    late = clock.limiter(KEYS, a_second(0.01))
    await late._read_changes()
    for limiter in (one, late):
        assert (limiter.rate(UPSTREAM), limiter.concurrency(UPSTREAM)) == (100.0, 9)
    assert changes
    reservation = await one.reserve(UPSTREAM, 1)
    assert reservation.slots[0] < clock() + 0.1, "a slot reserved at the old rate holds nobody up"
    assert await live.change(UPSTREAM, LimitSettings(), 0)
    await one._read_changes()
    assert (one.needs_slots(UPSTREAM), one.concurrency(UPSTREAM)) == (False, None)
    assert await live.change(UPSTREAM, "", "")
    await one._read_changes()
    assert (one.rate(UPSTREAM), one.concurrency(UPSTREAM)) == (0.01, 4)


async def test_an_override_of_all_others_leaves_those_with_an_entry_alone(redis: Redis, clock: RedisClock) -> None:
    await redis.hset(KEYS.state, "state", "running")
    limiter = clock.limiter(KEYS, a_second(3.0))
    await LimitOverrides(redis, KEYS).change("*", a_second(7.0))
    await limiter._read_changes()
    assert (limiter.rate(UPSTREAM), limiter.rate("other.example")) == (3.0, 7.0)
    await LimitOverrides(redis, KEYS).change("other.example", a_second(8.0))
    await limiter._read_changes()
    assert limiter.rate("other.example") == 8.0


async def test_an_override_of_a_host_holds_for_each_of_its_ports(redis: Redis, clock: RedisClock) -> None:
    await redis.hset(KEYS.state, "state", "running")
    limiter = clock.limiter(KEYS, a_second(3.0))
    for host in ("other.example", "[::1]"):
        await LimitOverrides(redis, KEYS).change(host, a_second(7.0))
    await LimitOverrides(redis, KEYS).change("other.example:81", a_second(8.0))
    await limiter._read_changes()
    ports = ("other.example", "other.example:80", "other.example:81", "[::1]:8080", "[::2]:8080", "another.example:80")
    assert [limiter.rate(upstream) for upstream in ports] == [7.0, 7.0, 8.0, 7.0, None, None]
