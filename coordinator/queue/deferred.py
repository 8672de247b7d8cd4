"""The delayed set: keys that are to be tried again later, each when it is due. Workers fill it, the janitor empties it.

A key goes in by the same script that finishes its block, and counts as published once more, so that counts alone say
when a run is resolved. It leaves as part of a new block.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from itertools import groupby
from operator import attrgetter

from redis.asyncio import Redis

from coordinator.errors import EpochLost
from coordinator.model import Block, Epoch
from coordinator.queue.sharding import BLOCK_KEYS, Layout
from coordinator.queue.wire import decode_deferral, encode_block
from coordinator.redis.connection import as_text, translate_redis_errors
from coordinator.redis.keys import RunKeys
from coordinator.redis.scripts import Argument, Script

logger = logging.getLogger(__name__)

# One call moves so many keys: some ten blocks, and Redis is busy for a few milliseconds.
DEFERRED_KEYS_PER_CALL = 5_000


class DeferredKeys:
    """The delayed set of one run, as its coordinator sees it. Every method raises RedisUnavailable."""

    def __init__(self, client: Redis, keys: RunKeys, layout: Layout, epoch: Epoch) -> None:
        self._keys = keys
        self._layout = layout
        self._epoch = epoch
        self._list_due = Script(client, "queue/list_due")
        self._requeue_due = Script(client, "queue/requeue_due")

    async def due(self) -> dict[bytes, bytes]:
        """Keys whose time has come, those that wait longest first, as {digest: packed}."""
        with translate_redis_errors():
            returned = await self._list_due(
                [self._keys.deferred_due, self._keys.deferred_keys], [DEFERRED_KEYS_PER_CALL]
            )
        return dict(zip(returned[::2], returned[1::2], strict=True))

    async def readmit(self, planner: str, due: Mapping[bytes, bytes]) -> bool:
        """Move keys that are due into new blocks, all or nothing; False when another planner leads, or did it.

        Raises EpochLost. A key that cannot be read only leaves the set: it is missed by count, and planned again.
        """
        keys = [
            self._keys.state,
            self._keys.leader,
            self._keys.ready,
            self._keys.deferred_due,
            self._keys.deferred_keys,
        ]
        arguments: list[Argument] = [self._epoch, planner, len(due), *due]
        for shard, group in groupby(self._blocks(due), attrgetter("shard")):
            payloads = [encode_block(block) for block in group]
            keys.append(self._keys.stream(shard))
            arguments += [shard, len(payloads), *payloads]
        with translate_redis_errors():
            returned = as_text(await self._requeue_due(keys, arguments))
        if returned == "epoch":
            raise EpochLost(f"run {self._keys.run} in Redis is not the one this coordinator joined; start it again")
        return returned == "ok"

    def _blocks(self, due: Mapping[bytes, bytes]) -> Iterator[Block]:
        """The keys in whole blocks, sorted by digest: few keys that come back must not make a block each."""
        readable = []
        for digest in sorted(due):
            try:
                readable.append(decode_deferral(digest, due[digest]))
            except ValueError as error:
                logger.error("a deferred key cannot be read and is planned again from the source: %s", error)
        for start in range(0, len(readable), BLOCK_KEYS):
            part = readable[start : start + BLOCK_KEYS]
            yield Block(
                shard=self._layout.shard(part[0].digest),
                keys=tuple(one.key for one in part),
                attempts={index: one.attempts for index, one in enumerate(part)},
            )
