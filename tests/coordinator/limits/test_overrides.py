"""Limits that are changed while a run goes on, and what `status` shows of upstreams."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from coordinator.limits.overrides import LimitOverride, LimitOverrides
from coordinator.limits.upstream_health import UpstreamHealth, read_upstream_health
from coordinator.redis.keys import RunKeys
from coordinator.settings import LimitSettings, Window

pytestmark = pytest.mark.anyio

KEYS = RunKeys("run")
FIVE = LimitSettings((Window(5.0, 1.0), Window(100.0, 60.0)))
AUTO = LimitSettings((Window(200.0, 1.0),), auto=True)


@pytest.mark.parametrize(
    ("live", "limit"),
    [
        (LimitOverride(), LimitSettings((Window(1, 1),), concurrency=4)),
        (LimitOverride(FIVE), LimitSettings(FIVE.windows, concurrency=4)),
        (LimitOverride(AUTO), LimitSettings(AUTO.windows, True, 4)),
        (LimitOverride(LimitSettings(), 0), LimitSettings()),
        (LimitOverride(None, 9), LimitSettings((Window(1, 1),), concurrency=9)),
    ],
)
async def test_only_what_was_changed_holds_over_the_jobs_limit(live: LimitOverride, limit: LimitSettings) -> None:
    assert live.over(LimitSettings((Window(1, 1),), concurrency=4)) == limit


async def test_what_is_changed_is_kept_until_it_is_changed_again(redis: Redis) -> None:
    await redis.hset(KEYS.state, "state", "running")
    live = LimitOverrides(redis, KEYS)
    assert await live.change("a.example", FIVE)
    assert await live.change("a.example", None, 7)
    assert await live.change("*.b.example", AUTO, 0)
    first, second = await read_upstream_health(redis, KEYS)
    assert (first, first.summary) == (
        UpstreamHealth("*.b.example", override=LimitOverride(AUTO, 0)),
        "live rate auto, at most 200/s, live concurrency none",
    )
    assert (second, second.summary) == (
        UpstreamHealth("a.example", override=LimitOverride(FIVE, 7)),
        "live rate 5/s and 100/min, live concurrency 7",
    )
    assert await live.change("a.example", "")
    assert (await read_upstream_health(redis, KEYS))[1].override == LimitOverride(None, 7)
    assert await live.change("a.example", "", "")
    assert [health.upstream for health in await read_upstream_health(redis, KEYS)] == ["*.b.example"]


@pytest.mark.parametrize("state", [None, "complete"])
async def test_a_run_that_is_over_or_unknown_is_not_limited(redis: Redis, state: str | None) -> None:
    if state:
        await redis.hset(KEYS.state, "state", state)
    assert not await LimitOverrides(redis, KEYS).change("a.example", FIVE)
    assert not await redis.exists(KEYS.limits, KEYS.changes)
