"""Parts of these tests: a run in Redis, a source in memory, a script whose result gets lost."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import redis.exceptions
from redis.asyncio import Redis

from coordinator.limits.limiter import Limiter
from coordinator.limits.matcher import UpstreamMatcher
from coordinator.limits.overrides import LimitOverrides
from coordinator.limits.robots_cache import RobotsCache
from coordinator.limits.unreachable import LoggedUpstreams, encode_waits
from coordinator.model import (
    Attempts,
    Block,
    Claim,
    Epoch,
    FoundBatch,
    FoundKey,
    KeyContext,
    Outcome,
    RunCounts,
    ShardId,
    WorkerId,
)
from coordinator.queue.done import DoneSet, KnownSet
from coordinator.queue.found import Frontier
from coordinator.queue.history import HistoryKeeper
from coordinator.queue.notices import Notices
from coordinator.queue.registry import RunRecord, Runs
from coordinator.queue.sharding import Layout, by_digest, cut_blocks, digest
from coordinator.queue.streams import Completion, FinishedBlock, Streams
from coordinator.queue.wire import Deferral, decode_block
from coordinator.redis.keys import SEEN_AFTER_END_SECONDS, RunKeys
from coordinator.redis.scripts import Argument, Script
from coordinator.roles.election import Election
from coordinator.settings import LimitSettings, Window
from coordinator.source import Chunk, Cursor, Refused
from coordinator.stages.figures import WorkerFigures
from coordinator.status import read_counts

COORDINATOR = "coordinator"
ONE, TWO, THREE = WorkerId("one"), WorkerId("two"), WorkerId("three")

HOST = "example.org:8080"
LIMITS = UpstreamMatcher({HOST: LimitSettings((Window(10.0, 1.0), Window(5_000.0, 3600.0)))})


def numbered(count: int, word: str = "key") -> list[str]:
    return [f"{word} {number}" for number in range(count)]


def blocks_of(keys: Iterable[str], layout: Layout, reasons: Mapping[str, str] | None = None) -> list[Block]:
    """The keys as blocks, those with a reason refused."""
    why = {digest(key): reason for key, reason in (reasons or {}).items()}
    return list(cut_blocks(by_digest(keys), layout, why))


def record_of(
    name: str = "run",
    *,
    shards: int = 4,
    buckets: int = 4,
    epoch: str = "first",
    total: int | None = None,
    follows: bool = False,
) -> RunRecord:
    return RunRecord(
        name=name,
        run_id=1,
        epoch=Epoch(epoch),
        layout=Layout(shards=shards, buckets=buckets, follows=follows),
        document={"run": {"name": name}},
        folder="/somewhere",
        total=total,
    )


class Run:
    """One run in Redis, and what reads and changes it."""

    def __init__(self, client: Redis, record: RunRecord) -> None:
        self.client = client
        self.record = record
        self.layout = record.layout
        self.keys = RunKeys(record.name)
        self.streams = Streams(client, self.keys, record.layout, record.epoch)
        self.done = DoneSet(client, self.keys, record.layout, record.epoch)
        self.runs = Runs(client)
        self.cursor = "0:0"

    @classmethod
    async def create(cls, client: Redis, record: RunRecord | None = None) -> Run:
        """Make the run in Redis; COORDINATOR leads it."""
        run = cls(client, record or record_of())
        await run.runs.make(run.record)
        await Election(client, run.keys, COORDINATOR).gain()
        return run

    async def publish(
        self,
        keys: Iterable[str],
        *,
        skipped: int = 0,
        exhausted: bool = False,
        reasons: Mapping[str, str] | None = None,
    ) -> bool:
        """Publish the keys as the next chunk."""
        before = self.cursor
        self.cursor = str(Cursor(int(before.split(":")[0]) + 1))
        return await self.streams.publish(
            COORDINATOR,
            blocks_of(keys, self.layout, reasons),
            skipped=skipped,
            cursor=before,
            next_cursor=self.cursor,
            exhausted=exhausted,
        )

    async def counts(self) -> RunCounts:
        return await read_counts(self.client, self.record.name, self.record.total)

    async def queued_keys(self) -> list[str]:
        """Every key in the streams, sorted."""
        keys: list[str] = []
        for shard in range(self.layout.shards):
            for _, fields in await self.client.xrange(self.keys.stream(shard)):
                keys += decode_block(ShardId(shard), fields[b"b"]).keys
        return sorted(keys)

    async def next(self, worker: WorkerId) -> Claim | None:
        """Claim the worker's next block, from any shard."""
        while (shard := await self.streams.claim_shard(worker)) is not None:
            if claim := await self.streams.claim(worker, shard):
                return claim
        return None

    async def drain(self, worker: WorkerId) -> list[Claim]:
        """Claim all blocks that the worker can get."""
        claims: list[Claim] = []
        while (claim := await self.next(worker)) is not None:
            claims.append(claim)
        return claims

    async def complete(
        self, worker: WorkerId, sequence: int, claims: Sequence[Claim], outcome: Outcome = Outcome.STORED
    ) -> int:
        return await self.streams.complete(worker, sequence, completion(claims, outcome))

    async def died(self, worker: WorkerId) -> None:
        """Let the worker be dead, and its lease ended."""
        await self.client.zrem(self.keys.workers, worker)

    async def everything(self) -> dict[bytes, bytes | None]:
        """All of Redis, to see that nothing changed."""
        return {key: await self.client.dump(key) for key in await self.client.keys()}


def a_found_batch(number: int, keys: Iterable[str], *, depth: int = 1, rule: int = -1) -> FoundBatch:
    """The batch of this number: the keys are found by one rule."""
    context = KeyContext(depth=depth, origin=b"origin")
    found = tuple(FoundKey(digest(key, context), key, context, rule) for key in keys)
    return FoundBatch(number, depth, len(found), found)


def stored_before(batch: FoundBatch) -> FoundBatch:
    """The batch as a writer returns it that met its pages in Postgres."""
    return replace(batch, keys=(), example=batch.keys[-1].digest)


async def run_in_progress(redis: Redis, name: str) -> Run:
    """A run that is worked on, with every kind of Redis key that a run can have."""
    run = await Run.create(redis, record_of(name))
    await run.publish(numbered(500))
    await run.streams.join(ONE)
    await run.streams.join(TWO)
    first = await run.next(ONE)
    assert first
    shard = await run.streams.claim_shard(TWO)
    assert shard is not None
    await redis.xadd(run.keys.stream(shard), {"b": "rubbish"})
    await run.streams.claim(TWO, shard)
    assert await run.streams.claim(TWO, shard) is None
    done, deferred = completion([first]), first.block.keys[0]
    waits = [Deferral(digest(deferred), deferred, Attempts(1, 0, ("12:00:00 status 500",)), 60.0)]
    await run.streams.complete(
        ONE, 1, replace(done, outcomes=done.outcomes[1:], deferred=waits, timings={"fetch 3": 1})
    )
    await run.streams.renew(TWO, waits=encode_waits("Postgres does not answer", []), figures=WorkerFigures().encode())
    limiter = Limiter(redis, run.keys, LIMITS)
    await limiter.pause("paused.example", 5.0)
    assert (await limiter.reserve(HOST, 1)).slots
    limiter.report(HOST, failed=1)
    await limiter._send_report()
    await LimitOverrides(redis, run.keys).change(HOST, concurrency=3)
    robots = RobotsCache(redis, run.keys, ONE)
    await robots.ask("https://example.org", 10.0)
    await robots.store("https://example.org", b"found", 3600.0)
    await LoggedUpstreams(redis, run.keys).add("dead.example")
    await Notices(redis, run.keys).add([HOST], {"facts.n": 1.0})
    await redis.hset(run.keys.notified, "stalled 7", "1")
    await redis.expire(run.keys.notified, SEEN_AFTER_END_SECONDS)
    await HistoryKeeper(redis, run.keys).record()
    await Frontier(redis, run.keys, run.layout, run.record.epoch).add([FoundBatch(7, 1, 3)])
    await KnownSet(redis, run.keys, run.layout, run.record.epoch).mark([digest("found")])
    return run


def completion(claims: Sequence[Claim], outcome: Outcome = Outcome.STORED, requests: int = 0) -> Completion:
    return Completion(
        outcomes=[(digest(key), outcome) for claim in claims for key in claim.block.keys],
        finished=[FinishedBlock(claim.shard, claim.entry, len(claim.block.keys)) for claim in claims],
        requests=requests,
        received=10 * requests,
    )


def keys_of(claims: Iterable[Claim]) -> list[str]:
    return sorted(key for claim in claims for key in claim.block.keys)


class LostResult:
    """A script that is carried out, and whose first results do not arrive."""

    def __init__(self, script: Script, *, lost: int = 1) -> None:
        self._script = script
        self.lost = lost

    async def __call__(self, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        result = await self._script(keys, arguments)
        if self.lost:
            self.lost -= 1
            raise redis.exceptions.ConnectionError("Connection closed by server.")
        return result


@dataclass
class MemorySource:
    """A source of keys and refused lines in memory; its cursor counts them.

    Reading stops at `held_at` until `go` is set.
    """

    lines: Sequence[str | Refused]
    cursor: Cursor = field(default_factory=Cursor)
    held_at: int | None = None
    chunk: int = 1_000_000
    go: threading.Event = field(default_factory=threading.Event)
    reads: list[int] = field(default_factory=list)
    closed: bool = False

    def read(self, limit: int, seconds: float) -> Chunk:
        at = self.cursor.offset
        until = min(len(self.lines), at + min(limit, self.chunk))
        if self.held_at is not None and not self.go.is_set():
            if at >= self.held_at:
                self.go.wait()
            else:
                until = min(until, self.held_at)
        part = self.lines[at:until]
        self.cursor = Cursor(until, until)
        self.reads.append(len(part))
        return Chunk(
            keys=[line for line in part if isinstance(line, str)],
            refused=[line for line in part if isinstance(line, Refused)],
            end=self.cursor,
            exhausted=until == len(self.lines),
        )

    def estimate(self) -> int | None:
        return len(self.lines)

    def fingerprint(self) -> str:
        return ""

    def close(self) -> None:
        self.closed = True
        self.go.set()
