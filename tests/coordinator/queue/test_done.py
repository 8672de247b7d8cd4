"""The done set on a real Redis: it gives the same results as a Python set, and stays as small as promised."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from coordinator.errors import EpochLost, RedisUnavailable
from coordinator.model import Outcome
from coordinator.queue.sharding import BUCKET_KEYS, Layout, digest
from tests.coordinator.parts import ONE, LostResult, Run, numbered, record_of

pytestmark = pytest.mark.anyio

# Whose first 64 bits differ: those who share them are one key to the done set, which is what its size costs.
DIGESTS = st.binary(min_size=8, max_size=8).map(lambda head: head + head[::-1])
names = itertools.count()


@given(
    finished=st.dictionaries(DIGESTS, st.sampled_from(Outcome), max_size=60),
    others=st.lists(DIGESTS, max_size=60),
    buckets=st.sampled_from([1, 2, 64]),
    seed=st.integers(0, 1_000),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_finished_agrees_with_a_set(
    redis: Redis, finished: dict[bytes, Outcome], others: list[bytes], buckets: int, seed: int
) -> None:
    run = await Run.create(redis, record_of(f"run{next(names)}", shards=1, buckets=buckets))
    for outcome in Outcome:
        await run.done.add(outcome, [name for name, how in finished.items() if how is outcome])
    digests = [*finished, *others]
    Random(seed).shuffle(digests)
    assert await run.done.intersection(digests) == set(finished), "unsorted"
    assert await run.done.intersection(sorted(digests)) == set(finished)
    counts = await run.counts()
    assert counts.outcomes == {outcome: list(finished.values()).count(outcome) for outcome in Outcome}


async def test_keys_of_neighbouring_members_are_not_confused(redis: Redis) -> None:
    run = await Run.create(redis, record_of(shards=1, buckets=4))
    edges = [bytes(16), b"\x7f" + b"\xff" * 15, b"\x80" + bytes(15), b"\xff" * 16]
    near = [bytes(7) + b"\x01" + bytes(8), b"\x80" + bytes(6) + b"\x01" + bytes(8)]
    await run.done.add(Outcome.STORED, edges)
    assert await run.done.intersection([*edges, *near]) == set(edges)


async def test_many_keys_of_one_bucket_are_added_and_looked_up_in_parts(redis: Redis) -> None:
    run = await Run.create(redis, record_of(shards=1, buckets=1))
    keys = [digest(key) for key in numbered(20_002)]
    await run.done.add(Outcome.GONE, keys[::2])
    assert await run.done.intersection(keys) == set(keys[::2])
    assert (await run.counts()).outcomes[Outcome.GONE] == 10_001


async def test_looking_up_nothing_and_about_keys_of_an_empty_run(redis: Redis) -> None:
    run = await Run.create(redis)
    assert await run.done.intersection([]) == set()
    assert await run.done.intersection([digest("a")]) == set()
    assert not [key async for key in redis.scan_iter("*:done:*")]


async def test_adding_again_counts_nothing_twice(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    run = await Run.create(redis)
    keys = [digest(key) for key in numbered(1_000)]
    monkeypatch.setattr(run.done, "_done_add", LostResult(run.done._done_add))
    with pytest.raises(RedisUnavailable):
        await run.done.add(Outcome.STORED, keys)
    await run.done.add(Outcome.STORED, keys)
    await run.done.add(Outcome.FAILED, keys)
    counts = await run.counts()
    assert counts.done == counts.outcomes[Outcome.STORED] == 1_000
    assert (counts.published, counts.resolved) == (0, 0)


async def test_rebuilding_counts_by_outcome_and_what_is_completed_adds_to_it(redis: Redis) -> None:
    run = await Run.create(redis)
    keys = numbered(900)
    stored, gone, failed = ([digest(key) for key in keys[start : start + 300]] for start in (0, 300, 600))

    async def rows() -> AsyncIterator[Mapping[Outcome, Sequence[bytes]]]:
        yield {Outcome.STORED: stored[:200], Outcome.GONE: gone}
        yield {}
        yield {Outcome.STORED: stored[200:], Outcome.FAILED: failed}

    await run.done.rebuild(rows())
    expected = dict.fromkeys(Outcome, 0)
    expected |= {Outcome.STORED: 300, Outcome.GONE: 300, Outcome.FAILED: 300}
    assert (await run.counts()).outcomes == expected
    assert await run.done.intersection([digest(key) for key in [*keys, "new"]]) == {digest(key) for key in keys}
    await run.publish([keys[0], "new"])
    await run.streams.join(ONE)
    assert await run.complete(ONE, 1, await run.drain(ONE)) == 1
    assert (await run.counts()).outcomes == expected | {Outcome.STORED: 301}


async def test_a_rebuild_of_another_epoch_adds_nothing(redis: Redis) -> None:
    run = await Run.create(redis)
    await redis.hset(run.keys.state, "epoch", "second")
    before = await run.everything()
    with pytest.raises(EpochLost, match="run run was made anew"):
        await run.done.add(Outcome.STORED, [digest("a")])
    assert await run.everything() == before


@pytest.mark.parametrize("keys", [pytest.param(51_200, id="fullest"), pytest.param(26_000, id="emptiest")])
async def test_buckets_stay_intsets_and_a_key_takes_less_than_12_bytes(redis: Redis, keys: int) -> None:
    layout = Layout.of(keys)
    assert BUCKET_KEYS / 2 < keys / layout.buckets <= BUCKET_KEYS
    run = await Run.create(redis, record_of(shards=layout.shards, buckets=layout.buckets))
    await run.done.add(Outcome.STORED, [digest(key) for key in numbered(keys)])
    buckets = [run.keys.done(bucket) for bucket in range(layout.buckets)]
    async with redis.pipeline(transaction=False) as pipe:
        for bucket in buckets:
            pipe.object("ENCODING", bucket)
            pipe.scard(bucket)
            pipe.memory_usage(bucket)
        results = await pipe.execute()
    assert {bytes(encoding) for encoding in results[::3]} == {b"intset"}
    assert sum(results[1::3]) == keys
    assert sum(results[2::3]) / keys <= 12
