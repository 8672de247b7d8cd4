from __future__ import annotations

import msgpack
import pytest
from redis.asyncio import Redis

from coordinator.stages.constraint import Constraint, Held
from coordinator.stages.figures import NO_FIGURES, StageFigures, WorkerFigures, read_figures, together
from tests.coordinator.parts import ONE, TWO, Run

FETCH = StageFigures("fetch", 31.5, 64)
ONES = WorkerFigures(12.5, (FETCH, StageFigures("commit", 0.25, 1, 40)), (Held(Constraint.RATE, "a.example", 0.5),))


def test_figures_travel_whole_and_only_what_holds_up_the_most() -> None:
    assert WorkerFigures.decode(ONES.encode()) == ONES
    many = WorkerFigures(held=tuple(Held(Constraint.RATE, f"{number}.example", number / 100) for number in range(50)))
    assert [one.name for one in WorkerFigures.decode(many.encode()).held] == [f"{n}.example" for n in range(49, 44, -1)]


@pytest.mark.parametrize(
    "parts",
    [
        b"x",
        (1.0,),
        (-1.0, [], []),
        (float("nan"), [], []),
        ("1", [], []),
        (1.0, [("fetch", 1.0, 1)], []),
        (1.0, [("fetch", 1e300, 1, 0)], []),
        (1.0, [(b"fetch", 1.0, 1, 0)], []),
        (1.0, [("\x1b[2J", 1.0, 1, 0)], []),
        (1.0, [], [("weather", "", 1.0)]),
        (1.0, [("fetch", 1.0, 1, 0)] * 200, []),
    ],
)
def test_what_is_not_ours_is_no_figure(parts: object) -> None:
    packed = parts if isinstance(parts, bytes) else bytes(msgpack.packb(parts))
    assert WorkerFigures.decode(packed) == NO_FIGURES


def test_what_a_newer_version_adds_is_passed_over() -> None:
    assert WorkerFigures.decode(msgpack.packb([*msgpack.unpackb(ONES.encode()), "more"])) == ONES


def test_the_figures_of_all_workers_are_summed_by_stage_and_by_what_holds_them_up() -> None:
    other = WorkerFigures(1.0, (FETCH,), (Held(Constraint.RATE, "a.example", 0.25), Held(Constraint.FETCH, "", 0.5)))
    whole = together([ONES, other])
    assert (whole.rate, whole.stages[0]) == (13.5, StageFigures("fetch", 63.0, 128))
    assert whole.stages[0].busy_words == "63 of 128 busy"
    assert set(whole.held) == {Held(Constraint.RATE, "a.example", 0.75), Held(Constraint.FETCH, "", 0.5)}


@pytest.mark.anyio
async def test_figures_end_with_their_workers_lease(redis: Redis) -> None:
    run = await Run.create(redis)
    for worker in (ONE, TWO):
        await run.streams.join(worker)
        await run.streams.renew(worker, figures=ONES.encode())
    assert (await read_figures(redis, run.keys, [ONE, TWO])).rate == 25.0
    await run.streams.release(ONE)
    assert not await redis.exists(run.keys.figures(ONE))
    assert 0 < await redis.pttl(run.keys.figures(TWO)) <= 10_000
    await redis.sadd(run.keys.figures(ONE), "not ours")
    assert await read_figures(redis, run.keys, [ONE, TWO]) == ONES
