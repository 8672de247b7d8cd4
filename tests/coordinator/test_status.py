"""Snapshots of a run: its counts, workers and leader, and what workers wait for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from redis.asyncio import Redis

from coordinator.limits.limiter import Limiter
from coordinator.limits.unreachable import UnreachableUpstream, encode_waits
from coordinator.model import Outcome, RunState
from coordinator.status import BEGINS_SECONDS, RunSnapshot, read_counts, read_snapshot
from tests.coordinator.parts import COORDINATOR, LIMITS, ONE, TWO, Run, completion, numbered, record_of, run_in_progress

pytestmark = pytest.mark.anyio


async def test_counts_of_a_run_that_redis_does_not_know_are_nothing(redis: Redis) -> None:
    found = await read_counts(redis, "run", 12)
    assert (found.total, found.done, found.queued, found.exhausted) == (12, 0, 0, False)


async def test_the_total_is_the_estimate_until_the_source_is_exhausted(redis: Redis) -> None:
    run = await Run.create(redis, record_of(total=1_000))
    await run.publish(numbered(10), skipped=2)
    assert (await run.counts()).total == 1_000
    await run.publish(numbered(5, "more"), skipped=1, exhausted=True)
    assert (await run.counts()).total == 18


async def test_done_and_queued_keys_are_never_more_than_the_total(redis: Redis) -> None:
    """Also while keys of an unfinished block are done, and while some of its keys are deferred."""
    run = await Run.create(redis, record_of(total=100))
    await run.publish(numbered(100), exhausted=True)
    await run.streams.join(ONE)
    (claim, *_) = await run.drain(ONE)
    open_block = replace(completion([claim]), finished=())
    await run.streams.complete(ONE, 1, open_block)
    counts = await run.counts()
    assert counts.done + counts.queued > 100 >= counts.done > 0
    assert counts.done + counts.waiting == counts.total == 100


async def test_a_snapshot_shows_counts_living_workers_leader_and_pauses(redis: Redis) -> None:
    run = await Run.create(redis)
    await run.publish(numbered(100))
    await run.streams.join(ONE)
    await run.streams.join(TWO)
    await redis.zadd(run.keys.workers, {"dead": 5})
    claims = await run.drain(ONE)
    await run.streams.complete(ONE, 1, completion(claims, Outcome.GONE, requests=9))
    await Limiter(redis, run.keys, LIMITS).pause("example.org", 30.0)
    found = await read_snapshot(redis, run.record.name, run.record.total)
    assert found.pauses.keys() == {"example.org"}
    assert 10 < found.pauses["example.org"] <= 30
    assert found.last_commit is not None
    assert replace(found, upstreams=(), last_commit=None) == RunSnapshot(
        name="run", state=RunState.RUNNING, counts=await run.counts(), workers=2, leader=COORDINATOR, begins=True
    )
    await redis.hincrby(run.keys.state, "opened", -BEGINS_SECONDS)
    assert not (await read_snapshot(redis, run.record.name, run.record.total)).begins
    assert found.counts.outcomes[Outcome.GONE] == found.counts.resolved == 100
    assert (found.counts.requests, found.counts.received) == (9, 90)


async def test_a_snapshot_changes_nothing(redis: Redis) -> None:
    run = await run_in_progress(redis, "run")
    before = await run.everything()
    await read_snapshot(redis, run.record.name, run.record.total)
    assert await run.everything() == before


async def test_a_snapshot_of_a_finished_run(redis: Redis) -> None:
    run = await run_in_progress(redis, "run")
    await redis.delete(run.keys.leader, *run.keys.limiting)
    await run.runs.finish(run.record, {Outcome.STORED: 500})
    found = await read_snapshot(redis, run.record.name, run.record.total)
    assert (found.state, found.workers, found.leader, found.pauses) == (RunState.COMPLETE, 0, None, {})
    assert found.counts.done == 500


async def test_what_a_worker_waits_for_is_shown_as_long_as_it_waits(redis: Redis) -> None:
    run = await Run.create(redis)
    await run.streams.join(ONE)
    await run.streams.renew(ONE, waits=encode_waits("Postgres does not answer", []))
    assert (await read_snapshot(redis, run.record.name, run.record.total)).waits == ("Postgres does not answer",)
    await run.streams.renew(ONE)
    assert (await read_snapshot(redis, run.record.name, run.record.total)).waits == ()


async def test_upstreams_that_workers_cannot_connect_to_are_shown_once_with_the_keys_of_all_workers(
    redis: Redis,
) -> None:
    run = await Run.create(redis)
    dead = UnreachableUpstream("dead.example", 2, "connection refused", 8.0)
    second = UnreachableUpstream("other.example", 7, "no such host", 2.0)
    await run.streams.join(ONE)
    await run.streams.join(TWO)
    await run.streams.renew(ONE, waits=encode_waits("", [dead]))
    await run.streams.renew(TWO, waits=encode_waits("Redis is full", [dead, second]))
    found = await read_snapshot(redis, run.record.name, run.record.total)
    assert [(one.upstream, one.keys, one.fault) for one in found.unreachable] == [
        ("other.example", 7, "no such host"),
        ("dead.example", 4, "connection refused"),
    ]
    assert found.unreachable[1].next_attempt == pytest.approx(8.0, abs=1.0)
    assert found.waits == ("Redis is full",)
    await run.streams.release(TWO)
    assert [one.keys for one in (await read_snapshot(redis, run.record.name, run.record.total)).unreachable] == [2]
