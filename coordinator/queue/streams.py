"""The queue between coordinator and workers: blocks are published, claimed, completed or split, leases are renewed.

Each method calls one script of lua/queue/ or lua/run/. The states of a block are drawn in docs/architecture.md.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import msgpack
from redis.asyncio import Redis

from coordinator.errors import EpochLost, LeaseLost, WorkersFull
from coordinator.model import Block, Claim, EntryId, Epoch, Outcome, Presence, ShardId, WorkerId
from coordinator.queue.registry import as_state
from coordinator.queue.sharding import Layout, by_bucket, split_block
from coordinator.queue.wire import Deferral, decode_block, encode_block, encode_deferral, encode_members
from coordinator.redis.connection import as_number, as_text, translate_redis_errors
from coordinator.redis.keys import RunKeys
from coordinator.redis.scripts import Argument, Script

logger = logging.getLogger(__name__)

WORKER_LEASE_SECONDS = 10.0
# Quarantined entries are kept for people to look at: the last ones, and the beginning of each.
MAX_QUARANTINED = 100
MAX_QUARANTINED_BYTES = 10_000


@dataclass(frozen=True, slots=True)
class FinishedBlock:
    """A block of which each key has a committed outcome or was deferred. `keys` is their number."""

    shard: ShardId
    entry: EntryId
    keys: int


@dataclass(frozen=True, slots=True)
class Completion:
    """What one committed batch means for the queue: (digest, outcome) of its keys, and the blocks that it finished.

    `deferred` keys have no outcome yet. `requests` were sent, and `received` bytes of bodies came, since the completion
    before; `timings` are what the times of stages have grown by (see stages/timing).
    """

    outcomes: Sequence[tuple[bytes, Outcome]]
    finished: Sequence[FinishedBlock] = field(default=())
    deferred: Sequence[Deferral] = field(default=())
    requests: int = 0
    received: int = 0
    timings: Mapping[str, int] = field(default_factory=dict)


class Streams:
    """The queue of one run.

    Every method raises RedisUnavailable when Redis does not respond, and EpochLost when the run in Redis is another
    one. Those of workers raise LeaseLost when the worker's lease has ended.
    """

    def __init__(self, client: Redis, keys: RunKeys, layout: Layout, epoch: Epoch) -> None:
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
        self._claim_number = 0

    async def publish(
        self, coordinator: str, blocks: Iterable[Block], *, skipped: int, cursor: str, next_cursor: str, exhausted: bool
    ) -> bool:
        """Append the blocks of a chunk and move the cursor from `cursor` to `next_cursor`, all or nothing.

        Returns False, and changes nothing, when another coordinator leads or has moved the cursor. `skipped` keys of
        the chunk were done already; they count towards the run's total.
        """
        keys = [self._keys.state, self._keys.ready, self._keys.leader]
        arguments: list[Argument] = [self._epoch, coordinator, cursor, next_cursor, int(exhausted), skipped]
        for shard, group in groupby(blocks, lambda block: block.shard):
            encoded = [(len(block.keys), encode_block(block)) for block in group]
            keys.append(self._keys.stream(shard))
            arguments += [shard, len(encoded)]
            for count, payload in encoded:
                arguments += [count, payload]
        with translate_redis_errors():
            (status,) = await self._publish(keys, arguments)
        return self._checked(status) == b"ok"

    async def join(self, worker: WorkerId, lease_seconds: float = WORKER_LEASE_SECONDS) -> Presence:
        """Give a new worker a lease. Raises WorkersFull."""
        return await self._heartbeat(worker, lease_seconds, "join")

    async def renew(
        self, worker: WorkerId, lease_seconds: float = WORKER_LEASE_SECONDS, *, waits: bytes = b"", figures: bytes = b""
    ) -> Presence:
        """Prolong a worker's lease. `waits` says for `status` what it waits for now (see limits/unreachable), and
        `figures` what its stages do (see stages/figures).
        """
        return await self._heartbeat(worker, lease_seconds, "renew", waits, figures)

    async def _heartbeat(
        self, worker: WorkerId, lease_seconds: float, verb: str, waits: bytes = b"", figures: bytes = b""
    ) -> Presence:
        with translate_redis_errors():
            status, *presence = await self._renew(
                [self._keys.workers, self._keys.state, self._keys.waits, self._keys.figures(worker)],
                [worker, int(lease_seconds * 1000), self._epoch, verb, waits, figures],
            )
        self._checked(status)
        rank, size, state, moves, turn, surplus = presence
        return Presence(rank, size, as_state(state), as_number(moves), turn, surplus == 1)

    async def claim_shard(self, worker: WorkerId) -> ShardId | None:
        """Claim the shard of which this worker should claim blocks next; None when no shard has work."""
        keys = [self._keys.workers, self._keys.claims, self._keys.ready, self._keys.state]
        with translate_redis_errors():
            status, *shard = await self._claim_shard(keys, [worker, self._epoch])
        return None if self._checked(status) == b"none" else ShardId(shard[0])

    async def claim(self, worker: WorkerId, shard: ShardId) -> Claim | None:
        """Claim the shard's next block, one of a dead worker first; None when no block is left.

        When a call raised RedisUnavailable but claimed a block, the next call returns this block. Entries that are not
        blocks of ours are quarantined.
        """
        keys = [self._keys.stream(shard), self._keys.workers, self._keys.claims, self._keys.ready, self._keys.state]
        while True:
            with translate_redis_errors():
                status, *delivery = await self._claim_block(keys, [worker, shard, self._epoch, self._claim_number])
            if self._checked(status) == b"empty":
                return None
            entry_id, deliveries, payload = delivery
            entry = EntryId(as_text(entry_id))
            try:
                claim = Claim(shard, entry, deliveries, decode_block(shard, payload))
            except ValueError as error:
                logger.error(
                    "entry %s of shard %s is quarantined: %s", entry, shard, error, extra={"event": "entry_quarantined"}
                )
                await self._quarantine_entry(shard, entry, payload)
            else:
                self._claim_number += 1  # a call with the same number would return the same entry
                return claim

    async def complete(self, worker: WorkerId, sequence: int, completion: Completion) -> int:
        """Record a committed batch; a repeated call with the same sequence number changes nothing.

        Returns how many of the keys were not done before.
        """
        keys = [
            self._keys.state,
            self._keys.workers,
            self._keys.receipts,
            self._keys.deferred_due,
            self._keys.deferred_keys,
            self._keys.timings,
        ]
        bucket_keys, members = self._encoded_members(completion.outcomes)
        keys += bucket_keys
        keys += [self._keys.stream(block.shard) for block in completion.finished]
        arguments: list[Argument] = [self._epoch, worker, sequence, completion.requests, completion.received]
        arguments += [members, bytes(msgpack.packb(completion.timings)), len(completion.finished)]
        for block in completion.finished:
            arguments += [block.entry, block.keys]
        arguments.append(len(completion.deferred))
        for deferral in completion.deferred:
            arguments += [deferral.digest, int(deferral.delay * 1000), encode_deferral(deferral)]
        with translate_redis_errors():
            status, *newly_done = await self._complete(keys, arguments)
        self._checked(status)
        return int(newly_done[0])

    async def split(self, worker: WorkerId, claim: Claim, indexes: Sequence[int], keys_per_request: int = 1) -> None:
        """Replace a claimed block by smaller ones. `indexes` are those of the keys that go into them."""
        keys = [self._keys.state, self._keys.workers, self._keys.stream(claim.shard), self._keys.ready]
        arguments: list[Argument] = [self._epoch, worker, claim.shard, claim.entry, len(claim.block.keys)]
        for block in split_block(claim.block, indexes, keys_per_request):
            arguments += [len(block.keys), encode_block(block)]
        with translate_redis_errors():
            (status,) = await self._split(keys, arguments)
        self._checked(status)

    async def release(self, worker: WorkerId) -> None:
        """End a worker's lease, so that others can claim at once what it has pending."""
        with translate_redis_errors():
            await self._release([self._keys.workers, self._keys.receipts, self._keys.figures(worker)], [worker])

    async def _quarantine_entry(self, shard: ShardId, entry: EntryId, payload: bytes) -> None:
        with translate_redis_errors():
            await self._quarantine(
                [self._keys.stream(shard), self._keys.quarantine],
                [entry, payload[:MAX_QUARANTINED_BYTES], MAX_QUARANTINED],
            )

    def _encoded_members(self, outcomes: Sequence[tuple[bytes, Outcome]]) -> tuple[list[str], bytes]:
        """The done bucket of each group of members, and the groups, encoded. A group has one bucket and one outcome."""
        buckets: list[str] = []
        counts: list[int] = []
        members: list[int] = []
        outcome_of_group: list[Outcome] = []
        for outcome, digests in _by_outcome(outcomes).items():
            count_by_bucket, bucket_members = by_bucket(digests, self._layout)
            buckets += self._keys.done_buckets(count_by_bucket)
            counts += count_by_bucket.values()
            members += bucket_members
            outcome_of_group += [outcome] * len(count_by_bucket)
        return buckets, encode_members(counts, members, outcome_of_group)

    def _checked(self, status: bytes) -> bytes:
        """The status that a script returned. Raises EpochLost, LeaseLost."""
        if status == b"epoch":
            raise EpochLost(f"run {self._keys.run} in Redis is not the one this process joined; start it again")
        if status == b"full":
            raise WorkersFull(f"run {self._keys.run} has as many workers as it may have")
        if status == b"lost":
            raise LeaseLost(f"this worker's lease on run {self._keys.run} has ended")
        return status


def _by_outcome(outcomes: Iterable[tuple[bytes, Outcome]]) -> dict[Outcome, list[bytes]]:
    grouped: dict[Outcome, list[bytes]] = {}
    for digest, outcome in outcomes:
        grouped.setdefault(outcome, []).append(digest)
    return grouped
