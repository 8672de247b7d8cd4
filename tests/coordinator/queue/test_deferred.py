"""The deferred set on a real Redis: keys go in when their block is finished, and come back in new blocks when due."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from coordinator.errors import EpochLost, LeaseLost, RedisUnavailable
from coordinator.model import NO_ATTEMPTS, Attempts, Claim, Epoch, Outcome, RunState
from coordinator.queue.deferred import DeferredKeys
from coordinator.queue.sharding import BLOCK_KEYS, digest
from coordinator.queue.streams import Completion, FinishedBlock
from coordinator.queue.wire import Deferral, decode_block, encode_block, encode_deferral
from coordinator.redis.keys import FIRST_CURSOR
from coordinator.redis.scripts import Script
from coordinator.roles.janitor import Janitor
from tests.coordinator.parts import COORDINATOR, ONE, TWO, LostResult, Run, completion, keys_of, numbered, record_of
from tests.coordinator.queue.test_wire import large_list_pages
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

HOUR = 3600.0
ATTEMPTS = Attempts(1, 2, ("12:00:00 status 500", "12:00:01 status 429 \u00d72"))


def deferred_of(run: Run, epoch: str = "first", keys_per_request: int = 1) -> DeferredKeys:
    return DeferredKeys(run.client, run.keys, run.layout, Epoch(epoch), keys_per_request)


def deferring(
    claims: Sequence[Claim],
    keys: Iterable[str],
    delay: float = 0.0,
    attempts: Attempts = ATTEMPTS,
    *,
    finish: bool = True,
) -> Completion:
    """A completion: all keys of the claims are stored, except these, which are deferred."""
    waiting = set(keys)
    done = completion(claims)
    names = {digest(key) for key in waiting}
    return replace(
        done,
        outcomes=[(name, outcome) for name, outcome in done.outcomes if name not in names],
        finished=done.finished if finish else (),
        deferred=[Deferral(digest(key), key, attempts, delay) for key in sorted(waiting)],
    )


async def drained(run: Run, keys: Sequence[str], *, exhausted: bool = True) -> list[Claim]:
    """Publish the keys as the whole source, and claim them as ONE."""
    await run.publish(keys, exhausted=exhausted)
    await run.streams.join(ONE)
    return await run.drain(ONE)


async def check_resolved(run: Run) -> RunState:
    return RunState((await Script(run.client, "run/check_resolved")([run.keys.state], [run.record.epoch])).decode())


async def requeued(run: Run) -> int:
    """Requeue what is due; returns how many keys that were."""
    deferred = deferred_of(run)
    due = await deferred.due()
    assert await deferred.requeue(COORDINATOR, due)
    return len(due)


async def waiting(run: Run) -> int:
    count = int(await run.client.zcard(run.keys.deferred_due))
    assert count == await run.client.hlen(run.keys.deferred_keys)
    return count


# -- into the set


async def test_deferring_a_key_and_finishing_its_block_are_one_step(redis: Redis) -> None:
    run = await Run.create(redis)
    keys = numbered(100)
    claims = await drained(run, keys)
    assert await run.streams.complete(ONE, 1, deferring(claims, keys[:7], HOUR)) == 93
    counts = await run.counts()
    assert (counts.published, counts.resolved, counts.deferred, counts.queued, counts.done) == (107, 100, 7, 7, 93)
    assert counts.total == 100, "a key that waits is no second key"
    assert await run.queued_keys() == []
    assert await waiting(run) == 7
    assert await check_resolved(run) is RunState.RUNNING


async def test_repeating_a_completion_defers_once(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    run = await Run.create(redis)
    keys = numbered(100)
    done = deferring(await drained(run, keys), keys[:7], HOUR)
    monkeypatch.setattr(run.streams, "_complete", LostResult(run.streams._complete))
    with pytest.raises(RedisUnavailable):
        await run.streams.complete(ONE, 1, done)
    before = await run.everything()
    await run.streams.complete(ONE, 1, done)
    assert await run.everything() == before


async def test_repeating_a_completion_after_its_keys_came_back_defers_nothing(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await Run.create(redis)
    keys = numbered(100)
    done = deferring(await drained(run, keys), keys[:7])
    monkeypatch.setattr(run.streams, "_complete", LostResult(run.streams._complete))
    with pytest.raises(RedisUnavailable):
        await run.streams.complete(ONE, 1, done)
    assert await requeued(run) == 7
    before = await run.everything()
    await run.streams.complete(ONE, 1, done)
    assert await run.everything() == before
    assert await run.queued_keys() == sorted(keys[:7])
    assert (await run.counts()).published == 107


async def test_two_deliveries_that_defer_the_same_key_make_it_wait_once(redis: Redis) -> None:
    run = await Run.create(redis, record_of(shards=1))
    keys = numbered(20)
    claims = await drained(run, keys)
    await run.streams.complete(ONE, 1, deferring(claims, keys[:5], HOUR, finish=False))
    due = await redis.zrange(run.keys.deferred_due, 0, -1, withscores=True)
    await run.died(ONE)
    await run.streams.join(TWO)
    again = await run.drain(TWO)
    assert keys_of(again) == sorted(keys)
    await run.streams.complete(TWO, 1, deferring(again, keys[3:8], 9 * HOUR, Attempts(2)))
    assert await waiting(run) == 8
    assert set(due) <= set(await redis.zrange(run.keys.deferred_due, 0, -1, withscores=True)), (
        "the first one's time holds"
    )
    counts = await run.counts()
    assert (counts.published, counts.resolved, counts.done) == (28, 20, 18)


async def test_a_worker_whose_lease_or_epoch_is_over_defers_nothing(redis: Redis) -> None:
    run = await Run.create(redis)
    done = deferring(await drained(run, numbered(20)), numbered(3), HOUR)
    await run.died(ONE)
    before = await run.everything()
    with pytest.raises(LeaseLost):
        await run.streams.complete(ONE, 1, done)
    assert await run.everything() == before
    await run.streams.join(ONE)
    await redis.hset(run.keys.state, "epoch", "second")
    before = await run.everything()
    with pytest.raises(EpochLost):
        await run.streams.complete(ONE, 1, done)
    assert await run.everything() == before


async def test_a_batch_of_thousands_is_deferred_at_once(redis: Redis) -> None:
    run = await Run.create(redis)
    keys = numbered(12_000)
    await run.streams.complete(ONE, 1, deferring(await drained(run, keys), keys))
    assert await waiting(run) == 12_000
    assert [await requeued(run) for _ in range(4)] == [5_000, 5_000, 2_000, 0]
    assert await run.queued_keys() == sorted(keys)


# -- out of the set


async def test_a_key_is_due_when_redis_own_clock_says_so(redis: Redis) -> None:
    run = await Run.create(redis)
    keys = numbered(4)
    claims = await drained(run, keys)
    deferred = [
        Deferral(digest(key), key, NO_ATTEMPTS, delay) for key, delay in zip(keys, (0, 0.3, HOUR, -5), strict=True)
    ]
    before = await redis_now(redis)
    await run.streams.complete(ONE, 1, replace(completion(claims), outcomes=(), deferred=deferred))
    after = await redis_now(redis)
    at = {key: float(await redis.zscore(run.keys.deferred_due, digest(key)) or 0) for key in keys}
    assert before + 300 <= at[keys[1]] <= after + 300
    assert before + 3_600_000 <= at[keys[2]] <= after + 3_600_000
    deferred_set = deferred_of(run)

    async def due_are(*expected: str) -> bool:
        found = await deferred_set.due()
        if digest(keys[1]) in found:
            assert await redis_now(redis) >= at[keys[1]]
        return set(found) == {digest(key) for key in expected}

    await eventually(lambda: due_are(keys[0], keys[1], keys[3]), "those with little delay to be due")
    assert list(await deferred_set.due()) == [digest(keys[3]), digest(keys[0]), digest(keys[1])], (
        "the longest wait first"
    )
    await redis.zadd(run.keys.deferred_due, {digest(keys[2]): await redis_now(redis)})
    assert await due_are(*keys)


async def redis_now(redis: Redis) -> int:
    seconds, micros = await redis.time()
    return int(seconds) * 1000 + int(micros) // 1000


async def test_keys_that_are_due_come_back_in_whole_blocks_with_their_attempts(redis: Redis) -> None:
    run = await Run.create(redis, record_of(shards=8, buckets=8))
    keys = numbered(1_300)
    claims = await drained(run, keys)
    attempts = {key: Attempts(index % 5, index % 3, (f"attempt on {key}",)) for index, key in enumerate(keys)}
    deferred = [Deferral(digest(key), key, attempts[key], -index) for index, key in enumerate(keys)]
    await run.streams.complete(ONE, 1, replace(completion(claims), outcomes=(), deferred=deferred))
    assert await requeued(run) == 1_300
    assert await waiting(run) == 0
    blocks = [
        decode_block(claims[0].shard, fields[b"b"])
        for shard in range(8)
        for _, fields in await redis.xrange(run.keys.stream(shard))
    ]
    assert sorted(len(block.keys) for block in blocks) == [300, BLOCK_KEYS, BLOCK_KEYS]
    assert all(list(block.keys) == sorted(block.keys, key=digest) for block in blocks)
    assert sum(int(score) for _, score in await redis.zrange(run.keys.ready, 0, -1, withscores=True)) == 3
    again = await run.drain(ONE)
    assert {key: claim.block.attempts[at] for claim in again for at, key in enumerate(claim.block.keys)} == attempts
    counts = await run.counts()
    assert (counts.published, counts.resolved, counts.deferred) == (2_600, 1_300, 0)
    await run.complete(ONE, 2, again)
    assert await check_resolved(run) is RunState.RESOLVED
    assert (await run.counts()).done == 1_300


async def test_keys_that_are_due_come_back_in_blocks_of_whole_requests(redis: Redis) -> None:
    run = await Run.create(redis, record_of(shards=16, buckets=16))
    keys = numbered(1_000)
    await run.streams.complete(ONE, 1, deferring(await drained(run, keys), keys[:970]))
    deferred = deferred_of(run, keys_per_request=60)
    assert await deferred.requeue(COORDINATOR, await deferred.due())
    blocks = [claim.block for claim in await run.drain(ONE)]
    assert sorted(len(block.keys) for block in blocks) == [10, *[60] * 16]
    assert sorted(key for block in blocks for key in block.keys) == sorted(keys[:970])


async def test_attempts_survive_a_block_a_split_a_deferral_and_a_block_again(redis: Redis) -> None:
    run = await Run.create(redis, record_of(shards=1))
    keys = numbered(40)
    claims = await drained(run, keys)
    attempts = {key: Attempts(number, 1, (f"first attempt on {key}",)) for number, key in enumerate(keys)}
    first = [Deferral(digest(key), key, attempts[key]) for key in keys]
    await run.streams.complete(ONE, 1, replace(completion(claims), outcomes=(), deferred=first))
    assert await requeued(run) == 40
    whole = await run.next(ONE)
    assert whole
    await run.streams.split(ONE, whole, list(range(0, 40, 2)))
    parts = await run.drain(ONE)
    found = {key: claim.block.attempts[at] for claim in parts for at, key in enumerate(claim.block.keys)}
    assert found == {key: attempts[key] for key in whole.block.keys[::2]}
    longer = {key: Attempts(one.failed + 1, 1, (*one.history, "second \u00d72")) for key, one in found.items()}
    second = [Deferral(digest(key), key, one) for key, one in longer.items()]
    await run.streams.complete(ONE, 2, replace(completion(parts), outcomes=(), deferred=second))
    assert await requeued(run) == 20
    last = await run.drain(ONE)
    assert {key: claim.block.attempts[at] for claim in last for at, key in enumerate(claim.block.keys)} == longer
    await run.complete(ONE, 3, last)
    assert await check_resolved(run) is RunState.RESOLVED


async def test_requeueing_is_all_or_nothing(redis: Redis) -> None:
    run = await Run.create(redis)
    keys = numbered(50)
    await run.streams.complete(ONE, 1, deferring(await drained(run, keys), keys[:10]))
    deferred = deferred_of(run)
    due = await deferred.due()
    assert len(due) == 10
    some = dict(list(due.items())[4:7])
    assert await deferred.requeue(COORDINATOR, some)
    before = await run.everything()
    assert not await deferred.requeue(COORDINATOR, due), "others of them are not in the set any more"
    assert not await deferred.requeue(COORDINATOR, some), "a repeated call"
    assert await run.everything() == before
    assert await requeued(run) == 7
    assert await run.queued_keys() == sorted(keys[:10])


async def test_a_requeueing_whose_result_was_lost_is_carried_out_once(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await Run.create(redis)
    keys = numbered(50)
    await run.streams.complete(ONE, 1, deferring(await drained(run, keys), keys[:10]))
    deferred = deferred_of(run)
    due = await deferred.due()
    monkeypatch.setattr(deferred, "_requeue_due", LostResult(deferred._requeue_due))
    with pytest.raises(RedisUnavailable):
        await deferred.requeue(COORDINATOR, due)
    assert await deferred.due() == {}
    assert not await deferred.requeue(COORDINATOR, due)
    assert await run.queued_keys() == sorted(keys[:10])


async def test_only_the_leader_of_this_epoch_requeues(redis: Redis) -> None:
    run = await Run.create(redis)
    await run.streams.complete(ONE, 1, deferring(await drained(run, numbered(50)), numbered(10)))
    deferred = deferred_of(run)
    due = await deferred.due()
    before = await run.everything()
    assert not await deferred.requeue("another coordinator", due)
    with pytest.raises(EpochLost, match="start it again"):
        await deferred_of(run, "second").requeue(COORDINATOR, due)
    assert await run.everything() == before
    await redis.delete(run.keys.leader)
    assert not await deferred.requeue(COORDINATOR, due)
    assert await waiting(run) == 10


async def test_a_key_that_was_done_meanwhile_comes_back_and_resolves_all_the_same(redis: Redis) -> None:
    run = await Run.create(redis, record_of(shards=1))
    keys = numbered(20)
    claims = await drained(run, keys)
    # ONE defers a key and dies; TWO takes the block over and stores the key.
    await run.streams.complete(ONE, 1, deferring(claims, keys[:1], finish=False))
    await run.died(ONE)
    await run.streams.join(TWO)
    await run.complete(TWO, 1, await run.drain(TWO))
    assert await check_resolved(run) is RunState.RUNNING
    assert await requeued(run) == 1
    (late,) = await run.drain(TWO)
    assert await run.done.intersection([digest(keys[0])]) == {digest(keys[0])}
    await run.streams.complete(TWO, 2, Completion([], [FinishedBlock(late.shard, late.entry, 1)]))
    assert await check_resolved(run) is RunState.RESOLVED
    assert (await run.counts()).done == 20


# -- counts, and what is missing


async def replanned(run: Run) -> int:
    """How many keys the janitor finds missing from the queue."""
    streams = [run.keys.stream(shard) for shard in range(run.layout.shards)]
    keys = [run.keys.state, run.keys.leader, run.keys.deferred_due, run.keys.frontier, run.keys.ready, *streams]
    missing: int = await Script(run.client, "run/replan")(keys, [run.record.epoch, COORDINATOR, FIRST_CURSOR])
    return missing


async def test_a_run_is_not_resolved_while_a_key_is_deferred(redis: Redis) -> None:
    run = await Run.create(redis)
    keys = numbered(30)
    await run.streams.complete(ONE, 1, deferring(await drained(run, keys), keys[:1]))
    assert await check_resolved(run) is RunState.RUNNING
    assert await replanned(run) == 0, "a key that waits is not missing"
    assert await requeued(run) == 1
    assert await check_resolved(run) is RunState.RUNNING
    again = await run.drain(ONE)
    assert await check_resolved(run) is RunState.RUNNING
    await run.streams.complete(ONE, 2, deferring(again, keys[:1]))
    assert await check_resolved(run) is RunState.RUNNING
    assert await requeued(run) == 1
    await run.complete(ONE, 3, await run.drain(ONE), Outcome.FAILED)
    assert await check_resolved(run) is RunState.RESOLVED
    counts = await run.counts()
    assert (counts.published, counts.resolved, counts.done, counts.deferred, counts.total) == (32, 32, 30, 0, 30)


async def test_what_cannot_be_read_leaves_the_set_and_is_planned_again(
    redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    run = await Run.create(redis)
    keys = numbered(30)
    await run.streams.complete(ONE, 1, deferring(await drained(run, keys), keys[:3]))
    await redis.hset(run.keys.deferred_keys, digest(keys[0]), b"rubbish")
    await redis.hdel(run.keys.deferred_keys, digest(keys[1]))
    assert await requeued(run) == 3
    assert await waiting(run) == 0
    assert len([line for line in caplog.messages if "cannot be read and is planned again" in line]) == 2
    assert await replanned(run) == 0, "the third one is in the queue"
    claims = await run.drain(ONE)
    assert keys_of(claims) == [keys[2]]
    await run.complete(ONE, 2, claims)
    assert await check_resolved(run) is RunState.RUNNING, "two are missing by count"
    assert await replanned(run) == 2
    run.cursor = FIRST_CURSOR
    missing = [key for key in keys if digest(key) not in await run.done.intersection(sorted(map(digest, keys)))]
    assert missing == keys[:2]
    await run.publish(missing, skipped=28, exhausted=True)
    await run.complete(ONE, 3, await run.drain(ONE))
    assert await check_resolved(run) is RunState.RESOLVED
    assert (await run.counts()).done == 30


async def test_a_queue_that_vanished_is_planned_again_beside_what_is_deferred(redis: Redis) -> None:
    run = await Run.create(redis)
    keys = numbered(100)
    claims = await drained(run, keys[:40], exhausted=False)
    await run.streams.complete(ONE, 1, deferring(claims, keys[:5], HOUR))
    await run.publish(keys[40:], exhausted=True)
    for shard in range(run.layout.shards):
        await redis.xtrim(run.keys.stream(shard), maxlen=0, approximate=False)
    assert await replanned(run) == 60
    counts = await run.counts()
    assert (counts.published, counts.resolved, counts.deferred, counts.exhausted) == (5, 0, 5, False)
    # Deferred keys are not done, so the source brings them too; the second of the two finds the key done.
    run.cursor = FIRST_CURSOR
    await run.publish([*keys[:5], *keys[40:]], skipped=35, exhausted=True)
    await run.complete(ONE, 2, await run.drain(ONE))
    assert await check_resolved(run) is RunState.RUNNING
    assert await replanned(run) == 0
    for key in keys[:5]:
        await redis.zadd(run.keys.deferred_due, {digest(key): 0})
    assert await requeued(run) == 5
    await run.complete(ONE, 3, await run.drain(ONE))
    assert await check_resolved(run) is RunState.RESOLVED
    counts = await run.counts()
    assert (counts.done, counts.total, counts.published, counts.resolved) == (100, 100, 70, 70)


async def test_a_finished_run_keeps_nothing_of_the_deferred_set(redis: Redis) -> None:
    run = await Run.create(redis)
    await run.streams.complete(ONE, 1, deferring(await drained(run, numbered(30)), numbered(3), HOUR))
    assert await redis.exists(run.keys.deferred_due, run.keys.deferred_keys) == 2
    await run.runs.finish(run.record, {Outcome.STORED: 30})
    assert await redis.exists(run.keys.deferred_due, run.keys.deferred_keys) == 0


async def test_the_janitor_brings_back_what_is_due_and_settles_the_run_after_that(redis: Redis) -> None:
    run = await Run.create(redis)
    keys = numbered(30)
    await run.streams.complete(ONE, 1, deferring(await drained(run, keys), keys[:4]))
    janitor = Janitor(redis, run.keys, run.layout, run.record.epoch, COORDINATOR)
    task = asyncio.create_task(janitor.watch())
    try:

        async def queued() -> bool:
            return await run.queued_keys() == sorted(keys[:4])

        await eventually(queued, "what is due to be in the queue")
        assert await check_resolved(run) is RunState.RUNNING
        await run.complete(ONE, 2, await run.drain(ONE))

        async def resolved() -> bool:
            return await run.runs.state("run") is RunState.RESOLVED

        await eventually(resolved, "the run to be resolved")
        await run.runs.finish(run.record, {Outcome.STORED: 30})
        assert await asyncio.wait_for(task, 10)
    finally:
        task.cancel()


async def test_pages_of_lists_that_are_due_come_back_in_blocks_that_fit(redis: Redis) -> None:
    run = await Run.create(redis)
    due = {}
    for key, context in large_list_pages(BLOCK_KEYS):
        deferral = Deferral(digest(key, context), key, ATTEMPTS, context=context)
        due[deferral.digest] = encode_deferral(deferral)
    blocks = list(deferred_of(run)._blocks(due))
    assert sum(len(block.keys) for block in blocks) == BLOCK_KEYS
    assert [decode_block(block.shard, encode_block(block)) for block in blocks] == blocks
