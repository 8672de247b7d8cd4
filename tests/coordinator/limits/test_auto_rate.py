"""rate = "auto": a simulated fleet finds what a simulated upstream bears, with the real scripts on a real Redis."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from coordinator.limits.upstream_health import read_upstream_health
from coordinator.redis.keys import RunKeys
from coordinator.settings import LimitSettings, Window
from tests.simulation.upstream_fleet import OK, THROTTLED, UPSTREAM, Fleet, LeakyBucket, RedisClock

pytestmark = pytest.mark.anyio

KEYS = RunKeys("run")
AUTO = LimitSettings(auto=True)


async def fleet_at(redis: Redis, upstream: LeakyBucket, limit: LimitSettings = AUTO) -> Fleet:
    clock = RedisClock(redis)
    await clock.set(0.0)
    return Fleet(clock, [clock.limiter(KEYS, limit) for _ in range(2)], upstream)


async def found(redis: Redis) -> float:
    (health,) = await read_upstream_health(redis, KEYS)
    assert health.upstream == UPSTREAM
    assert health.found_rate is not None
    return health.found_rate


@pytest.mark.parametrize(("rate", "burst"), [(200, 5), (20, 5), (60, 30)])
async def test_after_thirty_seconds_the_fleet_gets_nine_tenths_with_hardly_a_429(
    redis: Redis, rate: float, burst: float
) -> None:
    fleet = await fleet_at(redis, LeakyBucket(rate, burst))
    await fleet.run(60.0)
    assert fleet.count(OK, after=30.0) >= 0.9 * rate * 30
    assert fleet.count(THROTTLED) > 0, "or nothing was found"
    assert fleet.count(THROTTLED) < 0.01 * fleet.count()
    assert fleet.count(THROTTLED, after=30.0) < 0.01 * fleet.count(after=30.0)


@pytest.mark.parametrize("ceiling", [50, 4])
async def test_the_ceiling_is_never_exceeded(redis: Redis, ceiling: int) -> None:
    fleet = await fleet_at(redis, LeakyBucket(200), LimitSettings((Window(ceiling, 1),), auto=True))
    await fleet.run(20.0)
    assert fleet.count(THROTTLED) == 0
    assert 0.95 * ceiling * 10 < fleet.count(after=10.0) <= ceiling * 10
    assert await found(redis) == ceiling


@pytest.mark.slow
async def test_a_limit_that_falls_is_followed_at_once_and_one_that_rises_is_found_again(redis: Redis) -> None:
    upstream = LeakyBucket(100)
    fleet = await fleet_at(redis, upstream)
    await fleet.run(30.0)
    upstream.rate = 25
    await fleet.run(60.0)
    assert fleet.count(OK, after=40.0) >= 0.85 * 25 * 20
    assert fleet.count(THROTTLED, after=40.0) < 0.02 * fleet.count(after=40.0)
    upstream.rate = 100
    await fleet.run(200.0)
    assert await found(redis) > 80


async def test_what_was_found_is_kept_for_those_who_come_next(redis: Redis) -> None:
    fleet = await fleet_at(redis, LeakyBucket(200))
    await fleet.run(25.0)
    before = await found(redis)
    again = Fleet(fleet.clock, [fleet.clock.limiter(KEYS, AUTO)], LeakyBucket(200))
    await again.run(30.0)
    assert await found(redis) == before > 180
    assert again.count(OK) > 0.9 * 5 * 180


async def test_one_step_is_taken_however_many_workers_report(redis: Redis) -> None:
    clock = RedisClock(redis)
    await clock.set(0.0)
    limiters = [clock.limiter(KEYS, AUTO) for _ in range(20)]
    for limiter in limiters:
        limiter.report(UPSTREAM, 10)
        await limiter._send_report()
    await clock.set(1.0)
    for limiter in limiters:
        limiter.report(UPSTREAM, 10)
        await limiter._send_report()
    assert await found(redis) == 15
    await clock.set(1.9)
    for limiter in limiters:
        limiter.report(UPSTREAM, 10, throttled=5)
        await limiter._send_report()
    assert await found(redis) == 7.5, "halved once"


async def test_a_rate_that_nobody_uses_up_is_not_raised(redis: Redis) -> None:
    clock = RedisClock(redis)
    await clock.set(0.0)
    limiter = clock.limiter(KEYS, AUTO)
    for second in range(20):
        await clock.set(float(second))
        limiter.report(UPSTREAM, 2)
        await limiter._send_report()
    assert await found(redis) == 10


async def test_rising_latency_ends_the_climb(redis: Redis) -> None:
    """An upstream that queues what it cannot bear: 100 a second, and then each response takes longer."""
    clock = RedisClock(redis)
    await clock.set(0.0)
    queue = LeakyBucket(100, burst=1e9)

    def latency(at: float) -> float:
        return 0.02 + max(0.0, queue._level - (at - queue._at) * queue.rate) / queue.rate

    fleet = Fleet(clock, [clock.limiter(KEYS, AUTO)], queue, latency)
    await fleet.run(60.0)
    assert fleet.count(after=30.0) < 130 * 30
    assert await found(redis) < 150
