"""Coordinators of one run on a real Redis: one leads, the others stand by, and every key is published once."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from random import Random

import pytest
from redis.asyncio import Redis

from coordinator.errors import EpochLost, RedisDamaged, RedisUnavailable, SourceError
from coordinator.model import FoundBatch, FoundKey, Outcome, RunState
from coordinator.queue.done import KnownSet
from coordinator.queue.sharding import digest
from coordinator.redis.connection import connect_redis
from coordinator.redis.keys import RunKeys
from coordinator.redis.scripts import Script
from coordinator.roles.coordinator import Coordinator, Following
from coordinator.roles.election import Election
from coordinator.source import Chunk, Cursor
from coordinator.status import read_snapshot
from coordinator.tasks import cancel_and_wait
from tests.coordinator.parts import COORDINATOR, ONE, TWO, LostResult, MemorySource, Run, keys_of, numbered, record_of
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

HIGH_WATER = 300_000
LEADS = """
import asyncio, sys
import coordinator.roles.election
from coordinator.redis.connection import connect_redis
from coordinator.redis.keys import RunKeys

async def main():
    coordinator.roles.election.ELECTION_LEASE_SECONDS = float(sys.argv[2])
    election = coordinator.roles.election.Election(connect_redis(sys.argv[1]), RunKeys("run"), "child")
    await election.gain()
    print("leads", flush=True)
    await election.keep()

asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Poll often, so that tests are fast."""
    monkeypatch.setattr("coordinator.roles.election.ELECTION_POLL_SECONDS", 0.02)
    monkeypatch.setattr("coordinator.roles.coordinator.STATE_POLL_SECONDS", 0.02)
    monkeypatch.setattr("coordinator.roles.janitor.JANITOR_ROUND_SECONDS", 0.02)


class Corpus:
    """Opens sources of the same keys, from any cursor."""

    def __init__(self, keys: Sequence[str], *, chunk: int = 1_000_000, held_at: int | None = None) -> None:
        self.keys = keys
        self.chunk = chunk
        self.held_at = held_at
        self.opened: list[MemorySource] = []

    def open(self, cursor: Cursor) -> MemorySource:
        self.opened.append(MemorySource(self.keys, cursor=cursor, chunk=self.chunk, held_at=self.held_at))
        return self.opened[-1]


def a_coordinator(
    run: Run,
    open_corpus: Callable[[Cursor], MemorySource],
    name: str = "one",
    *,
    rereadable: bool = True,
    high_water: int = HIGH_WATER,
) -> Coordinator:
    return Coordinator(run.client, run.record, name, open_corpus, rereadable=rereadable, high_water=high_water)


@asynccontextmanager
async def coordinating(
    run: Run, corpus: Corpus, name: str = "coordinator", high_water: int = HIGH_WATER
) -> AsyncIterator[asyncio.Task[None]]:
    """Run a coordinator beside the test; cancel it at the end."""
    task = asyncio.create_task(a_coordinator(run, corpus.open, name, high_water=high_water).run())
    try:
        yield task
    finally:
        await cancel_and_wait([task])


async def made(redis: Redis, **settings: int) -> Run:
    """A run in Redis that no coordinator leads yet."""
    run = Run(redis, record_of(**settings))  # type: ignore[arg-type]
    await run.runs.make(run.record)
    return run


async def leader_of(run: Run) -> str | None:
    return (await read_snapshot(run.client, run.record.name)).leader


async def led_by(run: Run, name: str) -> None:
    async def leads() -> bool:
        return await leader_of(run) == name

    await eventually(leads, f"{name} to lead")


async def in_state(run: Run, state: RunState) -> None:
    async def reached() -> bool:
        return await run.runs.state(run.record.name) is state

    await eventually(reached, f"the run to be {state}")


# -- from the source to the end


async def test_a_run_is_published_worked_on_resolved_and_complete(redis: Redis) -> None:
    run = await made(redis)
    keys = numbered(3_000)
    await run.done.add(Outcome.STORED, [digest(key) for key in keys[:1_000]])
    corpus = Corpus(keys, chunk=700)
    async with coordinating(run, corpus) as task:
        await run.streams.join(ONE)

        async def all_published() -> bool:
            return (await run.counts()).exhausted

        await eventually(all_published, "the source to be published")
        claims = await run.drain(ONE)
        assert keys_of(claims) == sorted(keys[1_000:])
        await run.complete(ONE, 1, claims[1:])
        assert await run.runs.state("run") is RunState.RUNNING
        await run.complete(ONE, 2, claims[:1])
        await in_state(run, RunState.RESOLVED)
        assert not task.done(), "the final counts are still to be taken"
        await run.runs.finish(run.record, {Outcome.STORED: 3_000})
        await asyncio.wait_for(task, 20)
    assert await leader_of(run) is None, "the lease is given back"
    assert [source.closed for source in corpus.opened] == [True]
    assert (await run.counts()).total == 3_000


async def test_an_empty_source_is_resolved_without_a_worker(redis: Redis) -> None:
    run = await made(redis)
    async with coordinating(run, Corpus([])):
        await in_state(run, RunState.RESOLVED)
    assert (await run.counts()).total == 0


async def test_a_run_that_is_complete_needs_no_coordinator(redis: Redis) -> None:
    run = await made(redis)
    async with coordinating(run, Corpus([])):
        await in_state(run, RunState.RESOLVED)
    await run.runs.finish(run.record, {})
    before = await run.everything()
    corpus = Corpus(numbered(10))
    async with coordinating(run, corpus) as task:
        await asyncio.wait_for(task, 20)
    assert await run.everything() == before
    assert not corpus.opened


async def test_an_exhausted_source_is_not_opened_again(redis: Redis) -> None:
    run = await made(redis)
    async with coordinating(run, Corpus(numbered(10))):
        await eventually(lambda: queue_is(run, 10), "the source to be published")
    corpus = Corpus([])
    await run.streams.join(ONE)
    await run.complete(ONE, 1, await run.drain(ONE))
    async with coordinating(run, corpus):
        await in_state(run, RunState.RESOLVED)
    assert corpus.opened == []


async def queue_is(run: Run, keys: int) -> bool:
    return (await run.counts()).queued == keys


@pytest.mark.parametrize(
    ("by_level", "most", "published"),
    [
        pytest.param(False, {}, 2, id="it is in the queue or in the frontier"),
        pytest.param(True, {}, 3, id="by level it is one of the source"),
        pytest.param(False, {0: 1}, 3, id="what a bounded rule found may be cut"),
    ],
)
async def test_a_key_of_the_source_that_a_page_named_before(
    redis: Redis, by_level: bool, most: Mapping[int, int], published: int
) -> None:
    run = await made(redis, follows=True)
    await KnownSet(redis, run.keys, run.layout, run.record.epoch).mark([digest("key 1")])

    async def nothing_found(_: FoundBatch) -> Sequence[FoundKey]:
        return ()

    following = Following(nothing_found, by_level, most)
    coordinator = Coordinator(
        redis, run.record, "one", Corpus(numbered(3)).open, rereadable=True, high_water=HIGH_WATER, following=following
    )
    task = asyncio.create_task(coordinator.run())
    try:
        await eventually(lambda: queue_is(run, published), f"{published} keys to be published")

        async def exhausted() -> bool:
            return (await run.counts()).exhausted

        await eventually(exhausted, "the source to be published")
    finally:
        await cancel_and_wait([task])
    assert ("key 1" in await run.queued_keys()) == (published == 3)


# -- standing by


async def test_a_standby_takes_over_when_the_leader_leaves_and_goes_on_behind_its_cursor(redis: Redis) -> None:
    run = await made(redis)
    keys = numbered(2_000)
    first, second = Corpus(keys, chunk=500, held_at=1_000), Corpus(keys, chunk=500)
    async with coordinating(run, first, "one") as leading:
        await led_by(run, "one")
        async with coordinating(run, second, "two"):
            await eventually(lambda: queue_is(run, 1_000), "half to be published")
            assert await leader_of(run) == "one"
            assert not second.opened, "who stands by does not read"
            leading.cancel()
            await led_by(run, "two")
            await eventually(lambda: queue_is(run, 2_000), "the rest to be published")
    assert await run.queued_keys() == sorted(keys)
    assert [source.reads for source in second.opened] == [[500, 500]]
    assert await leader_of(run) is None


async def test_a_standby_that_leaves_does_not_depose_the_leader(redis: Redis) -> None:
    run = await made(redis)
    async with coordinating(run, Corpus(numbered(10), held_at=5), "one"):
        await led_by(run, "one")
        async with coordinating(run, Corpus([]), "two"):
            await eventually(lambda: queue_is(run, 5), "half to be published")
        assert await leader_of(run) == "one"


async def test_a_standby_takes_over_when_the_lease_of_a_killed_leader_ends(
    redis: Redis, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = await made(redis)
    keys = numbered(100)
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", LEADS, redis_url, "1.0", stdout=asyncio.subprocess.PIPE
    )
    try:
        assert child.stdout
        assert await child.stdout.readline() == b"leads\n"
        with caplog.at_level(logging.INFO, "coordinator.roles.election"):
            async with coordinating(run, Corpus(keys), "standby"):
                leases: set[int] = set()

                async def renewed() -> bool:
                    leases.add(await redis.pttl(run.keys.leader))
                    return max(leases) - min(leases) > 100 and await redis.pttl(run.keys.leader) > min(leases)

                await eventually(lambda: any("stands by" in line for line in caplog.messages), "it to stand by")
                await eventually(renewed, "the leader to prolong its lease")
                assert await leader_of(run) == "child"
                assert await run.queued_keys() == []
                child.kill()
                await child.wait()
                await led_by(run, "standby")
                await eventually(lambda: queue_is(run, 100), "the source to be published")
        assert await run.queued_keys() == sorted(keys)
        assert len([line for line in caplog.messages if "stands by" in line]) == 1
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


async def test_a_leader_that_lost_its_lease_stands_by_and_publishes_nothing_more(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.roles.election.ELECTION_LEASE_SECONDS", 0.2)
    run = await made(redis)
    corpus = Corpus(numbered(1_000), chunk=100, held_at=500)
    async with coordinating(run, corpus, "frozen"):
        await eventually(lambda: queue_is(run, 500), "half to be published")
        await redis.set(run.keys.leader, "usurper", px=100_000)
        await eventually(lambda: corpus.opened[0].closed, "the planner to be ended")
        assert await run.queued_keys() == sorted(numbered(1_000)[:500])
        assert await leader_of(run) == "usurper"
        corpus.held_at = None
        await redis.delete(run.keys.leader)
        await eventually(lambda: queue_is(run, 1_000), "the rest to be published when it leads again")
    assert await run.queued_keys() == sorted(numbered(1_000))


async def test_a_lease_is_prolonged_by_its_leader_only(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = RunKeys("run")
    one, two = Election(redis, keys, "one"), Election(redis, keys, "two")
    await one.gain()
    assert 9_000 < await redis.pttl(keys.leader) <= 10_000
    assert not await two._call("lead")
    await redis.pexpire(keys.leader, 5_000)
    await one.gain()
    assert await redis.pttl(keys.leader) > 9_000
    await two.leave()
    assert await redis.get(keys.leader) == b"one"
    monkeypatch.setattr(one, "_election", LostResult(one._election))
    with pytest.raises(RedisUnavailable):
        await one.gain()
    await one.gain()
    await one.leave()
    assert await redis.get(keys.leader) is None
    await two.gain()
    assert await redis.get(keys.leader) == b"two"


async def test_keeping_the_lease_waits_for_redis_and_ends_when_another_leads(
    redis: Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("coordinator.roles.election.ELECTION_LEASE_SECONDS", 0.1)
    keys = RunKeys("run")
    one = Election(redis, keys, "one")
    await one.gain()
    monkeypatch.setattr(one, "_election", LostResult(one._election))
    keeping = asyncio.create_task(one.keep())
    await eventually(lambda: "coordinator one waits" in caplog.text, "a prolongation to fail")
    assert not keeping.done()
    await redis.set(keys.leader, "two", px=100_000)
    await asyncio.wait_for(keeping, 20)
    assert "coordinator one no longer leads run run" in caplog.text


# -- killed and started again


async def test_a_coordinator_killed_again_and_again_publishes_every_key_once(redis: Redis) -> None:
    run = await made(redis, shards=8, buckets=32)
    keys = numbered(5_000)
    random = Random(5)
    lives = 0
    while not (await run.counts()).exhausted:
        lives += 1
        goal = (await run.counts()).published + random.choice([1, 300, 900])
        corpus = Corpus(keys, chunk=random.randint(50, 400), held_at=goal)

        # When it is cancelled, its last chunk may be on the way to Redis, or be looked up in the done set.
        def enough(corpus: Corpus = corpus, goal: int = min(goal, len(keys))) -> bool:
            return bool(corpus.opened) and corpus.opened[0].cursor.offset >= goal

        async with coordinating(run, corpus, f"life {lives}"):
            await eventually(enough, "the coordinator to get on")
            for _ in range(random.randint(0, 20)):
                await asyncio.sleep(0)
    assert lives > 5
    assert await run.queued_keys() == sorted(keys)
    counts = await run.counts()
    assert (counts.published, counts.total) == (5_000, 5_000)


async def test_a_coordinator_starts_over_from_the_cursor_when_redis_was_away(
    redis: Redis, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = await made(redis)
    keys = numbered(2_000)
    corpus = Corpus(keys, chunk=250, held_at=1_000)
    own = connect_redis(redis_url)
    try:
        run.client = own
        async with coordinating(run, corpus, "one"):
            run.client = redis
            await eventually(lambda: queue_is(run, 1_000), "half to be published")
            await redis.config_set("maxmemory", 1)  # full: the next chunk is not taken
            corpus.opened[0].go.set()
            await eventually(lambda: "coordinator waits: Redis takes no writes now" in caplog.text, "it to notice")
            assert await run.queued_keys() == sorted(keys[:1_000])
            await redis.config_set("maxmemory", 0)
            corpus.held_at = None
            await eventually(lambda: queue_is(run, 2_000), "the rest to be published")
    finally:
        await redis.config_set("maxmemory", 0)
        await own.aclose()
    assert await run.queued_keys() == sorted(keys)
    assert all(source.closed for source in corpus.opened)


# -- what ends a coordinator


class DamagedSource(MemorySource):
    def read(self, limit: int, seconds: float) -> Chunk:
        raise SourceError("titles.txt is damaged at line 3")


async def test_a_damaged_source_ends_the_coordinator(redis: Redis) -> None:
    run = await made(redis)
    source = DamagedSource([])
    with pytest.raises(SourceError, match="line 3"):
        await a_coordinator(run, lambda cursor: source).run()
    assert source.closed
    assert await leader_of(run) is None, "another one may try at once"


async def test_a_source_that_cannot_be_opened_ends_the_coordinator(redis: Redis) -> None:
    run = await made(redis)

    def missing(cursor: Cursor) -> MemorySource:
        raise SourceError("titles.txt: no such file")

    with pytest.raises(SourceError, match="no such file"):
        await a_coordinator(run, missing).run()


@pytest.mark.parametrize("cursor", ["rubbish", f"{10**30}:0"])
async def test_a_cursor_that_is_not_ours_is_damage(redis: Redis, cursor: str) -> None:
    run = await made(redis)
    await redis.hset(run.keys.state, "cursor", cursor)
    with pytest.raises(RedisDamaged):
        await a_coordinator(run, Corpus([]).open).run()


async def test_a_leader_without_a_lease_of_ours_does_not_lead(redis: Redis) -> None:
    keys = RunKeys("run")
    for century in (None, 100 * 365 * 86_400):
        await redis.set(keys.leader, "planted", ex=century)
        await asyncio.wait_for(Election(redis, keys, "one").gain(), 20)
        assert await redis.get(keys.leader) == b"one"


@pytest.mark.parametrize("when", ["planning", "waiting for workers", "resolved"])
@pytest.mark.parametrize("what", ["wiped", "made anew"])
async def test_a_coordinator_leaves_when_its_run_was_replaced(redis: Redis, when: str, what: str) -> None:
    run = await made(redis)
    corpus = Corpus(numbered(10), held_at=5 if when == "planning" else None)
    async with coordinating(run, corpus) as task:
        await eventually(lambda: queue_is(run, 5 if when == "planning" else 10), "keys to be published")
        if when == "resolved":
            await run.streams.join(ONE)
            await run.complete(ONE, 1, await run.drain(ONE))
            await in_state(run, RunState.RESOLVED)
        await redis.flushall()
        if what == "made anew":
            await run.runs.make(record_of(epoch="second"))
        corpus.opened[0].go.set()
        with pytest.raises(EpochLost):
            await asyncio.wait_for(task, 20)
    if what == "made anew":
        counts = await run.counts()
        assert (counts.published, counts.exhausted) == (0, False)


async def test_the_janitor_waits_for_redis_and_goes_on(
    redis: Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "coordinator.roles.janitor")
    run = await made(redis)
    await run.streams.join(TWO)
    async with coordinating(run, Corpus(numbered(10))) as task:
        await eventually(lambda: queue_is(run, 10), "the source to be published")
        await redis.config_set("maxmemory", 1)
        try:
            await run.complete(TWO, 1, await run.drain(TWO))
            await eventually(lambda: "janitor waits: Redis takes no writes now" in caplog.text, "the janitor to wait")
            assert await run.runs.state("run") is RunState.RUNNING
        finally:
            await redis.config_set("maxmemory", 0)
        await in_state(run, RunState.RESOLVED)
        looks = await scripts_run(redis)

        async def looked_again() -> bool:
            return await scripts_run(redis) > looks + 4

        await eventually(looked_again, "the janitor to look again")
        await run.runs.finish(run.record, {})
        await asyncio.wait_for(task, 20)
    assert len([line for line in caplog.messages if line.startswith("run run is resolved")]) == 1


# -- keys that vanish


@pytest.mark.parametrize("exhausted_at_once", [True, False])
async def test_keys_that_another_program_trimmed_are_planned_again_and_finished_ones_are_skipped(
    redis: Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, exhausted_at_once: bool
) -> None:
    monkeypatch.setattr("coordinator.roles.janitor.MISSING_CHECK_SECONDS", 0.05)
    run = await made(redis)
    keys = numbered(2_000)
    corpus = Corpus(keys, chunk=500, held_at=None if exhausted_at_once else 1_500)
    async with coordinating(run, corpus):
        await eventually(lambda: queue_is(run, 2_000 if exhausted_at_once else 1_500), "keys to be published")
        await run.streams.join(ONE)
        claim = await run.next(ONE)
        assert claim
        await run.complete(ONE, 1, [claim])
        for shard in range(run.layout.shards):
            await redis.xtrim(run.keys.stream(shard), maxlen=0, approximate=False)
        corpus.held_at = None
        await run.streams.release(ONE)
        await run.streams.join(TWO)
        await eventually(lambda: again(run, corpus), "the source to be planned again")
        corpus.opened[0].go.set()
        claims = await run.drain(TWO)
        await run.complete(TWO, 2, claims)
        await in_state(run, RunState.RESOLVED)
    assert not set(keys_of(claims)) & set(claim.block.keys)
    assert "keys vanished from the queue of run run: the source is planned again" in caplog.text
    counts = await run.counts()
    assert (counts.done, counts.total) == (2_000, 2_000)


async def test_a_queue_that_vanished_does_not_keep_the_planner_waiting_for_room(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.roles.janitor.MISSING_CHECK_SECONDS", 0.05)
    run = await made(redis)
    corpus = Corpus(numbered(3_000), chunk=250)
    async with coordinating(run, corpus, high_water=1_000):
        await eventually(lambda: queue_is(run, 1_000), "a full queue")
        for shard in range(run.layout.shards):
            await redis.xtrim(run.keys.stream(shard), maxlen=0, approximate=False)
        await run.streams.join(ONE)
        done = 0
        async with asyncio.timeout(20):
            while done < 3_000:
                claims = await run.drain(ONE)
                done += len(keys_of(claims))
                await run.complete(ONE, done, claims)
                await asyncio.sleep(0.01)
        await in_state(run, RunState.RESOLVED)


async def again(run: Run, corpus: Corpus) -> bool:
    return len(corpus.opened) > 1 and (await run.counts()).exhausted


async def test_a_worker_that_finishes_blocks_which_were_planned_again_does_not_stall_the_run(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.roles.janitor.MISSING_CHECK_SECONDS", 0.05)
    run = await made(redis)
    corpus = Corpus(numbered(2_000))
    async with coordinating(run, corpus):
        await eventually(lambda: queue_is(run, 2_000), "keys to be published")
        await run.streams.join(ONE)
        await run.streams.join(TWO)
        held = await run.drain(ONE)
        for shard in range(run.layout.shards):
            await redis.xtrim(run.keys.stream(shard), maxlen=0, approximate=False)
        await eventually(lambda: again(run, corpus), "the source to be planned again")
        await run.complete(ONE, 1, held[:2])
        await run.complete(TWO, 1, await run.drain(TWO))
        await in_state(run, RunState.RESOLVED)
    assert (await run.counts()).done == 2_000


async def test_only_the_leader_plans_a_source_again(redis: Redis) -> None:
    run = await Run.create(redis)
    await run.publish(numbered(100))
    replan = Script(redis, "run/replan")
    streams = [run.keys.stream(shard) for shard in range(run.layout.shards)]
    keys = [run.keys.state, run.keys.leader, run.keys.deferred_due, run.keys.frontier, run.keys.ready, *streams]

    async def missing(epoch: str = "first", coordinator_id: str = COORDINATOR) -> object:
        return await replan(keys, [epoch, coordinator_id, "0:0"])

    for stream in streams:
        await redis.xtrim(stream, maxlen=0, approximate=False)
    before = await run.everything()
    assert await missing(epoch="second") == b"epoch"
    assert await missing(coordinator_id="another") == b"deposed"
    assert await run.everything() == before
    assert await missing() == 100
    assert await redis.hmget(run.keys.state, "cursor", "exhausted") == [b"0:0", b"0"]
    assert await missing() == 0


async def test_keys_in_the_hands_of_workers_have_not_vanished(
    redis: Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("coordinator.roles.janitor.MISSING_CHECK_SECONDS", 0.0)
    run = await made(redis)
    async with coordinating(run, Corpus(numbered(100))):
        await eventually(lambda: queue_is(run, 100), "keys to be published")
        await run.streams.join(ONE)
        claims = await run.drain(ONE)
        looks = await scripts_run(redis)

        async def looked_again() -> bool:
            return await scripts_run(redis) > looks + 6

        await eventually(looked_again, "the janitor to look again")
        await run.complete(ONE, 1, claims)
        await in_state(run, RunState.RESOLVED)
    assert "vanished" not in caplog.text


async def test_standard_input_cannot_be_planned_again(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.roles.janitor.MISSING_CHECK_SECONDS", 0.05)
    run = await made(redis)
    source = MemorySource(numbered(100))
    task = asyncio.create_task(a_coordinator(run, lambda cursor: source, rereadable=False).run())
    await eventually(lambda: queue_is(run, 100), "keys to be published")
    for shard in range(run.layout.shards):
        await redis.xtrim(run.keys.stream(shard), maxlen=0, approximate=False)
    with pytest.raises(SourceError, match="a pipe cannot be read again"):
        await asyncio.wait_for(task, 20)


async def scripts_run(redis: Redis) -> int:
    """How many scripts ran since Redis started. When nothing else happens, only the janitor runs some."""
    return int((await redis.info("commandstats"))["cmdstat_evalsha"]["calls"])
