"""The history of a run: bounded, and true at every resolution."""

from __future__ import annotations

from itertools import pairwise

import msgpack
import pytest
from redis.asyncio import Redis

from coordinator.model import Outcome
from coordinator.queue.history import (
    KEPT_SECONDS,
    LEAST_SECONDS,
    MOST_POINTS,
    HistoryKeeper,
    HistoryPoint,
    is_due,
    pace,
    read_history,
    with_point,
)
from tests.coordinator.parts import ONE, Run, completion, numbered


def at(seconds: float, done: int = 0) -> HistoryPoint:
    return HistoryPoint(seconds, done, 0, done)


@pytest.mark.parametrize("hours", [0.5, 1, 24, 7 * 24])
def test_however_long_a_run_lasts_its_history_is_bounded_and_evenly_spaced(hours: float) -> None:
    points: list[HistoryPoint] = []
    now = 1_000_000.0
    for second in range(0, int(hours * 3600), int(LEAST_SECONDS)):
        if is_due(points, now + second):
            points = list(with_point(points, at(now + second, second)))
    assert len(points) <= MOST_POINTS + 1
    gaps = [after.at - before.at for before, after in pairwise(points)]
    assert max(gaps) <= 2 * max(LEAST_SECONDS, hours * 3600 / (MOST_POINTS / 2))
    assert all(one.done == one.at - now for one in points), "what is left out takes nothing from the others"
    assert points[0].at == now
    assert points[-1].at > now + hours * 3600 - max(gaps) - LEAST_SECONDS


@pytest.mark.parametrize(
    ("points", "now", "due"),
    [
        ([], 100.0, True),
        ([at(100)], 104.0, False),
        ([at(100)], 105.0, True),
        ([at(100)], 90.0, True),
        ([at(0), at(LEAST_SECONDS * MOST_POINTS)], LEAST_SECONDS * MOST_POINTS + 6, False),
    ],
)
def test_when_a_point_is_due(points: list[HistoryPoint], now: float, due: bool) -> None:
    assert is_due(points, now) is due


def test_a_clock_that_was_set_back_takes_points_back() -> None:
    assert with_point([at(100), at(200)], at(150, 7)) == [at(100), at(150, 7)]


@pytest.mark.parametrize(
    ("points", "now", "rate"),
    [
        ([], at(100, 50), 0.0),
        ([at(100, 50)], at(100, 50), 0.0),
        ([at(98, 0)], at(100, 50), 25.0),
        ([at(0, 0), at(85, 20), at(95, 40)], at(100, 50), 2.0),
        ([at(0, 100)], at(100, 50), 0.0),
    ],
)
def test_the_pace_is_that_of_the_last_seconds(points: list[HistoryPoint], now: HistoryPoint, rate: float) -> None:
    assert pace(points, now) == rate


@pytest.mark.anyio
async def test_the_keeper_adds_what_redis_has_now(redis: Redis) -> None:
    run = await Run.create(redis)
    await run.publish(numbered(100))
    await run.streams.join(ONE)
    claims = await run.drain(ONE)
    await HistoryKeeper(redis, run.keys).record()
    await run.streams.complete(ONE, 1, completion(claims, Outcome.FAILED, requests=120))
    await HistoryKeeper(redis, run.keys).record()
    (first,) = await read_history(redis, run.keys)
    assert (first.done, first.failed, first.requests) == (0, 0, 0)
    # Another coordinator goes on with what the one before it has kept.
    keeper = HistoryKeeper(redis, run.keys)
    await redis.set(run.keys.history, msgpack.packb([first._replace(at=first.at - 60)]))
    await keeper.record()
    before, now = await read_history(redis, run.keys)
    assert (before.at, now.done, now.failed, now.requests) == (first.at - 60, 100, 100, 120)
    assert 0 < await redis.ttl(run.keys.history) <= KEPT_SECONDS


@pytest.mark.anyio
@pytest.mark.parametrize("value", [b"", b"\x93", *map(msgpack.packb, ("text", [[1, 2]], [["a"] * 4]))])
async def test_what_another_program_wrote_is_no_history(redis: Redis, value: bytes) -> None:
    run = await Run.create(redis)
    await redis.set(run.keys.history, value)
    assert await read_history(redis, run.keys) == []
    await redis.delete(run.keys.history)
    await redis.sadd(run.keys.history, "a set")
    assert await read_history(redis, run.keys) == []
    await HistoryKeeper(redis, run.keys).record()
    assert len(await read_history(redis, run.keys)) == 1
