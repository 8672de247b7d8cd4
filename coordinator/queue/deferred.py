"""The deferred set: keys that wait for another attempt, each with the time when it is due.

`lua/queue/complete` puts a key into it and counts it as published once more, because it will be resolved once more.
When it is due, the janitor moves it into a new block.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from itertools import groupby
from operator import attrgetter

from redis.asyncio import Redis

from coordinator.errors import EpochLost
from coordinator.model import NO_CONTEXT, Block, Epoch
from coordinator.queue.sharding import LIST_BLOCK_KEYS, Layout, block_size
from coordinator.queue.wire import decode_deferral, encode_block
from coordinator.redis.connection import as_text, translate_redis_errors
from coordinator.redis.keys import RunKeys
from coordinator.redis.scripts import Argument, Script

logger = logging.getLogger(__name__)

# Ten blocks keep Redis busy for a few milliseconds.
DEFERRED_KEYS_PER_CALL = 5_000


class DeferredKeys:
    """The deferred set of one run, for its coordinator. Every method raises RedisUnavailable."""

    def __init__(
        self,
        client: Redis,
        keys: RunKeys,
        layout: Layout,
        epoch: Epoch,
        keys_per_request: int = 1,
        single_requests: bool = False,
    ) -> None:
        self._keys = keys
        self._layout = layout
        self._epoch = epoch
        self._keys_per_request = keys_per_request
        self._single_requests = single_requests
        self._list_due = Script(client, "queue/list_due")
        self._requeue_due = Script(client, "queue/requeue_due")

    async def due(self) -> dict[bytes, bytes]:
        """Up to DEFERRED_KEYS_PER_CALL keys that are due, as {digest: encoded deferral}, the longest due first."""
        keys = [self._keys.deferred_due, self._keys.deferred_keys]
        most = DEFERRED_KEYS_PER_CALL - DEFERRED_KEYS_PER_CALL % self._keys_per_request
        with translate_redis_errors():
            digests_and_payloads = await self._list_due(keys, [most])
        return dict(zip(digests_and_payloads[::2], digests_and_payloads[1::2], strict=True))

    async def requeue(self, coordinator: str, due: Mapping[bytes, bytes]) -> bool:
        """Move keys that are due into new blocks, all or nothing.

        Returns False, and changes nothing, when another coordinator leads or one of the keys is not in the set any
        more. Raises EpochLost. A key that cannot be decoded leaves the set without a block: the janitor then finds that
        it is missing, and it is planned again.
        """
        keys = [
            self._keys.state,
            self._keys.leader,
            self._keys.ready,
            self._keys.deferred_due,
            self._keys.deferred_keys,
        ]
        arguments: list[Argument] = [self._epoch, coordinator, len(due), *due]
        for shard, group in groupby(self._blocks(due), attrgetter("shard")):
            payloads = [encode_block(block) for block in group]
            keys.append(self._keys.stream(shard))
            arguments += [shard, len(payloads), *payloads]
        with translate_redis_errors():
            status = as_text(await self._requeue_due(keys, arguments))
        if status == "epoch":
            raise EpochLost(f"run {self._keys.run} in Redis is not the one this coordinator joined; start it again")
        return status == "ok"

    def _blocks(self, due: Mapping[bytes, bytes]) -> Iterator[Block]:
        """The keys as blocks of whole requests, sorted by digest.

        A block may have keys of several shards: so there are few blocks.
        """
        deferrals = []
        for digest in sorted(due):
            try:
                deferrals.append(decode_deferral(digest, due[digest]))
            except ValueError as error:
                logger.error("a deferred key cannot be read and is planned again from the source: %s", error)
        size = block_size(len(deferrals), self._keys_per_request, self._single_requests)
        if any(one.context.list_key for one in deferrals):
            size = min(size, LIST_BLOCK_KEYS)
        for start in range(0, len(deferrals), size):
            part = deferrals[start : start + size]
            yield Block(
                shard=self._layout.shard(part[0].digest),
                keys=tuple(one.key for one in part),
                attempts={index: one.attempts for index, one in enumerate(part)},
                contexts={index: one.context for index, one in enumerate(part) if one.context is not NO_CONTEXT},
            )
