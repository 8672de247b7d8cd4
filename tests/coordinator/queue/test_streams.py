"""The queue between coordinator and workers, on a real Redis: publish, claim, renew, complete, release."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis

from coordinator.errors import EpochLost, LeaseLost, RedisDamaged, RedisUnavailable, WorkersFull
from coordinator.model import (
    NOT_STEERED,
    Block,
    Claim,
    EntryId,
    Epoch,
    Outcome,
    Presence,
    RunState,
    ShardId,
    Steering,
    WorkerId,
)
from coordinator.queue.sharding import digest
from coordinator.queue.streams import MAX_QUARANTINED_BYTES, Completion, FinishedBlock, Streams
from coordinator.redis.scripts import Script
from tests.coordinator.parts import (
    COORDINATOR,
    ONE,
    THREE,
    TWO,
    LostResult,
    Run,
    blocks_of,
    completion,
    keys_of,
    numbered,
    record_of,
)
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

SHORT = 0.2


async def check_resolved(run: Run) -> bytes:
    state: bytes = await Script(run.client, "run/check_resolved")([run.keys.state], [run.record.epoch])
    return state


async def lapsed(run: Run, worker: WorkerId) -> None:
    """Wait until the worker's lease has ended."""

    async def ended() -> bool:
        seconds, micros = await run.client.time()
        ends = await run.client.zscore(run.keys.workers, worker)
        return ends is None or ends <= seconds * 1000 + micros // 1000

    await eventually(ended, f"the lease of {worker} to end")


@asynccontextmanager
async def full(client: Redis) -> AsyncIterator[None]:
    """Redis has no memory left inside this block."""
    await client.config_set("maxmemory", 1)
    try:
        yield
    finally:
        await client.config_set("maxmemory", 0)


# -- publish


async def test_a_chunk_reaches_the_streams_with_its_counts_and_its_cursor(redis: Redis) -> None:
    run = await Run.create(redis)
    keys = numbered(2_100)
    assert await run.publish(keys, skipped=7, reasons={keys[5]: "has no host"})
    assert await run.queued_keys() == sorted(keys)
    counts = await run.counts()
    assert (counts.published, counts.queued, counts.exhausted, counts.total) == (2_100, 2_100, False, None)
    assert await redis.hget(run.keys.state, "cursor") == b"1:0"
    assert await redis.hget(run.keys.state, "skipped") == b"7"
    blocks = Counter(block.shard for block in blocks_of(keys, run.layout))
    assert {
        int(shard): int(count) for shard, count in await redis.zrange(run.keys.ready, 0, -1, withscores=True)
    } == blocks


async def test_publishing_the_same_chunk_again_adds_nothing(redis: Redis) -> None:
    run = await Run.create(redis)
    streams, blocks = run.streams, blocks_of(numbered(900), run.layout)

    async def publish() -> bool:
        return await streams.publish(COORDINATOR, blocks, skipped=3, cursor="0:0", next_cursor="9:9", exhausted=False)

    assert await publish()
    before = await run.everything()
    assert await publish()
    assert await run.everything() == before


async def test_a_chunk_whose_result_was_lost_is_published_once(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    run = await Run.create(redis)
    monkeypatch.setattr(run.streams, "_publish", LostResult(run.streams._publish))
    blocks = blocks_of(numbered(900), run.layout)
    with pytest.raises(RedisUnavailable):
        await run.streams.publish(COORDINATOR, blocks, skipped=0, cursor="0:0", next_cursor="9:9", exhausted=True)
    assert await run.streams.publish(COORDINATOR, blocks, skipped=0, cursor="0:0", next_cursor="9:9", exhausted=True)
    assert await run.queued_keys() == sorted(numbered(900))
    assert (await run.counts()).published == 900


async def test_the_last_chunk_may_leave_the_cursor_where_it_is_and_counts_once(redis: Redis) -> None:
    run = await Run.create(redis)
    for _ in range(2):
        assert await run.streams.publish(
            COORDINATOR, blocks_of(["a"], run.layout), skipped=1, cursor="0:0", next_cursor="0:0", exhausted=True
        )
    counts = await run.counts()
    assert (counts.published, counts.total, counts.exhausted) == (1, 2, True)
    assert await run.queued_keys() == ["a"]


async def test_a_coordinator_whose_cursor_was_moved_by_another_adds_nothing(redis: Redis) -> None:
    run = await Run.create(redis)
    assert await run.publish(["a", "b"])
    before = await run.everything()
    stale = blocks_of(["c"], run.layout)
    assert not await run.streams.publish(COORDINATOR, stale, skipped=1, cursor="0:0", next_cursor="5:5", exhausted=True)
    assert await run.everything() == before


@pytest.mark.parametrize("leader", [None, "another coordinator"])
async def test_a_coordinator_that_does_not_lead_adds_nothing(redis: Redis, leader: str | None) -> None:
    run = await Run.create(redis)
    await redis.delete(run.keys.leader)
    if leader:
        await redis.set(run.keys.leader, leader)
    before = await run.everything()
    assert not await run.publish(["a"])
    assert await run.everything() == before


async def test_a_coordinator_of_another_epoch_adds_nothing(redis: Redis) -> None:
    run = await Run.create(redis)
    await redis.hset(run.keys.state, "epoch", "second")
    before = await run.everything()
    with pytest.raises(EpochLost, match="run run in Redis is not the one"):
        await run.publish(["a"])
    assert await run.everything() == before


# -- claim


async def test_workers_get_different_shards_while_there_are_enough(redis: Redis) -> None:
    run = await Run.create(redis)
    await run.publish(numbered(400))
    for worker in (ONE, TWO, THREE):
        await run.streams.join(worker)
    shards = [await run.streams.claim_shard(worker) for worker in (ONE, TWO, THREE)]
    assert None not in shards
    assert len(set(shards)) == 3


async def test_the_fullest_shard_is_drained_first(redis: Redis) -> None:
    run = await Run.create(redis)
    blocks = blocks_of(numbered(200), run.layout)
    full = [replace(blocks[2], keys=(key,)) for key in blocks[2].keys]
    assert await run.streams.publish(
        COORDINATOR, [*blocks[:2], *full], skipped=0, cursor="0:0", next_cursor="1:1", exhausted=True
    )
    await run.streams.join(ONE)
    assert await run.streams.claim_shard(ONE) == blocks[2].shard


async def test_workers_share_a_shard_when_fewer_have_work(redis: Redis) -> None:
    run = await Run.create(redis, record_of(shards=1))
    await run.publish(numbered(2_000))
    for worker in (ONE, TWO):
        await run.streams.join(worker)
        assert await run.streams.claim_shard(worker) == 0
    got = {worker: await run.streams.claim(worker, ShardId(0)) for worker in (ONE, TWO)}
    assert all(got.values())
    one, two = (claim for claim in got.values() if claim)
    assert one.entry != two.entry
    assert not set(one.block.keys) & set(two.block.keys)


async def test_every_block_is_delivered_to_one_worker_only(redis: Redis) -> None:
    run = await Run.create(redis, record_of(shards=8, buckets=8))
    keys = numbered(20_000)
    await run.publish(keys)
    workers = [WorkerId(f"worker {number}") for number in range(5)]

    async def drain(worker: WorkerId) -> list[Claim]:
        streams = Streams(redis, run.keys, run.layout, run.record.epoch)
        mine = Run(redis, run.record)
        mine.streams = streams
        await streams.join(worker)
        return await mine.drain(worker)

    claims = [claim for part in await asyncio.gather(*map(drain, workers)) for claim in part]
    assert keys_of(claims) == sorted(keys)
    assert {claim.deliveries for claim in claims} == {1}
    assert all(claim.block.shard == claim.shard for claim in claims)
    assert not await redis.exists(run.keys.ready)


async def test_a_refused_key_reaches_the_worker_with_its_reason(redis: Redis) -> None:
    run = await Run.create(redis)
    keys = numbered(100)
    await run.publish(keys, reasons={keys[3]: "has no host", keys[77]: "is empty"})
    await run.streams.join(ONE)
    found = {
        claim.block.keys[index]: why for claim in await run.drain(ONE) for index, why in claim.block.refusals.items()
    }
    assert found == {keys[3]: "has no host", keys[77]: "is empty"}


async def test_nothing_to_claim_is_none(redis: Redis) -> None:
    run = await Run.create(redis)
    await run.streams.join(ONE)
    assert await run.streams.claim_shard(ONE) is None
    assert await run.streams.claim(ONE, ShardId(2)) is None


async def test_a_drained_shard_is_given_back_once_nothing_is_pending(redis: Redis) -> None:
    run = await Run.create(redis, record_of(shards=1))
    await run.publish(["a"])
    await run.streams.join(ONE)
    claims = await run.drain(ONE)
    assert await redis.hkeys(run.keys.claims) == [b"0 one"]
    await run.complete(ONE, 1, claims)
    assert await run.streams.claim(ONE, ShardId(0)) is None
    assert not await redis.exists(run.keys.claims)


async def test_a_claim_whose_result_was_lost_brings_the_same_block_when_repeated(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await Run.create(redis, record_of(shards=1))
    await run.publish(numbered(1_500))
    await run.streams.join(ONE)
    assert await run.streams.claim_shard(ONE) == 0
    first = await run.streams.claim(ONE, ShardId(0))
    monkeypatch.setattr(run.streams, "_claim_block", LostResult(run.streams._claim_block, lost=3))
    claims = []
    while len(claims) < 2:
        try:
            claims.append(await run.streams.claim(ONE, ShardId(0)))
        except RedisUnavailable:
            assert await redis.xlen(run.keys.stream(0)) == 3
    found = [claim for claim in (first, *claims) if claim]
    assert keys_of(found) == sorted(numbered(1_500)), "a block whose delivery was lost stays with a living worker"
    assert {claim.deliveries for claim in found} == {1}
    assert await run.streams.claim(ONE, ShardId(0)) is None


async def test_a_dead_workers_block_whose_result_was_lost_comes_again(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await Run.create(redis, record_of(shards=1))
    await run.publish(numbered(1_000))
    await run.streams.join(ONE)
    await run.next(ONE)
    await run.died(ONE)
    await run.streams.join(TWO)
    assert await run.streams.claim_shard(TWO) == 0
    monkeypatch.setattr(run.streams, "_claim_block", LostResult(run.streams._claim_block))
    with pytest.raises(RedisUnavailable):
        await run.streams.claim(TWO, ShardId(0))
    again, rest = await run.streams.claim(TWO, ShardId(0)), await run.streams.claim(TWO, ShardId(0))
    assert again
    assert rest
    assert (again.deliveries, rest.deliveries) == (2, 1)
    assert keys_of([again, rest]) == sorted(numbered(1_000))


async def test_entries_that_are_no_blocks_are_quarantined_and_the_shard_goes_on(
    redis: Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = await Run.create(redis, record_of(shards=1))
    await run.publish(["a"])
    rubbish = [b"rubbish", b"\xff" * 50_000]
    for payload in rubbish:
        await redis.xadd(run.keys.stream(0), {"b": payload})
    await redis.xadd(run.keys.stream(0), {"another": "field"})
    await run.publish(["b"], exhausted=True)
    await redis.zadd(run.keys.ready, {"0": 5})
    await run.streams.join(ONE)
    # Also when Redis is away in the middle of it, they do not stay pending with a living worker.
    monkeypatch.setattr(run.streams, "_quarantine", LostResult(run.streams._quarantine))
    claims: list[Claim] = []
    while True:
        try:
            claim = await run.streams.claim(ONE, ShardId(0))
        except RedisUnavailable:
            continue
        if claim is None:
            break
        claims.append(claim)
    assert keys_of(claims) == ["a", "b"]
    await run.complete(ONE, 1, claims)
    assert (await redis.xpending(run.keys.stream(0), "workers"))["pending"] == 0
    assert await redis.xlen(run.keys.stream(0)) == 0
    assert await redis.lrange(run.keys.quarantine, 0, -1) == [rubbish[0], rubbish[1][:MAX_QUARANTINED_BYTES], b""]
    assert len([line for line in caplog.messages if "is quarantined" in line]) == 3
    assert await check_resolved(run) == b"resolved"


async def test_an_entry_that_could_not_be_quarantined_comes_again(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await Run.create(redis, record_of(shards=1))
    await run.publish(["a"])
    entry = (await redis.xrange(run.keys.stream(0)))[0][0]
    await redis.xdel(run.keys.stream(0), entry)
    await redis.xadd(run.keys.stream(0), {"b": b"rubbish"})
    await run.streams.join(ONE)
    quarantine = run.streams._quarantine

    async def cut_off(keys: object, arguments: object) -> object:
        monkeypatch.setattr(run.streams, "_quarantine", quarantine)
        raise OSError("cut off")

    monkeypatch.setattr(run.streams, "_quarantine", cut_off)
    with pytest.raises(RedisUnavailable):
        await run.streams.claim(ONE, ShardId(0))
    assert await run.streams.claim(ONE, ShardId(0)) is None
    assert (await redis.xpending(run.keys.stream(0), "workers"))["pending"] == 0
    assert await redis.llen(run.keys.quarantine) == 1


# -- split


async def test_a_block_that_is_split_comes_again_in_parts(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    run = await Run.create(redis, record_of(shards=1))
    keys = numbered(500)
    await run.publish(keys, exhausted=True, reasons={keys[7]: "why", keys[400]: "why not"})
    await run.streams.join(ONE)
    await run.streams.join(TWO)
    whole = await run.next(ONE)
    assert whole
    left = [index for index in range(500) if index % 5]  # the others are done
    await run.streams.complete(
        ONE,
        1,
        Completion([(digest(key), Outcome.STORED) for index, key in enumerate(whole.block.keys) if not index % 5]),
    )
    monkeypatch.setattr(run.streams, "_split", LostResult(run.streams._split))
    with pytest.raises(RedisUnavailable):
        await run.streams.split(ONE, whole, left)
    before = await run.everything()
    await run.streams.split(ONE, whole, left)
    assert await run.everything() == before
    claims = await run.drain(TWO)
    assert [key for claim in claims for key in claim.block.keys] == [whole.block.keys[index] for index in left]
    assert max(len(claim.block.keys) for claim in claims) <= 63
    reasons = {claim.block.keys[index]: why for claim in claims for index, why in claim.block.refusals.items()}
    assert reasons == {whole.block.keys[index]: why for index, why in whole.block.refusals.items() if index % 5}
    assert await check_resolved(run) == b"running"
    await run.complete(TWO, 1, claims)
    assert await check_resolved(run) == b"resolved"
    counts = await run.counts()
    assert (counts.done, counts.total) == (500, 500)


async def test_a_worker_whose_lease_ended_splits_nothing(redis: Redis) -> None:
    run = await Run.create(redis)
    await run.publish(numbered(20))
    await run.streams.join(ONE)
    claim = await run.next(ONE)
    assert claim
    await run.died(ONE)
    before = await run.everything()
    with pytest.raises(LeaseLost):
        await run.streams.split(ONE, claim, [0, 1])
    await redis.hset(run.keys.state, "epoch", "second")
    with pytest.raises(EpochLost):
        await run.streams.split(ONE, claim, [0, 1])
    await redis.hset(run.keys.state, "epoch", "first")
    assert await run.everything() == before


# -- leases


async def test_a_worker_knows_its_rank_among_the_living_and_the_runs_state(redis: Redis) -> None:
    run = await Run.create(redis)

    def place(presence: Presence) -> tuple[int, int, RunState]:
        return presence.rank, presence.size, presence.state

    assert place(await run.streams.join(TWO)) == (0, 1, RunState.RUNNING)
    assert place(await run.streams.join(ONE)) == (0, 2, RunState.RUNNING)
    assert place(await run.streams.renew(TWO)) == (1, 2, RunState.RUNNING)
    await run.streams.release(ONE)
    await run.streams.join(ONE, SHORT)
    await lapsed(run, ONE)
    await redis.hset(run.keys.state, "state", "resolved")
    assert place(await run.streams.renew(TWO)) == (0, 1, RunState.RESOLVED)


async def test_no_more_workers_join_than_the_run_may_have_and_those_beyond_it_leave(redis: Redis) -> None:
    run = await Run.create(redis)
    await run.publish(numbered(500), exhausted=False)
    for worker in (ONE, TWO):
        await run.streams.join(worker)
    await run.runs.steer(run.record.name, Steering(max_workers=1))
    presences = [await run.streams.renew(worker) for worker in (ONE, TWO)]
    assert [presence.surplus for presence in presences] == [False, True]
    for worker in (ONE, TWO):
        await run.streams.join(worker)  # the result of its first call got lost
    await run.streams.release(TWO)
    with pytest.raises(WorkersFull):
        await run.streams.join(THREE)
    await run.runs.steer(run.record.name, NOT_STEERED)
    assert not (await run.streams.join(THREE)).surplus


async def test_a_renewed_lease_lasts_from_then_on(redis: Redis) -> None:
    run = await Run.create(redis)
    await run.streams.join(ONE, SHORT)
    before = await redis.zscore(run.keys.workers, ONE)
    await run.streams.renew(ONE, 30.0)
    after = await redis.zscore(run.keys.workers, ONE)
    assert before is not None
    assert after is not None
    assert after - before >= 30_000 - 200


async def test_a_worker_whose_lease_ended_writes_nothing(redis: Redis) -> None:
    run = await Run.create(redis)
    await run.publish(numbered(200))
    await run.streams.join(ONE, SHORT)
    claim = await run.next(ONE)
    assert claim
    await lapsed(run, ONE)
    before = await run.everything()
    with pytest.raises(LeaseLost, match="lease on run run has ended"):
        await run.streams.claim(ONE, claim.shard)
    with pytest.raises(LeaseLost):
        await run.streams.claim_shard(ONE)
    with pytest.raises(LeaseLost):
        await run.streams.renew(ONE)
    with pytest.raises(LeaseLost):
        await run.complete(ONE, 1, [claim])
    assert await run.everything() == before


async def test_a_worker_of_another_epoch_writes_nothing(redis: Redis) -> None:
    run = await Run.create(redis)
    await run.publish(numbered(200))
    await run.streams.join(ONE)
    claim = await run.next(ONE)
    assert claim
    await redis.hset(run.keys.state, "epoch", "second")
    before = await run.everything()
    with pytest.raises(EpochLost):
        await run.streams.claim(ONE, claim.shard)
    with pytest.raises(EpochLost):
        await run.streams.claim_shard(ONE)
    with pytest.raises(EpochLost):
        await run.streams.renew(ONE)
    with pytest.raises(EpochLost):
        await run.streams.join(TWO)
    with pytest.raises(EpochLost):
        await run.complete(ONE, 1, [claim])
    assert await run.everything() == before


async def test_a_worker_on_a_wiped_redis_learns_it_and_leaves_no_trace(redis: Redis) -> None:
    run = await Run.create(redis)
    await run.streams.join(ONE)
    await redis.flushall()
    with pytest.raises(EpochLost):
        await run.streams.claim_shard(ONE)
    with pytest.raises(EpochLost):
        await run.streams.renew(ONE)
    with pytest.raises(EpochLost):
        await run.complete(ONE, 1, [])
    assert not await redis.keys()


async def test_a_dead_workers_blocks_go_to_another_before_new_ones(redis: Redis) -> None:
    run = await Run.create(redis, record_of(shards=1))
    keys = numbered(2_000)
    await run.publish(keys)
    await run.streams.join(ONE, SHORT)
    await run.streams.join(TWO)
    lost = [claim for claim in [await run.next(ONE), await run.next(ONE)] if claim]
    assert {claim.deliveries for claim in lost} == {1}
    await lapsed(run, ONE)
    claims = await run.drain(TWO)
    assert [claim.entry for claim in claims[:2]] == [claim.entry for claim in lost]
    assert [claim.deliveries for claim in claims] == [2, 2, 1, 1]
    assert [claim.block for claim in claims[:2]] == [claim.block for claim in lost]
    assert keys_of(claims) == sorted(keys)


async def test_the_shard_of_a_dead_worker_is_found_although_nothing_new_is_in_it(redis: Redis) -> None:
    run = await Run.create(redis)
    await run.publish(["a"])
    await run.streams.join(ONE, SHORT)
    await run.streams.join(TWO)
    lost = await run.next(ONE)
    assert lost
    assert await run.next(TWO) is None, "the holder is alive"
    await lapsed(run, ONE)
    taken = await run.next(TWO)
    assert taken
    assert (taken.entry, taken.deliveries) == (lost.entry, 2)
    assert await run.next(TWO) is None
    names = [consumer["name"] for consumer in await redis.xinfo_consumers(run.keys.stream(lost.shard), "workers")]
    assert names == [b"two"], "the dead worker is forgotten"
    assert all(not claim.endswith(b" one") for claim in await redis.hkeys(run.keys.claims))


async def test_a_shard_that_was_taken_over_is_held_like_any_other(redis: Redis) -> None:
    run = await Run.create(redis)
    await run.publish(numbered(5_000))
    for worker in (ONE, TWO, THREE):
        await run.streams.join(worker)
    lost = await run.next(ONE)
    assert lost
    await run.died(ONE)
    assert await run.streams.claim_shard(TWO) == lost.shard
    claims = [await run.streams.claim(TWO, lost.shard) for _ in range(2)]
    assert [claim.deliveries for claim in claims if claim] == [2, 1]
    assert await run.streams.claim_shard(THREE) != lost.shard


async def test_a_shard_without_new_blocks_is_offered_to_nobody(redis: Redis) -> None:
    run = await Run.create(redis)
    await run.publish(["a"])
    await run.streams.join(ONE)
    await run.streams.join(TWO)
    assert await run.next(ONE)
    assert await run.streams.claim_shard(TWO) is None


async def test_a_third_worker_takes_over_from_the_second(redis: Redis) -> None:
    run = await Run.create(redis)
    await run.publish(["a"])
    for worker, deliveries in ((ONE, 1), (TWO, 2), (THREE, 3)):
        await run.streams.join(worker)
        claim = await run.next(worker)
        assert claim
        assert claim.deliveries == deliveries
        await run.died(worker)


async def test_a_dead_worker_that_never_read_its_shard_does_not_hold_it_for_ever(redis: Redis) -> None:
    run = await Run.create(redis)
    await run.publish(numbered(100))
    await run.streams.join(ONE)
    assert await run.streams.claim_shard(ONE) is not None
    await run.streams.release(ONE)
    await run.streams.join(TWO)
    claims = await run.drain(TWO)
    assert keys_of(claims) == sorted(numbered(100))
    await run.complete(TWO, 1, claims)
    assert await run.next(TWO) is None
    assert all(not claim.endswith(b" one") for claim in await redis.hkeys(run.keys.claims))


async def test_what_a_worker_leaves_is_claimable_at_once_and_not_charged_with_a_death(redis: Redis) -> None:
    run = await Run.create(redis)
    await run.publish(numbered(50))
    await run.streams.join(ONE)
    await run.streams.join(TWO)
    held = await run.drain(ONE)
    assert await run.next(TWO) is None
    await run.streams.release(ONE)
    taken = await run.drain(TWO)
    assert keys_of(taken) == keys_of(held) == sorted(numbered(50))
    assert {claim.deliveries for claim in taken} == {1}
    for call in (run.streams.renew, run.streams.claim_shard):
        with pytest.raises(LeaseLost):
            await call(ONE)
    await run.streams.release(ONE)
    await run.streams.release(WorkerId("nobody"))
    assert (await run.streams.renew(TWO)).size == 1


async def test_the_register_forgets_workers_that_died_long_ago(redis: Redis) -> None:
    run = await Run.create(redis)
    await run.streams.join(TWO)
    await run.streams.release(TWO)
    await redis.zadd(run.keys.workers, {"died long ago": 1, "left long ago": -1})
    await run.streams.join(ONE)
    assert await redis.zrange(run.keys.workers, 0, -1) == [b"two", b"one"]


# -- complete


async def test_completing_counts_outcomes_and_empties_the_streams(redis: Redis) -> None:
    run = await Run.create(redis)
    keys = numbered(1_000)
    await run.publish(keys)
    await run.streams.join(ONE)
    claims = await run.drain(ONE)
    outcomes = [Outcome.STORED] * 600 + [Outcome.GONE] * 250 + [Outcome.REFUSED] * 100 + [Outcome.FAILED] * 50
    mixed = [(digest(key), outcome) for key, outcome in zip(keys, outcomes, strict=True)]
    done = replace(completion(claims, requests=20), outcomes=mixed)
    assert await run.streams.complete(ONE, 1, done) == 1_000
    counts = await run.counts()
    assert counts.outcomes == {
        Outcome.STORED: 600,
        Outcome.GONE: 250,
        Outcome.REFUSED: 100,
        Outcome.FAILED: 50,
        Outcome.UNCHANGED: 0,
    }
    assert (counts.done, counts.resolved, counts.queued) == (1_000, 1_000, 0)
    assert (counts.requests, counts.received) == (20, 200)
    assert await run.queued_keys() == []
    for shard in range(run.layout.shards):
        assert (await redis.xpending(run.keys.stream(shard), "workers"))["pending"] == 0
    assert await run.done.intersection([digest(key) for key in keys]) == {digest(key) for key in keys}


async def test_a_block_is_resolved_when_it_is_finished_and_not_before(redis: Redis) -> None:
    run = await Run.create(redis)
    await run.publish(numbered(10))
    await run.streams.join(ONE)
    claims = await run.drain(ONE)
    await run.streams.complete(ONE, 1, replace(completion(claims), finished=()))
    counts = await run.counts()
    assert (counts.done, counts.resolved) == (10, 0)
    assert await run.queued_keys() == sorted(numbered(10))
    await run.streams.complete(ONE, 2, replace(completion(claims), outcomes=()))
    counts = await run.counts()
    assert (counts.done, counts.resolved) == (10, 10)


async def test_completing_again_with_the_same_sequence_counts_nothing_twice(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await Run.create(redis)
    await run.publish(numbered(500))
    await run.streams.join(ONE)
    done = completion(await run.drain(ONE), requests=5)
    monkeypatch.setattr(run.streams, "_complete", LostResult(run.streams._complete))
    with pytest.raises(RedisUnavailable):
        await run.streams.complete(ONE, 1, done)
    before = await run.everything()
    assert await run.streams.complete(ONE, 1, done) == 0
    assert await run.everything() == before
    counts = await run.counts()
    assert (counts.done, counts.resolved, counts.requests, counts.received) == (500, 500, 5, 50)
    await run.streams.complete(ONE, 2, Completion([], requests=2, received=3))
    counts = await run.counts()
    assert (counts.done, counts.requests, counts.received) == (500, 7, 53)


async def test_the_same_keys_from_two_workers_count_once(redis: Redis) -> None:
    run = await Run.create(redis)
    await run.publish(numbered(300))
    await run.streams.join(ONE)
    await run.streams.join(TWO)
    claims = await run.drain(ONE)
    both = completion(claims)
    assert await run.streams.complete(ONE, 1, replace(both, finished=())) == 300
    late = replace(both, outcomes=[(name, Outcome.FAILED) for name, _ in both.outcomes])
    assert await run.streams.complete(TWO, 1, late) == 0
    assert await run.streams.complete(ONE, 2, replace(both, outcomes=())) == 0
    counts = await run.counts()
    assert (counts.outcomes[Outcome.STORED], counts.outcomes[Outcome.FAILED]) == (300, 0)
    assert counts.resolved == 300


async def test_a_batch_of_many_keys_fits_into_one_bucket(redis: Redis) -> None:
    run = await Run.create(redis, record_of(shards=1, buckets=1))
    names = [digest(key) for key in numbered(20_001)]
    await run.streams.join(ONE)
    assert await run.streams.complete(ONE, 1, Completion([(name, Outcome.STORED) for name in names])) == 20_001
    assert await redis.scard(run.keys.done(0)) == 20_001


async def test_the_run_is_resolved_when_all_that_was_published_is_resolved(redis: Redis) -> None:
    run = await Run.create(redis)
    keys = numbered(3_000)
    await run.publish(keys[:2_000], skipped=4)
    await run.streams.join(ONE)
    await run.streams.join(TWO)
    await run.complete(ONE, 1, await run.drain(ONE))
    assert await check_resolved(run) == b"running", "the source is not exhausted"
    await run.publish(keys[2_000:], exhausted=True)
    first = await run.next(ONE)
    assert first
    rest = await run.drain(TWO)
    await run.complete(TWO, 1, rest)
    assert await check_resolved(run) == b"running", "a block is in the making"
    await run.complete(ONE, 2, [first])
    assert await check_resolved(run) == b"resolved"
    assert await check_resolved(run) == b"resolved"
    counts = await run.counts()
    assert counts.published == counts.resolved == counts.done == 3_000
    assert counts.total == 3_004
    await redis.hset(run.keys.state, "state", "complete")
    assert await check_resolved(run) == b"complete"
    await redis.hset(run.keys.state, "epoch", "second")
    assert await check_resolved(run) == b"epoch"


async def test_many_workers_that_die_at_random_lose_and_double_nothing(redis: Redis) -> None:
    run = await Run.create(redis, record_of(shards=4, buckets=16))
    keys = numbered(6_000)
    await run.publish(keys, exhausted=True)
    finished: list[Claim] = []
    for life in range(200):
        worker = WorkerId(f"life {life}")
        await run.streams.join(worker)
        claims = [claim for claim in [await run.next(worker) for _ in range(3)] if claim]
        if not claims:
            break
        # Each worker finishes some of its blocks, and dies with the others pending.
        some = claims[: life % 3 + 1] if life % 4 else []
        if some:
            await run.complete(worker, 1, some)
        finished += some
        await (run.streams.release(worker) if life % 2 else run.died(worker))
    assert keys_of(finished) == sorted(keys)
    assert await check_resolved(run) == b"resolved"


# -- what other programs do to the streams


@pytest.mark.parametrize("gone", [1, 15])
async def test_pending_entries_that_another_program_deleted_do_not_hide_the_others(redis: Redis, gone: int) -> None:
    run = await Run.create(redis, record_of(shards=1))
    blocks = [Block(ShardId(0), (key,)) for key in numbered(gone + 2)]
    await run.streams.publish(COORDINATOR, blocks, skipped=0, cursor="0:0", next_cursor="1:1", exhausted=True)
    await run.streams.join(ONE)
    held = await run.drain(ONE)
    assert len(held) == gone + 2
    await redis.xdel(run.keys.stream(0), *[claim.entry for claim in held[:gone]])
    await run.streams.release(ONE)
    await run.streams.join(TWO)
    taken = await run.drain(TWO)
    assert [claim.entry for claim in taken] == [claim.entry for claim in held[gone:]]
    await run.complete(TWO, 1, taken)
    assert await run.next(TWO) is None
    assert (await redis.xpending(run.keys.stream(0), "workers"))["pending"] == 0
    assert await check_resolved(run) == b"running", "keys that nobody resolved are never called resolved"


async def test_entries_that_another_program_deleted_before_delivery_do_not_stop_the_shard(redis: Redis) -> None:
    run = await Run.create(redis, record_of(shards=1))
    await run.publish(numbered(1_000))
    entries = await redis.xrange(run.keys.stream(0))
    await redis.xdel(run.keys.stream(0), entries[0][0])
    await run.streams.join(ONE)
    assert len(await run.drain(ONE)) == len(entries) - 1
    assert await run.streams.claim_shard(ONE) is None


async def test_a_deleted_stream_is_an_empty_shard(redis: Redis) -> None:
    run = await Run.create(redis, record_of(shards=1))
    await run.publish(numbered(10))
    await redis.delete(run.keys.stream(0))
    await run.streams.join(ONE)
    assert await run.next(ONE) is None
    assert await run.streams.claim_shard(ONE) is None
    assert not await redis.exists(run.keys.claims)


# -- a full Redis


async def test_a_full_redis_stops_the_planner_but_neither_leases_nor_finished_work(redis: Redis) -> None:
    run = await Run.create(redis)
    await run.publish(numbered(2_000))
    await run.streams.join(ONE, 5.0)
    first = await run.next(ONE)
    assert first
    before = await redis.zscore(run.keys.workers, ONE)
    assert before is not None
    async with full(redis):
        with pytest.raises(RedisUnavailable, match="maxmemory"):
            await run.publish(["one more"])
        assert (await run.streams.renew(ONE, 60.0)).state is RunState.RUNNING
        after = await redis.zscore(run.keys.workers, ONE)
        assert after is not None
        assert after > before + 10_000
        assert await run.streams.complete(ONE, 1, replace(completion([first]), finished=())) == len(first.block.keys)
        claims = [first, *await run.drain(ONE)]
        await run.complete(ONE, 2, claims)
        assert (await run.counts()).resolved == 2_000
        await run.streams.release(ONE)
        with pytest.raises(RedisUnavailable, match="maxmemory"):
            await run.runs.make(record_of("another"))
    run.cursor = "1:0"
    assert await run.publish(["one more"])


# -- errors


async def test_a_value_of_another_program_is_named_in_one_line(redis: Redis) -> None:
    run = await Run.create(redis)
    await redis.delete(run.keys.workers)
    await redis.set(run.keys.workers, "a string")
    with pytest.raises(RedisDamaged, match=r"\ARedis has something else in a run's place: .*WRONGTYPE.*\Z"):
        await run.streams.join(ONE)


async def test_an_entry_that_nobody_holds_is_not_resolved_twice(redis: Redis) -> None:
    run = await Run.create(redis)
    await run.publish(["a"])
    await run.streams.join(ONE)
    unknown: Any = FinishedBlock(ShardId(0), EntryId("99-1"), 500)
    await run.streams.complete(ONE, 1, Completion([], finished=[unknown]))
    assert (await run.counts()).resolved == 0


async def test_two_epochs_have_two_streams_objects(redis: Redis) -> None:
    run = await Run.create(redis)
    other = Streams(redis, run.keys, run.layout, Epoch("second"))
    await run.streams.join(ONE)
    with pytest.raises(EpochLost):
        await other.join(TWO)
