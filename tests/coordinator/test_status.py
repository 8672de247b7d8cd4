"""Snapshots of a run: its counts, workers and leader, and what workers wait for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from redis.asyncio import Redis

from coordinator.limits.limiter import Limiter
from coordinator.model import Outcome, RunState
from coordinator.status import RunSnapshot, read_counts, read_snapshot
from tests.coordinator.parts import COORDINATOR, LIMITS, ONE, TWO, Run, completion, numbered, record_of, run_in_progress

pytestmark = pytest.mark.anyio


async def test_counts_of_a_run_that_redis_does_not_know_are_nothing(redis: Redis) -> None:
    found = await read_counts(redis, record_of(total=12))
    assert (found.total, found.done, found.queued, found.exhausted) == (12, 0, 0, False)


async def test_the_total_is_the_estimate_until_the_source_is_exhausted(redis: Redis) -> None:
    run = await Run.create(redis, record_of(total=1_000))
    await run.publish(numbered(10), skipped=2)
    assert (await run.counts()).total == 1_000
    await run.publish(numbered(5, "more"), skipped=1, exhausted=True)
    assert (await run.counts()).total == 18


async def test_a_snapshot_shows_counts_living_workers_leader_and_pauses(redis: Redis) -> None:
    run = await Run.create(redis)
    await run.publish(numbered(100))
    await run.streams.join(ONE)
    await run.streams.join(TWO)
    await redis.zadd(run.keys.workers, {"dead": 5})
    claims = await run.drain(ONE)
    await run.streams.complete(ONE, 1, completion(claims, Outcome.GONE, requests=9))
    await Limiter(redis, run.keys, LIMITS).pause("example.org", 30.0)
    found = await read_snapshot(redis, run.record)
    assert found.pauses.keys() == {"example.org"}
    assert 10 < found.pauses["example.org"] <= 30
    assert replace(found, upstreams=()) == RunSnapshot(
        name="run", state=RunState.RUNNING, counts=await run.counts(), workers=2, leader=COORDINATOR
    )
    assert found.counts.outcomes[Outcome.GONE] == found.counts.resolved == 100
    assert (found.counts.requests, found.counts.received) == (9, 90)


async def test_a_snapshot_changes_nothing(redis: Redis) -> None:
    run = await run_in_progress(redis, "run")
    before = await run.everything()
    await read_snapshot(redis, run.record)
    assert await run.everything() == before


async def test_a_snapshot_of_a_finished_run(redis: Redis) -> None:
    run = await run_in_progress(redis, "run")
    await redis.delete(run.keys.leader, *run.keys.limiting)
    await run.runs.finish(run.record, {Outcome.STORED: 500})
    found = await read_snapshot(redis, run.record)
    assert (found.state, found.workers, found.leader, found.pauses) == (RunState.COMPLETE, 0, None, {})
    assert found.counts.done == 500


async def test_what_a_worker_waits_for_is_shown_as_long_as_it_waits(redis: Redis) -> None:
    run = await Run.create(redis)
    await run.streams.join(ONE)
    await run.streams.renew(ONE, waits="Postgres does not answer")
    assert (await read_snapshot(redis, run.record)).waits == ("Postgres does not answer",)
    await run.streams.renew(ONE)
    assert (await read_snapshot(redis, run.record)).waits == ()
