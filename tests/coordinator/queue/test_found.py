"""Keys that pages named, on a real Redis: published while there is room, else left in the frontier; never twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
from redis.asyncio import Redis

from coordinator.errors import EpochLost, LeaseLost, RedisUnavailable
from coordinator.model import Epoch, FoundBatch, FoundKey, KeyContext, Outcome, ShardId
from coordinator.queue.done import KnownSet
from coordinator.queue.found import MOST_PUBLISHED_AT_ONCE, FoundKeys, Frontier, found_blocks
from coordinator.queue.sharding import Layout, digest
from coordinator.queue.wire import decode_block
from coordinator.redis.scripts import Script
from tests.coordinator.parts import (
    COORDINATOR,
    ONE,
    TWO,
    LostResult,
    Run,
    a_found_batch,
    numbered,
    record_of,
    stored_before,
)

pytestmark = pytest.mark.anyio

HIGH_WATER = 10_000


async def a_run(redis: Redis) -> Run:
    """A run that follows, with an exhausted source of one key, which worker ONE holds."""
    run = await Run.create(redis, record_of(follows=True))
    await run.publish(["seed"], exhausted=True)
    await run.streams.join(ONE)
    return run


def found_keys(
    run: Run,
    *,
    high_water: int = HIGH_WATER,
    by_level: bool = False,
    bounded: tuple[int, ...] = (),
    epoch: str = "first",
) -> FoundKeys:
    return FoundKeys(
        run.client, run.keys, run.layout, Epoch(epoch), high_water=high_water, by_level=by_level, bounded=bounded
    )


def frontier_of(run: Run) -> Frontier:
    return Frontier(run.client, run.keys, run.layout, run.record.epoch)


async def pointers(run: Run) -> list[tuple[str, int]]:
    """The frontier as (pointer, depth)."""
    found = await run.client.zrange(run.keys.frontier, 0, -1, withscores=True)
    return [(pointer.decode(), int(depth)) for pointer, depth in found]


async def pending(run: Run) -> int:
    return int(await run.client.hget(run.keys.state, "pending") or 0)


async def resolved_state(run: Run) -> bytes:
    state: bytes = await Script(run.client, "run/check_resolved")([run.keys.state], [run.record.epoch])
    return state


# -- a worker publishes, or leaves a pointer


async def test_with_room_found_keys_are_published_at_once_with_their_contexts_and_refusals(redis: Redis) -> None:
    run = await a_run(redis)
    context = KeyContext("product", 2, origin=b"o" * 16, fields={"a": "b"}, params={"page": 2}, list_key="x", page_no=2)
    bad = FoundKey(digest("bad", context), "bad", context, refusal="it has no host")
    batch = a_found_batch(7, numbered(999), depth=2)
    await found_keys(run).publish(ONE, 1, [replace(batch, size=1_000, keys=(*batch.keys, bad))])
    assert await run.queued_keys() == sorted([*numbered(999), "bad", "seed"])
    assert (await run.counts()).published == 1_001
    assert await pointers(run) == []
    assert await pending(run) == 0
    shards = [ShardId(shard) for shard in range(run.layout.shards)]
    blocks = [
        decode_block(shard, fields[b"b"])
        for shard in shards
        for _, fields in await redis.xrange(run.keys.stream(shard))
    ]
    (block,) = (block for block in blocks if "bad" in block.keys)
    assert block.context(block.keys.index("bad")) == context
    assert list(block.refusals.values()) == ["it has no host"]
    ready = await redis.zrange(run.keys.ready, 0, -1, withscores=True)
    assert sum(count for _, count in ready) == len(blocks), "each block can be claimed"


@pytest.mark.parametrize(
    ("batch", "options"),
    [
        pytest.param(a_found_batch(7, numbered(300)), {"high_water": 300}, id="above the high-water mark"),
        pytest.param(a_found_batch(7, numbered(MOST_PUBLISHED_AT_ONCE + 1)), {}, id="too many at once"),
        pytest.param(a_found_batch(7, numbered(3), rule=2), {"bounded": (2,)}, id="of a bounded rule"),
        pytest.param(a_found_batch(7, numbered(3)), {"by_level": True}, id="of a deeper level"),
        pytest.param(stored_before(a_found_batch(7, numbered(3))), {}, id="of pages that were stored before"),
    ],
)
async def test_a_pointer_is_left_for_keys(redis: Redis, batch: FoundBatch, options: dict[str, object]) -> None:
    run = await a_run(redis)
    await found_keys(run, **options).publish(ONE, 1, [batch])  # type: ignore[arg-type] # of the table above
    assert await run.queued_keys() == ["seed"]
    assert await pointers(run) == [(f"7 1 {batch.size}", 1)]
    assert await pending(run) == batch.size
    assert (await run.counts()).published == 1


async def test_the_batches_of_one_call_share_the_room(redis: Redis) -> None:
    run = await a_run(redis)
    batches = [a_found_batch(number, numbered(40, f"of {number}")) for number in range(3)]
    await found_keys(run, high_water=100).publish(ONE, 1, batches)
    assert len(await run.queued_keys()) == 81
    assert await pointers(run) == [("2 1 40", 1)]


async def test_by_level_the_keys_of_a_list_are_published_at_once(redis: Redis) -> None:
    """The next page of a list has the depth of the list."""
    run = await a_run(redis)
    await found_keys(run, by_level=True).publish(
        ONE, 1, [a_found_batch(1, ["next"], depth=0), a_found_batch(1, ["deeper"], depth=1)]
    )
    assert await run.queued_keys() == ["next", "seed"]
    assert await pointers(run) == [("1 1 1", 1)]


@pytest.mark.parametrize("high_water", [HIGH_WATER, 10], ids=["published", "left"])
async def test_a_repeated_call_changes_nothing(redis: Redis, high_water: int) -> None:
    run = await a_run(redis)
    found, again = found_keys(run, high_water=high_water), a_found_batch(3, numbered(70, "before"))
    lost = LostResult(found._publish_found)
    found._publish_found = lost  # type: ignore[assignment] # the result of the first call gets lost
    batches = [a_found_batch(7, numbered(500)), stored_before(again)]
    with pytest.raises(RedisUnavailable):
        await found.publish(ONE, 1, batches)
    before = await run.everything()
    await found.publish(ONE, 1, batches)
    assert await run.everything() == before
    assert (await run.counts()).published + await pending(run) == 1 + 500 + 70


async def test_a_worker_without_its_lease_publishes_nothing(redis: Redis) -> None:
    run = await a_run(redis)
    await run.died(ONE)
    before = await run.everything()
    with pytest.raises(LeaseLost):
        await found_keys(run).publish(ONE, 1, [a_found_batch(7, numbered(10))])
    assert await run.everything() == before


async def test_nothing_is_published_into_another_run(redis: Redis) -> None:
    run = await a_run(redis)
    before = await run.everything()
    with pytest.raises(EpochLost):
        await found_keys(run, epoch="second").publish(ONE, 1, [a_found_batch(7, numbered(10))])
    assert await run.everything() == before


async def test_a_batch_that_was_published_before_is_not_published_again(redis: Redis) -> None:
    """The worker died between `publish` and `complete`: another one meets the pages in Postgres."""
    run = await a_run(redis)
    batch = a_found_batch(7, numbered(100))
    await found_keys(run).publish(ONE, 1, [batch])
    await run.streams.join(TWO)
    before = await run.queued_keys()
    await found_keys(run).publish(TWO, 1, [stored_before(batch)])
    assert await run.queued_keys() == before
    assert await pointers(run) == []
    assert await pending(run) == 0


async def test_a_batch_of_which_only_postgres_knew_is_published_once(redis: Redis) -> None:
    """The worker died between the commit and `publish`, and two workers meet pages of its commit."""
    run = await a_run(redis)
    await run.streams.join(TWO)
    batch = a_found_batch(7, numbered(100))
    # One of its keys is in the source too, and done.
    await run.done.add(Outcome.STORED, [stored_before(batch).example])
    await found_keys(run).publish(ONE, 1, [stored_before(batch)])
    assert await pointers(run) == [("7 1 100", 1)]
    assert await frontier_of(run).publish(COORDINATOR, batch, [], skipped=100, by_rule={})
    await found_keys(run).publish(TWO, 1, [stored_before(batch)])
    assert await pointers(run) == []
    assert await pending(run) == 0


async def test_a_full_redis_lets_found_keys_pass(redis: Redis) -> None:
    """Only a worker that completes makes room in it."""
    run = await a_run(redis)
    await redis.config_set("maxmemory", 1)
    try:
        await found_keys(run).publish(ONE, 1, [a_found_batch(7, numbered(10))])
    finally:
        await redis.config_set("maxmemory", 0)
    assert len(await run.queued_keys()) == 11


async def test_a_worker_that_leaves_leaves_no_receipt(redis: Redis) -> None:
    run = await a_run(redis)
    await found_keys(run).publish(ONE, 1, [a_found_batch(7, numbered(10))])
    await run.streams.release(ONE)
    assert await redis.hgetall(run.keys.receipts) == {}


# -- what is known


async def test_new_are_the_keys_that_were_not_named_before_and_are_not_done(redis: Redis) -> None:
    run = await a_run(redis)
    published, left, done, new = (a_found_batch(number, numbered(5, f"of {number}")) for number in range(4))
    await found_keys(run, high_water=6).publish(ONE, 1, [published, left])
    assert await pointers(run) == [("1 1 5", 1)]
    await run.done.add(Outcome.GONE, [one.digest for one in done.keys])
    found = found_keys(run)
    every = [one for batch in (published, left, done, new, new) for one in batch.keys]
    assert await found.new(every) == {one.digest for one in new.keys}
    recent = found.recent[""]
    assert recent.new([one.key for one in every]) == [one.key for one in every[-10:]], "the others are remembered"


async def test_keys_are_remembered_when_their_batch_is_committed_and_published_and_not_before(redis: Redis) -> None:
    """A load can be looked up and never be committed: what its pages named must be new in the next one."""
    run = await a_run(redis)
    batch = a_found_batch(7, numbered(5))
    keys = [one.key for one in batch.keys]
    found, of_another_run = found_keys(run), found_keys(run, epoch="second")
    assert await found.new(batch.keys) == {one.digest for one in batch.keys}
    assert found.recent[""].new(keys) == keys
    with pytest.raises(EpochLost):
        await of_another_run.publish(ONE, 1, [batch])
    with pytest.raises(LeaseLost):
        await found.publish(TWO, 1, [batch])
    assert found.recent[""].new(keys) == of_another_run.recent[""].new(keys) == keys
    await found.publish(ONE, 1, [batch])
    assert not found.recent[""].new(keys)
    assert found.recent["another"].new(keys) == keys


async def test_pages_of_lists_are_not_remembered(redis: Redis) -> None:
    """Their URLs can be links, too, which are other keys."""
    run = await a_run(redis)
    context = KeyContext(depth=1, origin=b"origin", list_key="seed", page_no=2)
    page = FoundKey(digest("page 2", context), "page 2", context)
    found = found_keys(run)
    await found.publish(ONE, 1, [FoundBatch(7, 1, 1, (page,))])
    assert await found.new([page]) == set()
    assert found.recent[""].new(["page 2"]) == ["page 2"]


@pytest.mark.parametrize(("count", "size"), [(90, 90), (800, 100), (2_000, 250), (5_000, 500)])
def test_found_keys_travel_in_few_blocks_whatever_the_number_of_shards(count: int, size: int) -> None:
    found = a_found_batch(7, numbered(count)).keys
    blocks = found_blocks(found, Layout(shards=256, buckets=256))
    assert {len(block.keys) for block in blocks} == {size}
    assert sorted(key for block in blocks for key in block.keys) == sorted(numbered(count))


def test_blocks_with_pages_of_lists_are_smaller_because_each_may_be_large() -> None:
    found = list(a_found_batch(7, numbered(3_999)).keys)
    context = KeyContext(depth=1, origin=b"origin", list_key="seed", page_no=2)
    found.append(FoundKey(digest("page 2", context), "page 2", context))
    blocks = found_blocks(found, Layout(shards=256, buckets=256))
    assert {len(block.keys) for block in blocks} == {160}


async def test_known_keys_that_a_rebuild_marks_are_intsets(redis: Redis) -> None:
    run = await a_run(redis)
    known = KnownSet(redis, run.keys, run.layout, run.record.epoch)
    digests = [digest(key) for key in numbered(1_000)]
    await known.mark(digests)
    await known.mark(digests[:10])
    assert await known.intersection([*digests, digest("another")]) == set(digests)
    for bucket in range(run.layout.buckets):
        assert await redis.object("ENCODING", run.keys.known(bucket)) == b"intset"


# -- the frontier


async def test_the_first_pointer_is_the_least_deep_one(redis: Redis) -> None:
    run = await a_run(redis)
    frontier = frontier_of(run)
    assert await frontier.first() is None
    await frontier.add([FoundBatch(5, 3, 30), FoundBatch(9, 1, 10), FoundBatch(1, 2, 20)])
    assert await frontier.first() == FoundBatch(9, 1, 10)
    assert await pending(run) == 60


@pytest.mark.parametrize(
    "pointer",
    [
        b"",
        b"rubbish",
        b"1 2",
        b"1 2 3 4",
        b"\xff\xfe",
        b"1 x 3",
        b"1 -2 3",
        b"1 2 -3",
        b"+1 2 3",
        f"{2**62} 1 1".encode(),
    ],
)
async def test_a_damaged_pointer_is_removed(redis: Redis, pointer: bytes) -> None:
    run = await a_run(redis)
    frontier = frontier_of(run)
    await frontier.add([FoundBatch(9, 1, 10)])
    await redis.zadd(run.keys.frontier, {pointer: 0})
    assert await frontier.first() == FoundBatch(9, 1, 10)
    assert await pointers(run) == [("9 1 10", 1)]


async def test_a_pointer_is_published_all_at_once(redis: Redis) -> None:
    run = await a_run(redis)
    frontier, batch = frontier_of(run), a_found_batch(7, numbered(900), depth=4, rule=2)
    await frontier.add([batch])
    blocks = found_blocks(batch.keys[:850], run.layout)
    assert await frontier.publish(COORDINATOR, batch, blocks, skipped=30, by_rule={2: (850, 20)})
    assert len(await run.queued_keys()) == 851
    assert (await frontier.level(), await frontier.followed(2), await pending(run)) == (4, 850, 0)
    counts = await run.counts()
    assert (counts.published, counts.total) == (851, 881)
    assert await redis.hget(run.keys.state, "cut") == b"20"


@pytest.mark.parametrize("why", ["moved", "deposed", "epoch", "resolved"])
async def test_a_pointer_is_not_published(redis: Redis, why: str) -> None:
    run = await a_run(redis)
    frontier, batch = frontier_of(run), a_found_batch(7, numbered(10), rule=2)
    await frontier.add([batch])
    blocks = found_blocks(batch.keys, run.layout)
    if why == "moved":
        assert await frontier.publish(COORDINATOR, batch, blocks, skipped=0, by_rule={2: (10, 0)})
    if why == "resolved":  # another program has written the pointer
        await redis.hset(run.keys.state, "state", "complete")
    if why == "epoch":
        await redis.hset(run.keys.state, "epoch", "second")
    before = await run.everything()
    coordinator = "another" if why == "deposed" else COORDINATOR
    if why == "epoch":
        with pytest.raises(EpochLost):
            await frontier.publish(coordinator, batch, blocks, skipped=0, by_rule={2: (10, 0)})
    else:
        assert not await frontier.publish(coordinator, batch, blocks, skipped=0, by_rule={2: (10, 0)})
    assert await run.everything() == before


async def test_a_run_is_not_resolved_while_keys_are_pending(redis: Redis) -> None:
    run = await a_run(redis)
    frontier, batch = frontier_of(run), a_found_batch(7, numbered(10))
    await found_keys(run, high_water=0).publish(ONE, 1, [batch])
    await run.complete(ONE, 1, await run.drain(ONE))
    assert (await run.counts()).queued == 0
    assert await resolved_state(run) == b"running"
    assert (await run.streams.renew(ONE)).state == "running"
    assert await frontier.publish(COORDINATOR, batch, found_blocks(batch.keys, run.layout), skipped=0, by_rule={})
    assert await resolved_state(run) == b"running"
    await run.complete(ONE, 2, await run.drain(ONE))
    assert await resolved_state(run) == b"resolved"


# -- what vanished


@pytest.mark.parametrize("vanished", ["streams", "frontier", "nothing"])
async def test_a_run_loses_its_epoch_when_keys_vanish_that_only_postgres_has(redis: Redis, vanished: str) -> None:
    run = await a_run(redis)
    await found_keys(run, high_water=0).publish(ONE, 1, [a_found_batch(7, numbered(10))])
    await run.complete(ONE, 1, await run.drain(ONE))
    if vanished == "streams":
        await found_keys(run).publish(ONE, 2, [a_found_batch(8, numbered(5, "another"))])
    streams = [run.keys.stream(shard) for shard in range(run.layout.shards)]
    await redis.delete(*{"streams": streams, "frontier": [run.keys.frontier], "nothing": ["nothing"]}[vanished])
    keys = [run.keys.state, run.keys.leader, run.keys.deferred_due, run.keys.frontier, run.keys.ready, *streams]
    found = await Script(redis, "run/replan")(keys, [run.record.epoch, COORDINATOR, "0:0", 1])
    assert found == (0 if vanished == "nothing" else b"epoch")
    assert (await redis.hget(run.keys.state, "epoch") == b"void") == (vanished != "nothing")


def test_found_keys_fill_the_requests_of_their_kind() -> None:
    """Also when a commit names keys of several kinds, and pages of lists, which are asked for alone."""
    contexts = {
        "many": [KeyContext("many", 1)] * 120,
        "single": [KeyContext("single", 1)] * 30,
        "list": [KeyContext("many", 1, list_key="x", page_no=2)] * 2,
    }
    found = [
        FoundKey(digest(key, context), key, context)
        for name, same in contexts.items()
        for key, context in zip((f"{name} {number}" for number in range(len(same))), same, strict=True)
    ]
    blocks = found_blocks(found, Layout(shards=64, buckets=64), {"many": 50, "single": 1})
    assert sum(len(block.keys) for block in blocks) == len(found)
    of_many = [block for block in blocks if block.keys[0].startswith("many")]
    assert [len(block.keys) % 50 for block in of_many] == [0] * (len(of_many) - 1) + [20]
    assert all(block.context(index).kind == "many" for block in of_many for index in range(len(block.keys)))
