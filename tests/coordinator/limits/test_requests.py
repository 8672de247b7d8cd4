"""How many requests each upstream was sent: counted by what workers report, for the metrics."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from coordinator.limits.activity import OTHER_UPSTREAMS, UpstreamRequests, read_requests
from coordinator.limits.limiter import Limiter
from coordinator.redis.keys import RunKeys
from coordinator.settings import LimitSettings
from tests.simulation.upstream_fleet import UPSTREAM, RedisClock

pytestmark = pytest.mark.anyio

KEYS = RunKeys("run")


@pytest.fixture
async def limiters(redis: Redis) -> list[Limiter]:
    clock = RedisClock(redis)
    await clock.set(100.0)
    return [clock.limiter(KEYS, LimitSettings()) for _ in range(2)]


async def test_all_workers_count_together_and_a_503_counts_once(redis: Redis, limiters: list[Limiter]) -> None:
    for limiter in limiters:
        limiter.report(UPSTREAM, throttled=1)
        limiter.report(UPSTREAM, throttled=1, failed=1)
        limiter.report(UPSTREAM, failed=1)
        for _ in range(4):
            limiter.report(UPSTREAM)
        await limiter._send_report()
    found = await read_requests(redis, KEYS)
    assert found == {UPSTREAM: UpstreamRequests(sent=14, throttled=2, failed=4)}
    assert found[UPSTREAM].accepted == 8


async def test_they_count_while_a_breaker_is_open(redis: Redis, limiters: list[Limiter]) -> None:
    for _ in range(2):
        limiters[0].report(UPSTREAM, 20, failed=20)
        await limiters[0]._send_report()
    assert limiters[0].slot_missed(UPSTREAM) is None
    await limiters[0]._send_report()
    assert await read_requests(redis, KEYS) == {UPSTREAM: UpstreamRequests(40, 0, 40)}


async def test_upstreams_after_the_first_thousand_count_together(redis: Redis, limiters: list[Limiter]) -> None:
    await redis.hset(KEYS.requests, mapping={f"host-{number}": "1 0 0" for number in range(1000)})
    for name in ("late-1", "late-2", "host-7", "late-1"):
        limiters[0].report(name)
        await limiters[0]._send_report()
    found = await read_requests(redis, KEYS)
    assert len(found) == 1001
    assert (found[OTHER_UPSTREAMS].sent, found["host-7"].sent) == (3, 2)


@pytest.mark.parametrize("garbage", ["", "x", "1 2", "-1 0 0", "9" * 400 + " 0 0", "1e9 0 0"])
async def test_what_is_not_ours_is_left_out_and_counted_anew(
    redis: Redis, limiters: list[Limiter], garbage: str
) -> None:
    await redis.hset(KEYS.requests, mapping={UPSTREAM: garbage})
    assert await read_requests(redis, KEYS) == {}
    limiters[0].report(UPSTREAM)
    await limiters[0]._send_report()
    assert await read_requests(redis, KEYS) == {UPSTREAM: UpstreamRequests(1, 0, 0)}
    await redis.delete(KEYS.requests)
    await redis.sadd(KEYS.requests, "x")
    assert await read_requests(redis, KEYS) == {}
    limiters[0].report(UPSTREAM)
    await limiters[0]._send_report()
    assert (await read_requests(redis, KEYS))[UPSTREAM].sent == 1
