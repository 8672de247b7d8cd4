"""What each upstream was sent in the last seconds."""

from __future__ import annotations

import msgpack
import pytest
from redis.asyncio import Redis

from coordinator.limits.activity import UpstreamActivity, read_activity
from coordinator.limits.limiter import Limiter
from tests.coordinator.parts import HOST, LIMITS, Run

pytestmark = pytest.mark.anyio


async def test_upstreams_are_listed_with_what_they_were_sent(redis: Redis) -> None:
    run = await Run.create(redis)
    limiter = Limiter(redis, run.keys, LIMITS)
    limiter.report(HOST, sent=30, failed=3)
    limiter.report("other.example", sent=10)
    limiter.report("silent.example", sent=0)
    await limiter.refresh()
    # The second that goes on does not count yet: make it one that has passed.
    now, _ = await redis.time()
    for name, sent, failed in ((HOST, 30, 3), ("other.example", 10, 0)):
        seconds = [[now - 1, sent, failed], [now - 60, 99, 99]]
        await redis.set(run.keys.health(name), msgpack.packb({"seconds": seconds}))
    assert await read_activity(redis, run.keys) == {
        HOST: UpstreamActivity(3.0, 0.1),
        "other.example": UpstreamActivity(1.0, 0.0),
    }
    assert 0 < await redis.ttl(run.keys.active) <= 60


async def test_an_upstream_that_was_not_sent_to_for_a_minute_is_forgotten(redis: Redis) -> None:
    run = await Run.create(redis)
    now, _ = await redis.time()
    await redis.zadd(run.keys.active, {"old.example": now - 61})
    limiter = Limiter(redis, run.keys, LIMITS)
    limiter.report(HOST)
    await limiter.refresh()
    assert await redis.zrange(run.keys.active, 0, -1) == [HOST.encode()]


@pytest.mark.parametrize("health", [b"\xc1", msgpack.packb(7), msgpack.packb({"seconds": [[1]]}), msgpack.packb({})])
async def test_what_another_program_wrote_is_nothing(redis: Redis, health: bytes) -> None:
    run = await Run.create(redis)
    await redis.zadd(run.keys.active, {HOST: 1})
    await redis.set(run.keys.health(HOST), health)
    assert await read_activity(redis, run.keys) == {HOST: UpstreamActivity(0.0, 0.0)}
    await redis.delete(run.keys.active)
    await redis.set(run.keys.active, "text")
    assert await read_activity(redis, run.keys) == {}
