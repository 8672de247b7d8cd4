"""The keys that pages named, on their way into the queue: dropped when known, published, or left in the frontier.

A found key is committed in Postgres with its page before Redis hears of it. While there is room, the worker that found
it publishes it; else it leaves a pointer, and the coordinator publishes what is in Postgres when there is room.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import cast

from redis.asyncio import Redis

from coordinator.errors import EpochLost, LeaseLost
from coordinator.model import Block, Epoch, FoundBatch, FoundKey, WorkerId
from coordinator.queue.done import DoneSet, KnownSet
from coordinator.queue.recent import MOST_RECENT, RecentKeys
from coordinator.queue.sharding import (
    BLOCK_KEYS,
    LIST_BLOCK_KEYS,
    Layout,
    by_bucket,
    cut_mixed_blocks,
    cut_request_blocks,
)
from coordinator.queue.wire import encode_block, encode_members
from coordinator.redis.connection import as_number, as_text, translate_redis_errors
from coordinator.redis.keys import RunKeys
from coordinator.redis.scripts import Argument, Script

logger = logging.getLogger(__name__)

# More keys than this are left to the coordinator: to publish them would hold Redis up.
MOST_PUBLISHED_AT_ONCE = 5_000


def found_blocks(
    found: Collection[FoundKey], layout: Layout, keys_per_request: Mapping[str, int] = MappingProxyType({})
) -> list[Block]:
    """Found keys, of which no two are the same, as blocks; {kind: keys of one request}, where these are several.

    Pages of lists are asked for alone.
    """
    reasons = {one.digest: one.refusal for one in found if one.refusal}
    contexts = {one.digest: one.context for one in found}
    groups: dict[str | None, dict[bytes, str]] = {}
    for one in found:
        together = keys_per_request.get(one.context.kind, 1) > 1 and not one.context.list_key
        groups.setdefault(one.context.kind if together else None, {})[one.digest] = one.key
    blocks: list[Block] = []
    for kind, keys in groups.items():
        if kind is None:
            most = LIST_BLOCK_KEYS if any(one.context.list_key for one in found) else BLOCK_KEYS
            blocks += cut_mixed_blocks(keys, layout, reasons, contexts, most)
        else:
            blocks += cut_request_blocks(keys, layout, keys_per_request[kind], reasons, contexts)
    return blocks


def _by_kind(found: Iterable[FoundKey]) -> Mapping[str, list[FoundKey]]:
    """The keys of each kind, without pages of lists, which are looked for each time."""
    by_kind: dict[str, list[FoundKey]] = {}
    context, same = None, list[FoundKey]()
    for one in found:
        if one.context is not context:  # the keys of one page follow one another, and share theirs
            context = one.context
            same = [] if context.list_key else by_kind.setdefault(context.kind, [])
        same.append(one)
    return by_kind


class FoundKeys:
    """The found keys of one run, for its workers. Every method raises RedisUnavailable.

    `keys_per_request` is that of each kind. With `by_level` the keys of one depth wait until all of the depth before
    are resolved. The keys of `bounded` rules are published by the coordinator only, which counts them. `recent` has of
    each kind keys that are surely stored.
    """

    def __init__(
        self,
        client: Redis,
        keys: RunKeys,
        layout: Layout,
        epoch: Epoch,
        *,
        high_water: int,
        keys_per_request: Mapping[str, int] = MappingProxyType({}),
        by_level: bool = False,
        bounded: Collection[int] = (),
    ) -> None:
        self._keys = keys
        self._layout = layout
        self._epoch = epoch
        self._high_water = high_water
        self._keys_per_request = keys_per_request
        self._by_level = by_level
        self._bounded = frozenset(bounded)
        most = MOST_RECENT // max(1, len(keys_per_request))
        self.recent = defaultdict[str, RecentKeys](lambda: RecentKeys(most))
        self._done = DoneSet(client, keys, layout, epoch)
        self._known = KnownSet(client, keys, layout, epoch)
        self._publish_found = Script(client, "follow/publish_found")

    async def new(self, found: Iterable[FoundKey]) -> set[bytes]:
        """The digests of those keys that are not done, and were not named before, as far as Redis knows."""
        by_digest: dict[bytes, FoundKey] = {}
        for kind, same in _by_kind(found).items():
            new_keys = set(self.recent[kind].new([one.key for one in same]))
            by_digest |= {one.digest: one for one in same if one.key in new_keys}
        new = by_digest.keys() - await self._known.intersection([*by_digest])
        new -= await self._done.intersection([*new])
        self._add_recent(one for key_digest, one in by_digest.items() if key_digest not in new)
        return new

    def _add_recent(self, stored: Iterable[FoundKey]) -> None:
        for kind, same in _by_kind(stored).items():
            self.recent[kind].add([one.key for one in same])

    async def publish(self, worker: WorkerId, sequence: int, batches: Sequence[FoundBatch]) -> None:
        """Publish committed batches, or leave pointers to them. A repeated call with the same number changes nothing.

        Raises LeaseLost, EpochLost.
        """
        # What is known was published with its whole batch, or left in the frontier: to do so again would count keys of
        # bounded rules twice. Done keys say nothing, since the source can have them too.
        known = await self._known.intersection([batch.example for batch in batches if not batch.keys])
        batches = [batch for batch in batches if batch.keys or batch.example not in known]
        found = [one.digest for batch in batches for one in batch.keys]
        found += [batch.example for batch in batches if not batch.keys]
        counts, members = by_bucket(found, self._layout)
        keys = [self._keys.state, self._keys.workers, self._keys.receipts, self._keys.ready, self._keys.frontier]
        keys += self._keys.known_buckets(counts)
        arguments: list[Argument] = [self._epoch, worker, sequence, self._high_water]
        arguments += [encode_members(counts.values(), members), int(self._by_level), len(batches)]
        for batch in batches:
            blocks = self._blocks(batch)
            keys += [self._keys.stream(block.shard) for block in blocks]
            arguments += [batch.pointer, batch.depth, batch.size, len(blocks)]
            for block in blocks:
                arguments += [block.shard, len(block.keys), encode_block(block)]
        with translate_redis_errors():
            (status,) = await self._publish_found(keys, arguments)
        if status == b"epoch":
            raise EpochLost(f"run {self._keys.run} in Redis is not the one this process joined; start it again")
        if status == b"lost":
            raise LeaseLost(f"this worker's lease on run {self._keys.run} has ended")
        self._add_recent(one for batch in batches for one in batch.keys)

    def _waits_for_level(self, batch: FoundBatch) -> bool:
        """Whether the batch is deeper than its pages, so that it surely waits: only next pages of lists are not.

        The pages of a sitemap have depth 0, too.
        """
        return self._by_level and batch.depth > 0 and any(one.context.page_no == 1 for one in batch.keys)

    def _blocks(self, batch: FoundBatch) -> list[Block]:
        if len(batch.keys) > MOST_PUBLISHED_AT_ONCE or self._waits_for_level(batch):
            return []
        if any(one.rule in self._bounded for one in batch.keys):
            return []
        return found_blocks(batch.keys, self._layout, self._keys_per_request)


class Frontier:
    """The pointers to found keys that wait in Postgres, for the coordinator. Every method raises RedisUnavailable."""

    def __init__(self, client: Redis, keys: RunKeys, layout: Layout, epoch: Epoch) -> None:
        self._client = client
        self._keys = keys
        self._layout = layout
        self._epoch = epoch
        self._publish_frontier = Script(client, "follow/publish_frontier")

    async def first(self) -> FoundBatch | None:
        """The pointer with the least depth; None when there is none. One that is not ours is removed."""
        while True:
            with translate_redis_errors():
                found = await self._client.zrange(self._keys.frontier, 0, 0)
            if not found:
                return None
            pointer = cast("bytes", found[0])
            try:
                return FoundBatch.parse(as_text(pointer))
            except ValueError:
                logger.error("a pointer of the frontier of run %s is not one of ours: it is removed", self._keys.run)
                with translate_redis_errors():
                    await self._client.zrem(self._keys.frontier, pointer)

    async def add(self, batches: Sequence[FoundBatch]) -> None:
        """Add pointers when a run is rebuilt, before anybody works on it."""
        if not batches:
            return
        with translate_redis_errors():
            async with self._client.pipeline(transaction=True) as pipe:
                pipe.zadd(self._keys.frontier, {batch.pointer: batch.depth for batch in batches})
                pipe.hincrby(self._keys.state, "pending", sum(batch.size for batch in batches))
                await pipe.execute()

    async def level(self) -> int:
        """The greatest depth of which keys were published."""
        with translate_redis_errors():
            return as_number(await self._client.hget(self._keys.state, "level"))

    async def followed(self, rule: int) -> int:
        """How many keys of a rule were published."""
        with translate_redis_errors():
            return as_number(await self._client.hget(self._keys.state, f"followed:{rule}"))

    async def count_followed(self, by_rule: Mapping[int, int]) -> None:
        """Say how many keys of each rule were published before a run is rebuilt."""
        for rule, count in by_rule.items():
            with translate_redis_errors():
                await self._client.hincrby(self._keys.state, f"followed:{rule}", count)

    async def publish(
        self,
        coordinator: str,
        batch: FoundBatch,
        blocks: Sequence[Block],
        *,
        skipped: int,
        by_rule: Mapping[int, tuple[int, int]],
    ) -> bool:
        """Publish what became of one pointer: blocks, `skipped` keys that are done, and {rule: (published, cut)}.

        Returns False, and changes nothing, when another coordinator leads, the pointer is gone or the run is resolved.
        Raises EpochLost.
        """
        keys = [self._keys.state, self._keys.leader, self._keys.ready, self._keys.frontier]
        arguments: list[Argument] = [self._epoch, coordinator, batch.pointer, batch.size, batch.depth, skipped]
        arguments.append(len(by_rule))
        for rule, (published, cut) in by_rule.items():
            arguments += [rule, published, cut]
        by_shard: dict[int, list[Block]] = {}
        for block in blocks:
            by_shard.setdefault(block.shard, []).append(block)
        for shard, group in by_shard.items():
            keys.append(self._keys.stream(shard))
            arguments += [shard, len(group)]
            for block in group:
                arguments += [len(block.keys), encode_block(block)]
        with translate_redis_errors():
            status = as_text(await self._publish_frontier(keys, arguments))
        if status == "epoch":
            raise EpochLost(f"run {self._keys.run} in Redis is not the one this coordinator joined; start it again")
        return status == "ok"
