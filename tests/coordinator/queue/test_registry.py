"""The list of runs in Redis, and the keys that a run has and leaves."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from redis.asyncio import Redis

import coordinator.redis.keys
from coordinator.model import Outcome, Presence, RunState
from coordinator.queue.done import DoneSet, KnownSet
from coordinator.queue.notices import Notices
from coordinator.queue.registry import RunInRedis, Runs
from coordinator.queue.sharding import Layout, digest
from coordinator.redis.keys import SEEN_AFTER_END_SECONDS, RunKeys
from coordinator.roles.election import Election
from coordinator.status import is_in_use
from tests.coordinator.parts import COORDINATOR, HOST, ONE, TWO, Run, numbered, record_of, run_in_progress
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

DAY = 86_400_000
LIFETIMES = {
    "as long as Redis": lambda milliseconds: milliseconds == -1,
    "the run and an hour": lambda milliseconds: milliseconds == -1,
    "until the run is complete": lambda milliseconds: milliseconds == -1,
    "its lease": lambda milliseconds: 0 < milliseconds <= 10_000,
    "its longest window": lambda milliseconds: 0 < milliseconds <= 3_600_000 + 120_000,
    "at most a day": lambda milliseconds: 0 < milliseconds <= DAY,
    "an hour": lambda milliseconds: 0 < milliseconds <= 3_600_000,
    "a minute": lambda milliseconds: 0 < milliseconds <= 60_000,
    "two days": lambda milliseconds: 0 < milliseconds <= 2 * DAY,
    "a week": lambda milliseconds: 0 < milliseconds <= 7 * DAY,
}


def documented(run: str) -> dict[str, tuple[str, str]]:
    """The table of keys.py, as {pattern: (type, lifetime)}."""
    lifetimes = "|".join(LIFETIMES)
    rows = re.findall(rf"^    (\S+) +(\w+) +({lifetimes}) +\S", coordinator.redis.keys.__doc__ or "", re.MULTILINE)
    table = {}
    for name, kind, lifetime in rows:
        pattern = re.escape(name.replace("…", f"shardcrawl:{{{run}}}"))
        for place, what in (("UPSTREAM", r"\S+"), ("WORKER", r"\S+"), ("ORIGIN", r"\S+"), (":N", r":\d+")):
            pattern = pattern.replace(place, what)
        table[pattern] = (kind, lifetime)
    assert len(table) == len(re.findall(r"^    (?:…:|shardcrawl:)", coordinator.redis.keys.__doc__ or "", re.MULTILINE))
    return table


async def kind_of(redis: Redis, key: str) -> str:
    kind: str = (await redis.type(key)).decode()
    return (
        (await redis.object("ENCODING", key)).decode()
        if kind == "set" and (":done:" in key or ":known:" in key)
        else kind
    )


# -- keys


async def test_every_key_of_a_run_stands_in_the_table_with_its_type_and_lifetime(redis: Redis) -> None:
    await run_in_progress(redis, "a-run.1")
    table = documented("a-run.1")
    found = {key.decode() async for key in redis.scan_iter()}
    unseen = set(table)
    for key in found:
        (pattern,) = [pattern for pattern in table if re.fullmatch(pattern, key)]
        kind, lifetime = table[pattern]
        assert await kind_of(redis, key) == kind, key
        assert LIFETIMES[lifetime](await redis.pttl(key)), key
        unseen.discard(pattern)
    assert not unseen


async def test_a_finished_run_leaves_only_what_is_worth_keeping(redis: Redis) -> None:
    run = await Run.create(redis)
    await run.publish(numbered(500), exhausted=True)
    await run.streams.join(ONE)
    await run.streams.join(TWO)
    first = await run.next(ONE)
    assert first
    claims = [first, *await run.drain(TWO)]
    await run.complete(ONE, 1, [first])
    await run.complete(TWO, 1, claims[1:])
    await redis.hset(run.keys.state, "state", "resolved")
    await run.runs.finish(run.record, {Outcome.STORED: 500})
    await Election(redis, run.keys, COORDINATOR).leave()
    kept = {key.decode() async for key in redis.scan_iter()}
    assert kept == {run.keys.state}
    assert 0 < await redis.ttl(run.keys.state) <= SEEN_AFTER_END_SECONDS
    # Nor do workers that come late bring anything back.
    for presence in (await run.streams.renew(ONE), await run.streams.join(TWO)):
        assert replace(presence, moves=0) == Presence(0, 1, RunState.COMPLETE)
    assert await run.streams.claim_shard(ONE) is None
    await run.streams.release(ONE)
    await run.runs.finish(run.record, {Outcome.STORED: 500})
    assert {key.decode() async for key in redis.scan_iter()} == kept


async def test_a_finished_run_of_200_000_keys_leaves_less_than_a_megabyte(redis: Redis) -> None:
    async def used() -> int:
        return int((await redis.info("memory"))["used_memory"])

    warm = record_of("warm")
    await Runs(redis).make(warm)  # scripts and buffers
    await DoneSet(redis, RunKeys("warm"), warm.layout, warm.epoch).add(Outcome.STORED, [digest("k")])
    before = await used()
    record = replace(record_of("large"), layout=Layout.of(200_000, None, follows=True))
    await Runs(redis).make(record)
    digests = [digest(f"key-{number}") for number in range(200_000)]
    of_run = (redis, RunKeys("large"), record.layout, record.epoch)
    await DoneSet(*of_run).add(Outcome.STORED, digests)
    await KnownSet(*of_run).mark(digests)
    assert await used() - before > 3_000_000
    await Runs(redis).finish(record, {Outcome.STORED: 200_000})

    async def is_small() -> bool:
        return await used() - before < 1_000_000

    await eventually(is_small, "the memory to be free")


async def test_a_run_that_was_made_anew_is_not_finished_by_who_worked_on_the_old_one(redis: Redis) -> None:
    old = record_of("run")
    runs = Runs(redis)
    await runs.make(old)
    await runs.make(record_of("run", epoch="second"))
    await runs.finish(old, {Outcome.STORED: 1})
    assert await runs.find("run") == RunInRedis("second", RunState.RUNNING)
    assert await runs.names() == ["run"]


async def test_who_works_on_a_cancelled_run_drains_with_a_lease_and_nobody_joins(redis: Redis) -> None:
    run = await Run.create(redis)
    await run.publish(numbered(500), exhausted=True)
    await run.streams.join(ONE)
    claim = await run.next(ONE)
    assert claim
    await run.runs.cancel(run.record.name)
    assert (await run.streams.renew(ONE)).state is RunState.CANCELLED
    assert (await run.streams.join(TWO)).state is RunState.CANCELLED
    await run.complete(ONE, 1, [claim])
    assert await is_in_use(redis, run.record.name)
    assert [name async for name in redis.scan_iter(f"*{TWO}*")] == []
    await run.streams.release(ONE)
    assert await is_in_use(redis, run.record.name), "the coordinator leads"
    await Election(redis, run.keys, COORDINATOR).leave()
    assert not await is_in_use(redis, run.record.name)
    await Notices(redis, run.keys).add(["host"])
    assert 0 < await redis.ttl(run.keys.matched_limits) <= SEEN_AFTER_END_SECONDS
    await run.runs.erase(run.record.name)
    assert [key async for key in redis.scan_iter()] == []
    await run.runs.cancel(run.record.name)
    assert await run.runs.find(run.record.name) is None


async def test_what_a_finished_run_leaves_of_its_limits_ends_by_itself(redis: Redis) -> None:
    run = await run_in_progress(redis, "run")
    await run.runs.finish(run.record, {})
    limits = (*run.keys.limiting, run.keys.slots(HOST), run.keys.health(HOST), run.keys.leader)
    for key in limits:
        assert 0 < await redis.pttl(key) <= 7 * DAY, key


def test_all_keys_of_a_run_live_in_one_cluster_slot() -> None:
    keys = RunKeys("r")
    every = [*keys.all(3, 5), keys.slots("example.org"), keys.stream(2), keys.done(4)]
    assert all(key.startswith("shardcrawl:{r}:") for key in every)
    assert len(set(every[:-3])) == len(every) - 3
    assert set(keys.queue(3)) < set(keys.all(3, 5))


# -- runs


async def test_a_made_run_is_found_and_listed(redis: Redis) -> None:
    runs = Runs(redis)
    assert (await runs.names(), await runs.find("b"), await runs.state("b")) == ([], None, None)
    records = [record_of("b", total=7), record_of("a", shards=2)]
    for record in records:
        await runs.make(record)
    assert await runs.names() == ["a", "b"]
    assert await runs.find("a") == RunInRedis("first", RunState.RUNNING)
    assert await runs.state("a") is RunState.RUNNING


@pytest.mark.slow
async def test_a_run_of_a_billion_keys_can_be_made(redis: Redis) -> None:
    record = record_of(shards=256, buckets=2**22)
    await Runs(redis).make(record)
    assert await Runs(redis).find(record.name) == RunInRedis("first", RunState.RUNNING)


async def test_making_a_run_anew_clears_what_the_earlier_one_left(redis: Redis) -> None:
    old = await run_in_progress(redis, "run")
    other = await run_in_progress(redis, "another")
    kept = {key: value for key, value in (await old.everything()).items() if b"another" in key}
    # Keys of another layout, and of no layout of ours, are deleted with the others.
    for name in (old.keys.stream(77), old.keys.done(99), f"{old.keys.prefix}spec", f"{old.keys.prefix}anything"):
        await redis.set(name, "planted")
    await old.runs.make(record_of("run", shards=1, buckets=2, epoch="second"))
    left = {key.decode() async for key in redis.scan_iter("*{run}*")}
    own = {old.keys.slots(HOST), old.keys.health(HOST), *old.keys.limiting, old.keys.robots("https://example.org")}
    own.add(old.keys.history)
    assert left - own == {old.keys.state}
    assert all([await redis.pttl(key) > 0 for key in left & own])
    state = await redis.hgetall(old.keys.state)
    assert int(state.pop(b"opened")) > 0
    assert state == {
        b"epoch": b"second",
        b"state": b"running",
        b"cursor": b"0:0",
        b"exhausted": b"0",
    }
    assert {key: value for key, value in (await other.everything()).items() if b"another" in key} == kept


async def test_finishing_replaces_the_counts_by_postgres_own(redis: Redis) -> None:
    run = await run_in_progress(redis, "run")
    await redis.hset(run.keys.state, "failed", "77")
    await run.runs.finish(run.record, {Outcome.STORED: 400, Outcome.GONE: 3})
    assert await run.runs.state("run") is RunState.COMPLETE
    expected = dict.fromkeys(Outcome, 0) | {Outcome.STORED: 400, Outcome.GONE: 3}
    assert (await run.counts()).outcomes == expected
