"""The planner on a real Redis: chunks of a source become blocks, without the keys that are done."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from coordinator.errors import EpochLost, RedisUnavailable, SourceError
from coordinator.model import Outcome, RunCounts
from coordinator.queue.sharding import BLOCK_KEYS, digest
from coordinator.roles.planner import CHUNK_KEYS, Planner
from coordinator.source import Chunk, Cursor, Refused
from tests.coordinator.parts import COORDINATOR, ONE, LostResult, MemorySource, Run, keys_of, numbered, record_of
from tests.waiting import eventually

pytestmark = pytest.mark.anyio


def planner_of(
    run: Run, source: MemorySource, *, high_water: int = 300_000, keys_per_request: int = 1, fill_seconds: float = 60.0
) -> Planner:
    return Planner(
        coordinator_id=COORDINATOR,
        source=source,
        cursor=str(source.cursor),
        streams=run.streams,
        done=run.done,
        layout=run.layout,
        counts=run.counts,
        high_water=high_water,
        keys_per_request=keys_per_request,
        fill_seconds=fill_seconds,
    )


async def keys_and_reasons(run: Run) -> dict[str, str | None]:
    """What a worker gets, as {key: why it must not be fetched}."""
    await run.streams.join(ONE)
    claims = await run.drain(ONE)
    found = {key: claim.block.refusals.get(index) for claim in claims for index, key in enumerate(claim.block.keys)}
    assert len(found) == len(keys_of(claims)), "a key was published twice"
    return found


async def test_every_key_is_published_once(redis: Redis) -> None:
    run = await Run.create(redis, record_of(shards=16, buckets=64))
    keys = numbered(20_000)
    source = MemorySource([*keys[:9_000], *keys], chunk=7_000)
    assert await planner_of(run, source).plan()
    # A key that comes again in another chunk is published again; the done set lets it be fetched once.
    assert sorted(set(await run.queued_keys())) == sorted(keys)
    counts = await run.counts()
    assert counts.exhausted
    assert counts.total == counts.published == len(await run.queued_keys())
    assert await redis.hget(run.keys.state, "cursor") == b"29000:29000"


async def test_a_key_that_comes_twice_in_a_chunk_is_published_once(redis: Redis) -> None:
    run = await Run.create(redis)
    assert await planner_of(run, MemorySource(numbered(100) * 3)).plan()
    assert await run.queued_keys() == sorted(numbered(100))


async def test_blocks_are_full_when_there_is_enough(redis: Redis) -> None:
    run = await Run.create(redis, record_of(shards=2))
    assert await planner_of(run, MemorySource(numbered(5_000))).plan()
    await run.streams.join(ONE)
    assert min(len(claim.block.keys) for claim in await run.drain(ONE)) > BLOCK_KEYS * 0.7


async def test_an_empty_source_is_exhausted_with_nothing_published(redis: Redis) -> None:
    run = await Run.create(redis)
    assert await planner_of(run, MemorySource([])).plan()
    counts = await run.counts()
    assert (counts.exhausted, counts.total, counts.published) == (True, 0, 0)


class HesitantSource(MemorySource):
    """Says only with an empty last chunk that it is exhausted; each second chunk is empty too."""

    def read(self, limit: int, seconds: float) -> Chunk:
        before = self.cursor
        if before.line % 2:  # a chunk of comments: only the cursor moves
            self.cursor = Cursor(before.offset, before.line + 1)
            return Chunk([], [], self.cursor, exhausted=False)
        keys = [str(key) for key in self.lines[before.offset : before.offset + self.chunk]]
        self.cursor = Cursor(before.offset + len(keys), before.line + 1) if keys else before
        return Chunk(keys, [], self.cursor, exhausted=not keys)


async def test_empty_chunks_move_the_cursor_and_an_empty_last_one_exhausts_the_source(redis: Redis) -> None:
    run = await Run.create(redis)
    assert await planner_of(run, HesitantSource(numbered(40), chunk=10)).plan()
    assert await run.queued_keys() == sorted(numbered(40))
    assert (await run.counts()).exhausted
    assert await redis.hget(run.keys.state, "cursor") == b"40:8"


async def test_finished_keys_are_skipped_and_count_towards_the_total(redis: Redis) -> None:
    run = await Run.create(redis)
    keys = numbered(3_000)
    await run.done.add(Outcome.STORED, [digest(key) for key in keys[::3]])
    assert await planner_of(run, MemorySource(keys, chunk=700)).plan()
    assert await run.queued_keys() == sorted(set(keys) - set(keys[::3]))
    counts = await run.counts()
    assert (counts.published, counts.total, counts.done) == (2_000, 3_000, 1_000)


async def test_the_done_set_is_read_only_when_something_was_done_before(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await Run.create(redis)
    keys = numbered(1_000)
    source = MemorySource([*keys, *keys], chunk=1_000, held_at=1_000)
    looked_up: list[int] = []
    finished = run.done.intersection

    async def noted(digests: Sequence[bytes]) -> set[bytes]:
        looked_up.append(len(digests))
        return await finished(digests)

    monkeypatch.setattr(run.done, "intersection", noted)
    planning = asyncio.create_task(planner_of(run, source).plan())

    async def half() -> bool:
        return (await run.counts()).published == 1_000

    await eventually(half, "half to be published")
    await run.streams.join(ONE)
    assert await run.complete(ONE, 1, await run.drain(ONE)) == 1_000
    source.go.set()
    assert await planning
    assert looked_up == [], "a key that comes again is a worker's to drop"
    assert await run.complete(ONE, 2, await run.drain(ONE)) == 0
    counts = await run.counts()
    assert (counts.total, counts.published, counts.resolved, counts.done) == (2_000, 2_000, 2_000, 1_000)
    await redis.hset(run.keys.state, mapping={"cursor": "0:0", "exhausted": "0"})
    assert await planner_of(run, MemorySource(keys)).plan()
    assert looked_up == [1_000]
    assert (await run.counts()).published == 2_000


async def test_refused_lines_arrive_with_their_line_and_reason(redis: Redis) -> None:
    run = await Run.create(redis)
    keys = numbered(200)
    lines: list[str | Refused] = [*keys]
    lines[17:17] = [Refused("ftp://x", 18, "does not start with http:// or https://")]
    lines[150:150] = [Refused("http://", 151, "has no valid host")]
    assert await planner_of(run, MemorySource(lines, chunk=60)).plan()
    found = await keys_and_reasons(run)
    reasons = {key: why for key, why in found.items() if why}
    assert reasons == {
        "ftp://x": "line 18: does not start with http:// or https://",
        "http://": "line 151: has no valid host",
    }
    assert sorted(set(found) - set(reasons)) == sorted(keys)
    assert (await run.counts()).total == 202


async def test_a_refused_line_that_is_finished_is_skipped(redis: Redis) -> None:
    run = await Run.create(redis)
    await run.done.add(Outcome.REFUSED, [digest("bad")])
    assert await planner_of(run, MemorySource([Refused("bad", 1, "why"), "good"])).plan()
    assert await keys_and_reasons(run) == {"good": None}


# -- the high-water mark


@pytest.mark.parametrize("high_water", [1_000, 1_050, 3_999])
async def test_no_more_than_the_high_water_mark_is_ever_queued(redis: Redis, high_water: int) -> None:
    run = await Run.create(redis, record_of(shards=2))
    keys = numbered(10_000)
    source = MemorySource(keys)
    seen: list[RunCounts] = []

    async def counts() -> RunCounts:
        seen.append(await run.counts())
        return seen[-1]

    planner = planner_of(run, source, high_water=high_water)
    planner._counts = counts
    planning = asyncio.create_task(planner.plan())
    await run.streams.join(ONE)
    found: list[str] = []
    peak = sequence = 0
    while not planning.done() or (await run.counts()).queued:

        def filled(before: int = len(seen)) -> bool:  # two counts are the same: the planner waits for room
            return planning.done() or (len(seen) > before + 1 and seen[-2].queued == seen[-1].queued)

        await eventually(filled, "the planner to fill the queue", seconds=20)
        queued = (await run.counts()).queued
        assert queued <= high_water
        peak = max(peak, queued)
        sequence += 1
        claims = await run.drain(ONE)
        await run.complete(ONE, sequence, claims)
        found += keys_of(claims)
    assert await planning
    assert sorted(found) == sorted(keys)
    assert peak > high_water // 2, "the mark is there to be used"
    assert max(source.reads) <= high_water


async def test_a_full_queue_is_waited_for_and_then_filled(redis: Redis) -> None:
    run = await Run.create(redis, record_of(shards=1))
    planning = asyncio.create_task(planner_of(run, MemorySource(numbered(2_000)), high_water=1_000).plan())

    async def queued() -> bool:
        return (await run.counts()).queued == 1_000

    await eventually(queued, "the queue to be full")
    await run.streams.join(ONE)
    await run.complete(ONE, 1, await run.drain(ONE))
    await eventually(queued, "the queue to be full again")
    assert await planning


async def test_a_chunk_is_never_larger_than_a_planner_can_hold(redis: Redis) -> None:
    run = await Run.create(redis)
    source = MemorySource(numbered(CHUNK_KEYS + 10))
    assert await planner_of(run, source, high_water=10_000_000).plan()
    assert source.reads == [CHUNK_KEYS, 10]


# -- two planners, failures


async def test_a_second_planner_that_read_the_same_cursor_publishes_nothing_twice(redis: Redis) -> None:
    run = await Run.create(redis)
    keys = numbered(2_000)
    late = MemorySource(keys, chunk=500, held_at=0)
    second = asyncio.create_task(planner_of(run, late).plan())
    assert await planner_of(run, MemorySource(keys, chunk=300)).plan()
    before = await run.everything()
    late.go.set()
    assert not await second
    assert await run.everything() == before
    assert await run.queued_keys() == sorted(keys)


async def test_a_deposed_planner_stops_and_publishes_nothing_more(redis: Redis) -> None:
    run = await Run.create(redis)
    source = MemorySource(numbered(2_000), chunk=500, held_at=1_000)
    planning = asyncio.create_task(planner_of(run, source).plan())

    async def half() -> bool:
        return (await run.counts()).published == 1_000

    await eventually(half, "half to be published")
    await redis.set(run.keys.leader, "another")
    source.go.set()
    assert not await planning
    assert (await run.counts()).published == 1_000


async def test_every_key_is_published_once_by_planners_that_are_cut_off_everywhere(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await Run.create(redis)
    keys = numbered(3_000)
    publish = LostResult(run.streams._publish)
    monkeypatch.setattr(run.streams, "_publish", publish)
    for life in range(100):
        _, exhausted = await redis.hmget(run.keys.state, "cursor", "exhausted")
        if exhausted == b"1":
            break
        publish.lost = life % 2
        await plan_from_the_cursor(run, keys, cancel_after=life % 7)
    assert (await run.counts()).exhausted
    assert await run.queued_keys() == sorted(keys)
    assert (await run.counts()).published == 3_000


async def plan_from_the_cursor(run: Run, keys: Sequence[str], *, cancel_after: int) -> None:
    """Run one planner until the source was read so many times, or a result of Redis is lost."""
    cursor = (await run.client.hget(run.keys.state, "cursor") or b"").decode()
    source = MemorySource(keys, cursor=Cursor.parse(cursor), chunk=170)
    planning = asyncio.create_task(planner_of(run, source).plan())
    await eventually(lambda: planning.done() or len(source.reads) > cancel_after, "the planner to get on")
    planning.cancel()
    (outcome,) = await asyncio.gather(planning, return_exceptions=True)
    assert outcome is True or isinstance(outcome, asyncio.CancelledError | RedisUnavailable)


class DamagedSource(MemorySource):
    def read(self, limit: int, seconds: float) -> Chunk:
        if self.cursor.offset >= 100:
            raise SourceError("the file is damaged at line 101")
        return super().read(limit, seconds)


async def test_a_damaged_source_is_an_error_and_what_came_before_it_is_published(redis: Redis) -> None:
    run = await Run.create(redis)
    with pytest.raises(SourceError, match="line 101"):
        await planner_of(run, DamagedSource(numbered(200), chunk=100)).plan()
    assert await run.queued_keys() == sorted(numbered(100))
    assert not (await run.counts()).exhausted


async def test_a_planner_of_another_epoch_publishes_nothing(redis: Redis) -> None:
    run = await Run.create(redis)
    await redis.hset(run.keys.state, "epoch", "second")
    with pytest.raises(EpochLost):
        await planner_of(run, MemorySource(numbered(10))).plan()
    assert await run.queued_keys() == []


# -- several keys a request


async def requests(run: Run, keys_per_request: int) -> list[int]:
    """How many keys each request has that the blocks in the queue become, sorted."""
    await run.streams.join(ONE)
    found = []
    for claim in await run.drain(ONE):
        fetched = len(claim.block.keys) - len(claim.block.refusals)
        found += [min(keys_per_request, fetched - start) for start in range(0, fetched, keys_per_request)]
    return sorted(found)


@pytest.mark.parametrize("chunk", [1_000_000, 333, 50, 49, 7, 1])
async def test_requests_are_full_whatever_pieces_the_source_comes_in(redis: Redis, chunk: int) -> None:
    run = await Run.create(redis, record_of(shards=16))
    keys = numbered(1_230)
    assert await planner_of(run, MemorySource([*keys, *keys[:500]], chunk=chunk), keys_per_request=50).plan()
    assert set(await run.queued_keys()) == set(keys)
    found = await requests(run, 50)
    assert found[1:] == [50] * (len(found) - 1)
    assert len(found) <= -(-1_730 // 50)


async def test_keys_that_are_done_or_refused_leave_no_gap_in_a_request(redis: Redis) -> None:
    run = await Run.create(redis)
    keys = numbered(3_000)
    lines: list[str | Refused] = [*keys]
    for at in range(0, 3_000, 100):
        lines[at] = Refused(keys[at], at + 1, "why")
    done = keys[1::2]
    await run.done.add(Outcome.STORED, [digest(key) for key in done])
    assert await planner_of(run, MemorySource(lines, chunk=700), keys_per_request=50, high_water=1_000_000).plan()
    assert await requests(run, 50) == [20, *[50] * 29]
    counts = await run.counts()
    assert (counts.published, counts.total) == (1_500, 3_000)


async def test_where_most_keys_are_done_far_more_lines_are_read_to_fill_a_request(redis: Redis) -> None:
    """A few at a time would take minutes for the millions of a run that goes on."""
    run = await Run.create(redis)
    keys = numbered(20_000)
    await run.done.add(Outcome.STORED, [digest(key) for at, key in enumerate(keys) if at % 100])
    source = MemorySource(keys, chunk=4_000)
    assert await planner_of(run, source, keys_per_request=50).plan()
    assert await requests(run, 50) == [50] * 4
    assert len(source.reads) < 12


@pytest.mark.parametrize("high_water", [1_000, 1_999])
async def test_a_chunk_has_whole_requests_below_a_low_mark(redis: Redis, high_water: int) -> None:
    run = await Run.create(redis)
    source = MemorySource(numbered(900))
    assert await planner_of(run, source, high_water=high_water, keys_per_request=30).plan()
    assert all(read % 30 == 0 for read in source.reads)


async def test_a_part_filled_request_waits_so_long_and_no_longer(redis: Redis) -> None:
    """The source has no more keys for now: what it gave is published, and what comes later too."""
    run = await Run.create(redis)
    source = MemorySource(numbered(180), held_at=120)
    planning = asyncio.create_task(planner_of(run, source, keys_per_request=50, fill_seconds=0.3).plan())

    async def first_ones() -> bool:
        return (await run.counts()).published == 120

    await eventually(first_ones, "the keys that the source gave to be published")
    assert await redis.hget(run.keys.state, "cursor") == b"120:120"
    source.go.set()
    assert await planning
    assert await run.queued_keys() == sorted(numbered(180))
    assert await requests(run, 50) == [10, 20, 50, 50, 50]


async def test_nothing_that_waits_for_more_is_behind_the_cursor(redis: Redis) -> None:
    """A coordinator that dies while a request waits has published nothing of it: the next one reads its keys again."""
    run = await Run.create(redis)
    source = MemorySource(numbered(180), held_at=120)
    planning = asyncio.create_task(planner_of(run, source, keys_per_request=50).plan())
    await eventually(lambda: source.reads == [120], "the planner to wait for more keys")
    planning.cancel()
    await asyncio.gather(planning, return_exceptions=True)
    source.close()
    assert await redis.hget(run.keys.state, "cursor") == b"0:0"
    assert await planner_of(run, MemorySource(numbered(180)), keys_per_request=50).plan()
    assert await run.queued_keys() == sorted(numbered(180))
    assert await requests(run, 50) == [30, 50, 50, 50]


async def test_what_came_before_damage_is_published_also_when_it_fills_no_request(redis: Redis) -> None:
    run = await Run.create(redis)
    with pytest.raises(SourceError, match="line 101"):
        await planner_of(run, DamagedSource(numbered(200), chunk=100), keys_per_request=30).plan()
    assert await run.queued_keys() == sorted(numbered(100))


class FieldSource(MemorySource):
    """Each key carries the cursor behind its chunk."""

    def read(self, limit: int, seconds: float) -> Chunk:
        chunk = super().read(limit, seconds)
        return replace(chunk, fields={key: {"read_at": str(chunk.end)} for key in chunk.keys})


async def test_of_a_key_that_is_read_twice_the_fields_of_the_first_count(redis: Redis) -> None:
    """Three keys a request: the second read, which fills the request, has a key of the first one again."""
    run = await Run.create(redis)
    assert await planner_of(run, FieldSource(["a", "b", "a", "c"], chunk=2), keys_per_request=3).plan()
    await run.streams.join(ONE)
    claims = await run.drain(ONE)
    found = {key: claim.block.context(at).fields for claim in claims for at, key in enumerate(claim.block.keys)}
    assert found == {"a": {"read_at": "2:2"}, "b": {"read_at": "2:2"}, "c": {"read_at": "4:4"}}
