"""Publish, claim, renew, complete, release: the queue between planner and workers."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from redis.asyncio import Redis

from coordinator.errors import EpochLost, LeaseLost
from coordinator.model import Block, Claim, EntryId, Epoch, Outcome, Presence, RunState, ShardId, WorkerId
from coordinator.queue.sharding import Layout, by_bucket, parts
from coordinator.queue.wire import Deferral, decode_block, encode_block, encode_deferral, encode_members
from coordinator.redis.connection import translate_redis_errors
from coordinator.redis.keys import RunKeys
from coordinator.redis.scripts import Argument, Script

logger = logging.getLogger(__name__)

WORKER_LEASE_SECONDS = 10.0
# Entries put aside are kept for whoever wants to know what they were: so many, cut at so many bytes.
MAX_QUARANTINED = 100
MAX_QUARANTINED_BYTES = 10_000


@dataclass(frozen=True, slots=True)
class FinishedBlock:
    """A block whose last key has its outcome committed."""

    shard: ShardId
    entry: EntryId
    keys: int


@dataclass(frozen=True, slots=True)
class Completion:
    """What one committed batch means for the queue: (digest, outcome) of its keys, and blocks that it finished.

    `deferred` keys have no outcome yet: they are to be tried again later.
    """

    outcomes: Sequence[tuple[bytes, Outcome]]
    finished: Sequence[FinishedBlock] = field(default=())
    deferred: Sequence[Deferral] = field(default=())
    requests: int = 0
    received: int = 0


class Streams:
    """The queue of one run, seen by planner and workers.

    Every method raises RedisUnavailable when Redis does not answer, EpochLost when the run in Redis is another one,
    and, where a worker writes, LeaseLost when its lease has ended.
    """

    def __init__(self, client: Redis, keys: RunKeys, layout: Layout, epoch: Epoch) -> None:
        self._client = client
        self._keys = keys
        self._layout = layout
        self._epoch = epoch
        self._publish = Script(client, "queue/publish")
        self._renew = Script(client, "run/renew")
        self._claim_shard = Script(client, "queue/claim_shard")
        self._claim_block = Script(client, "queue/claim_block")
        self._complete = Script(client, "queue/complete")
        self._release = Script(client, "run/release")
        self._split = Script(client, "queue/split")
        self._quarantine = Script(client, "queue/quarantine")
        self._delivered = 0

    async def publish(
        self, planner: str, blocks: Iterable[Block], *, skipped: int, cursor: str, next_cursor: str, exhausted: bool
    ) -> bool:
        """Append blocks and move the cursor, all or nothing; False when another planner moved it first.

        `skipped` keys of the chunk were done already; they count towards the run's total.
        """
        keys = [self._keys.state, self._keys.ready, self._keys.leader]
        arguments: list[Argument] = [self._epoch, planner, cursor, next_cursor, int(exhausted), skipped]
        for shard, group in groupby(blocks, lambda block: block.shard):
            packed = [(len(block.keys), encode_block(block)) for block in group]
            keys.append(self._keys.stream(shard))
            arguments += [shard, len(packed)]
            for count, payload in packed:
                arguments += [count, payload]
        with translate_redis_errors():
            returned = await self._publish(keys, arguments)
        return self._word(returned) == "ok"

    async def join(self, worker: WorkerId, lease: float = WORKER_LEASE_SECONDS) -> Presence:
        """Take a lease for a new worker."""
        return await self._heartbeat(worker, lease, "join")

    async def renew(self, worker: WorkerId, lease: float = WORKER_LEASE_SECONDS, *, waits: str = "") -> Presence:
        """Prolong a worker's lease, and tell what it waits for."""
        return await self._heartbeat(worker, lease, "renew", waits)

    async def _heartbeat(self, worker: WorkerId, lease: float, verb: str, waits: str = "") -> Presence:
        with translate_redis_errors():
            returned = await self._renew(
                [self._keys.workers, self._keys.state, self._keys.waits],
                [worker, int(lease * 1000), self._epoch, verb, waits],
            )
        self._word(returned)
        return Presence(
            rank=returned[1],
            size=returned[2],
            state=RunState(returned[3].decode()),
            moves=int(returned[4]),
            turn=returned[5],
        )

    async def claim_shard(self, worker: WorkerId) -> ShardId | None:
        """The shard that this worker should drain next, now claimed by it; None when none has work."""
        keys = [self._keys.workers, self._keys.claims, self._keys.ready, self._keys.state]
        with translate_redis_errors():
            returned = await self._claim_shard(keys, [worker, self._epoch])
        return None if self._word(returned) == "none" else ShardId(returned[1])

    async def claim(self, worker: WorkerId, shard: ShardId) -> Claim | None:
        """The shard's next block: a dead worker's first; None when the shard is drained.

        Repeated after RedisUnavailable it brings the block whose delivery got lost, if there was one. An entry that is
        no block of ours is quarantined.
        """
        keys = [self._keys.stream(shard), self._keys.workers, self._keys.claims, self._keys.ready, self._keys.state]
        while True:
            with translate_redis_errors():
                returned = await self._claim_block(keys, [worker, shard, self._epoch, self._delivered])
            if self._word(returned) == "empty":
                return None
            entry = EntryId(returned[1].decode())
            try:
                claim = Claim(shard=shard, entry=entry, deliveries=returned[2], block=decode_block(shard, returned[3]))
            except ValueError as error:
                logger.error("entry %s of shard %s is quarantined: %s", entry, shard, error)
            else:
                self._delivered += 1  # until then the same entry comes again
                return claim
            with translate_redis_errors():
                aside = [self._keys.stream(shard), self._keys.quarantine]
                await self._quarantine(aside, [entry, returned[3][:MAX_QUARANTINED_BYTES], MAX_QUARANTINED])

    async def complete(self, worker: WorkerId, sequence: int, done: Completion) -> int:
        """Record a committed batch; repeating a call with its sequence number changes nothing.

        Returns how many of the keys were not done before.
        """
        keys = [
            self._keys.state,
            self._keys.workers,
            self._keys.receipts,
            self._keys.deferred_due,
            self._keys.deferred_keys,
        ]
        sizes: list[int] = []
        members: list[int] = []
        outcomes: list[Outcome] = []
        for outcome, digests in _by_outcome(done.outcomes).items():
            counts, some = by_bucket(digests, self._layout)
            keys += map(self._keys.done, counts)
            sizes += counts.values()
            members += some
            outcomes += [outcome] * len(counts)
        keys += [self._keys.stream(block.shard) for block in done.finished]
        arguments: list[Argument] = [self._epoch, worker, sequence, done.requests, done.received]
        arguments += [encode_members(sizes, members, outcomes), len(done.finished)]
        for block in done.finished:
            arguments += [block.entry, block.keys]
        arguments.append(len(done.deferred))
        for deferral in done.deferred:
            arguments += [deferral.digest, int(deferral.delay * 1000), encode_deferral(deferral)]
        with translate_redis_errors():
            returned = await self._complete(keys, arguments)
        self._word(returned)
        return int(returned[1])

    async def split(self, worker: WorkerId, claim: Claim, keys: Sequence[int]) -> None:
        """Put smaller blocks in the place of a claimed one, of those of its keys that `keys` points to."""
        redis_keys = [self._keys.state, self._keys.workers, self._keys.stream(claim.shard), self._keys.ready]
        arguments: list[Argument] = [self._epoch, worker, claim.shard, claim.entry, len(claim.block.keys)]
        for block in parts(claim.block, keys):
            arguments += [len(block.keys), encode_block(block)]
        with translate_redis_errors():
            self._word(await self._split(redis_keys, arguments))

    async def release(self, worker: WorkerId) -> None:
        """End a worker's lease, so that what it has pending is claimed at once."""
        with translate_redis_errors():
            await self._release([self._keys.workers, self._keys.receipts], [worker])

    def _word(self, returned: Sequence[bytes]) -> str:
        word = returned[0].decode()
        if word == "epoch":
            raise EpochLost(f"run {self._keys.run} in Redis is not the one this process joined; start it again")
        if word == "lost":
            raise LeaseLost(f"this worker's lease on run {self._keys.run} has ended")
        return word


def _by_outcome(outcomes: Iterable[tuple[bytes, Outcome]]) -> dict[Outcome, list[bytes]]:
    found: dict[Outcome, list[bytes]] = {}
    for digest, outcome in outcomes:
        found.setdefault(outcome, []).append(digest)
    return found
