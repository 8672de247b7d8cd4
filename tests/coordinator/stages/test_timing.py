from __future__ import annotations

from dataclasses import replace

import pytest
from redis.asyncio import Redis

from coordinator.stages.timing import BOUNDS, StageTiming, Timing, read_timings
from tests.coordinator.parts import ONE, Run, completion, numbered

pytestmark = pytest.mark.anyio


async def test_only_what_has_grown_is_taken_and_each_item_once() -> None:
    timing = Timing()
    assert timing.take("fetch") == {}
    for seconds in (0.00005, 0.0001, 0.05, 500.0):
        timing.add(seconds)
    last = len(BOUNDS)
    assert timing.take("fetch") == {"fetch 0": 2, "fetch 6": 1, f"fetch {last}": 1, "fetch us": 500_050_150}
    assert timing.take("fetch") == {}
    timing.add(0.05)
    assert timing.take("fetch") == {"fetch 6": 1, "fetch us": 50_000}


async def test_a_completion_counts_times_once_and_for_the_whole_run(redis: Redis) -> None:
    run = await Run.create(redis)
    await run.publish(numbered(100))
    await run.streams.join(ONE)
    claims = await run.drain(ONE)
    first = replace(completion(claims), timings={"transform a b 0": 2, "transform a b us": 30})
    for _ in range(2):  # a repeated call
        await run.streams.complete(ONE, 1, first)
    await run.streams.complete(ONE, 2, replace(completion([]), timings={"transform a b 13": 1}))
    counts = (2, *(0 for _ in BOUNDS[1:]), 1)
    assert await read_timings(redis, run.keys) == {"transform a b": StageTiming(counts, 0.00003)}
    assert StageTiming(counts, 0.00003).items == 3


async def test_what_another_program_has_put_there_stops_nothing(redis: Redis) -> None:
    run = await Run.create(redis)
    await run.publish(numbered(10))
    await run.streams.join(ONE)
    claims = await run.drain(ONE)
    await redis.hset(
        run.keys.timings, mapping={"fetch 0": "x", "fetch 99": "1", f"fetch {'9' * 5000}": "1", "weather": "1"}
    )
    await run.streams.complete(ONE, 1, replace(completion(claims), timings={"fetch 0": 1, "parse 0": 1}))
    assert await read_timings(redis, run.keys) == {}
    await redis.hdel(run.keys.timings, "fetch 0")
    assert (await read_timings(redis, run.keys)).keys() == {"parse"}
    await redis.delete(run.keys.timings)
    await redis.sadd(run.keys.timings, "x")
    await run.streams.complete(ONE, 2, replace(completion([]), timings={"fetch 0": 1}))
    assert await read_timings(redis, run.keys) == {}
