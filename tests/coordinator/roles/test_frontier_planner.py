"""The frontier planner on a real Redis: what waits in Postgres is published by depth, within room and bounds, once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from coordinator.errors import EpochLost, PostgresUnavailable
from coordinator.model import FoundBatch, FoundKey, Outcome
from coordinator.queue.found import Frontier
from coordinator.queue.sharding import digest
from coordinator.roles import frontier_planner
from coordinator.roles.election import Election
from coordinator.roles.frontier_planner import FrontierPlanner
from coordinator.tasks import cancel_and_wait
from tests.coordinator.parts import COORDINATOR, ONE, LostResult, Run, a_found_batch, numbered, record_of
from tests.waiting import eventually

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frontier_planner, "FRONTIER_POLL_SECONDS", 0.005)
    monkeypatch.setattr(frontier_planner, "REDIS_RETRY_SECONDS", 0.005)


class Found:
    """What Postgres has of a run's found keys. The next `faults` reads fail; reads wait until `go` is set."""

    def __init__(self, run: Run, *batches: FoundBatch) -> None:
        self.batches = {(batch.batch, batch.depth): batch for batch in batches}
        self.frontier = Frontier(run.client, run.keys, run.layout, run.record.epoch)
        self.read_batches: list[int] = []
        self.faults = 0
        self.go = asyncio.Event()
        self.go.set()

    async def add(self, *batches: FoundBatch) -> None:
        """Add batches to Postgres and the frontier."""
        self.batches |= {(batch.batch, batch.depth): batch for batch in batches}
        await self.frontier.add(batches)

    async def read(self, batch: FoundBatch) -> Sequence[FoundKey]:
        self.read_batches.append(batch.batch)
        await self.go.wait()
        if self.faults:
            self.faults -= 1
            raise PostgresUnavailable("Postgres does not answer")
        return self.batches[batch.batch, batch.depth].keys


async def a_run(redis: Redis, *, exhausted: bool = True) -> tuple[Run, Found]:
    """A run whose source has no key."""
    run = await Run.create(redis, record_of(follows=True))
    await run.streams.join(ONE)  # before that, or the run were resolved
    await run.publish([], exhausted=exhausted)
    return run, Found(run)


def planner_of(
    run: Run,
    found: Found,
    name: str = COORDINATOR,
    *,
    high_water: int = 10_000,
    by_level: bool = False,
    most: Mapping[int, int] | None = None,
) -> FrontierPlanner:
    return FrontierPlanner(
        coordinator_id=name,
        frontier=Frontier(run.client, run.keys, run.layout, run.record.epoch),
        done=run.done,
        layout=run.layout,
        counts=run.counts,
        read_found=found.read,
        high_water=high_water,
        by_level=by_level,
        most=most or {},
    )


@asynccontextmanager
async def planning(planner: FrontierPlanner) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(planner.plan())
    try:
        yield task
    finally:
        await cancel_and_wait([task])


async def queued(run: Run, count: int) -> None:
    async def enough() -> bool:
        return len(await run.queued_keys()) == count

    await eventually(enough, f"{count} queued keys")


async def rounds(run: Run, monkeypatch: pytest.MonkeyPatch, count: int = 5) -> None:
    """Wait until a planner of the run has looked at the frontier so many times more."""
    looks, first = 0, Frontier.first

    async def counted(self: Frontier) -> FoundBatch | None:
        nonlocal looks
        looks += 1
        return await first(self)

    with monkeypatch.context() as patch:
        patch.setattr(Frontier, "first", counted)
        await eventually(lambda: looks > count, "rounds of the planner")


async def test_the_least_deep_keys_are_published_first(redis: Redis) -> None:
    run, found = await a_run(redis)
    batches = [a_found_batch(number, numbered(10, f"of {number}"), depth=4 - number) for number in (1, 2, 3)]
    await found.add(*batches)
    async with planning(planner_of(run, found)):
        await queued(run, 30)
    assert found.read_batches == [3, 2, 1]
    assert (await run.counts()).published == 30
    assert await redis.hget(run.keys.state, "pending") == b"0"


async def test_a_depth_begins_when_everything_before_it_is_resolved(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, found = await a_run(redis, exhausted=False)
    await found.add(a_found_batch(1, numbered(5, "one")), a_found_batch(2, numbered(7, "two"), depth=2))
    async with planning(planner_of(run, found, by_level=True)):
        await rounds(run, monkeypatch)
        assert await run.queued_keys() == [], "the source is not exhausted"
        await run.publish(["seed"], exhausted=True)
        await rounds(run, monkeypatch)
        assert await run.queued_keys() == ["seed"]
        await run.complete(ONE, 1, await run.drain(ONE))
        await queued(run, 5)
        *claims, last = await run.drain(ONE)
        await run.complete(ONE, 2, claims)
        # The pages of depth 1 are lists: a pointer to their next pages has their depth.
        await found.add(a_found_batch(3, ["next"], depth=1))
        await eventually(lambda: 3 in found.read_batches, "the next page, which is of this depth")
        await run.complete(ONE, 3, [last])
        await rounds(run, monkeypatch)
        assert await run.queued_keys() == ["next"]
        await run.complete(ONE, 4, await run.drain(ONE))
        await queued(run, 7)
    assert found.read_batches == [1, 3, 2]


async def test_a_pointer_that_comes_with_the_last_key_of_a_depth_is_not_overtaken(redis: Redis) -> None:
    """Between the planner's two looks, the last page of depth 1 leaves a pointer of its depth and is completed."""
    run, found = await a_run(redis)
    await found.add(a_found_batch(1, ["list"]))
    planner = planner_of(run, found, by_level=True)
    async with planning(planner):
        await queued(run, 1)
    claims = await run.drain(ONE)
    await found.add(a_found_batch(2, ["deeper"], depth=2))
    looks = 0
    first, counts = planner._frontier.first, planner._counts

    async def last_page(call: str) -> None:
        nonlocal looks
        looks += 1
        if looks == 2:  # after the first of the two looks, whichever it is
            await found.add(a_found_batch(3, ["next"]))
            await run.complete(ONE, 1, claims)

    async def look_at_frontier() -> FoundBatch | None:
        await last_page("frontier")
        return await first()

    async def look_at_counts() -> object:
        await last_page("counts")
        return await counts()

    planner._frontier.first = look_at_frontier  # type: ignore[method-assign]
    planner._counts = look_at_counts  # type: ignore[assignment]
    async with planning(planner):
        await eventually(lambda: len(found.read_batches) > 1, "a pointer to be published")
    assert found.read_batches == [1, 3]


async def test_most_is_exact_over_batches_and_coordinators(redis: Redis) -> None:
    run, found = await a_run(redis)
    await found.add(*(a_found_batch(number, numbered(30, f"of {number}"), rule=1) for number in range(5)))
    await found.add(a_found_batch(9, numbered(30, "of another rule"), rule=2))
    await found.add(a_found_batch(10, numbered(30, "unbounded")))
    found.go.clear()
    most = {1: 100, 2: 1_000}
    async with (
        planning(planner_of(run, found, "two", most=most)) as two,
        planning(planner_of(run, found, COORDINATOR, most=most)) as one,
    ):
        await eventually(lambda: len(found.read_batches) == 2, "both to read the same pointer")
        await Election(redis, run.keys, COORDINATOR).leave()
        await Election(redis, run.keys, "two").gain()
        found.go.set()
        await one  # another one leads
        assert not two.done()
        await queued(run, 160)
    counts = await run.counts()
    assert (counts.published, await redis.hget(run.keys.state, "cut")) == (160, b"50")
    assert [await found.frontier.followed(rule) for rule in (1, 2)] == [100, 30]
    assert await redis.hget(run.keys.state, "pending") == b"0"


async def test_most_counts_what_was_published_before_a_rebuild(redis: Redis) -> None:
    run, found = await a_run(redis)
    await found.frontier.count_followed({1: 95})
    await found.add(a_found_batch(1, numbered(30), rule=1))
    async with planning(planner_of(run, found, most={1: 100})):
        await queued(run, 5)
    assert await redis.hget(run.keys.state, "cut") == b"25"


async def test_done_keys_are_skipped_and_counted_and_no_bound_is_used_up_by_them(redis: Redis) -> None:
    run, found = await a_run(redis)
    await run.done.add(Outcome.STORED, [digest(key) for key in numbered(12)])
    await found.add(a_found_batch(1, numbered(30), rule=1))
    async with planning(planner_of(run, found, most={1: 15})):
        await queued(run, 15)
    counts = await run.counts()
    assert (counts.published, counts.done, counts.total) == (15, 12, 27)
    assert await redis.hget(run.keys.state, "skipped") == b"12"


async def test_done_keys_are_looked_for_only_where_there_can_be_some(redis: Redis) -> None:
    """A rebuilt run has pointers to fewer keys than the batch has: the others have a page."""
    run, found = await a_run(redis)
    await run.done.add(Outcome.STORED, [digest(key) for key in numbered(12)])
    whole, rebuilt = a_found_batch(1, numbered(20)), a_found_batch(2, numbered(30))
    await found.add(whole)
    async with planning(planner_of(run, found)):
        await queued(run, 20)
        assert await redis.hget(run.keys.state, "skipped") == b"0"
        found.batches[2, 1] = rebuilt
        await found.frontier.add([replace(rebuilt, size=18)])
        await queued(run, 20 + 18)
    assert await redis.hget(run.keys.state, "skipped") == b"12"


async def test_keys_wait_for_room_and_a_batch_without_room_for_the_queue_to_be_empty(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, found = await a_run(redis)
    await found.add(*(a_found_batch(number, numbered(40, f"of {number}")) for number in range(3)))
    await found.add(a_found_batch(9, numbered(500, "many"), depth=2))
    async with planning(planner_of(run, found, high_water=100)):
        await queued(run, 80)
        await rounds(run, monkeypatch)
        assert found.read_batches == [0, 1]
        claims = await run.drain(ONE)
        await run.complete(ONE, 1, claims[:2])
        await eventually(lambda: found.read_batches == [0, 1, 2], "room")
        await run.complete(ONE, 2, claims[2:])
        await rounds(run, monkeypatch)
        assert found.read_batches == [0, 1, 2]
        await run.complete(ONE, 3, await run.drain(ONE))
        await queued(run, 500)


async def test_postgres_is_waited_for(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    run, found = await a_run(redis)
    found.faults = 3
    await found.add(a_found_batch(1, numbered(10)))
    async with planning(planner_of(run, found)):
        await queued(run, 10)
    assert found.read_batches == [1] * 4
    assert [record.getMessage() for record in caplog.records] == ["planner waits: Postgres does not answer"] * 3


async def test_a_publication_whose_result_got_lost_is_not_repeated(redis: Redis) -> None:
    """The coordinator leads again after the lost connection, and goes on with the next pointer."""
    run, found = await a_run(redis)
    await found.add(a_found_batch(1, numbered(10), rule=1), a_found_batch(2, numbered(10, "more"), rule=1))
    planner = planner_of(run, found, most={1: 15})
    planner._frontier._publish_frontier = LostResult(planner._frontier._publish_frontier)  # type: ignore[assignment]
    async with planning(planner) as task:
        await eventually(task.done, "Redis to be away")
        assert task.exception() is not None
    async with planning(planner):
        await queued(run, 15)
    assert found.read_batches == [1, 2]
    assert await found.frontier.followed(1) == 15


async def test_planning_ends_with_another_run(redis: Redis) -> None:
    run, found = await a_run(redis)
    await found.add(a_found_batch(1, numbered(10)))
    await redis.hset(run.keys.state, "epoch", "second")
    with pytest.raises(EpochLost):
        await planner_of(run, found).plan()
    assert await run.queued_keys() == []
