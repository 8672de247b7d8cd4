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

from coordinator.connection import as_text, translated
from coordinator.errors import EpochLost
from coordinator.keys import RunKeys
from coordinator.model import Block, Epoch
from coordinator.scripts import Argument, Script
from coordinator.sharding import BLOCK_KEYS, Layout
from coordinator.wire import encode, unpacked

logger = logging.getLogger(__name__)

# One call moves so many keys: some ten blocks, and Redis is busy for a few milliseconds.
MOST_AT_ONCE = 5_000


class Delayed:
    """The delayed set of one run, as its coordinator sees it. Every method raises RedisUnavailable."""

    def __init__(self, client: Redis, keys: RunKeys, layout: Layout, epoch: Epoch) -> None:
        self._keys = keys
        self._layout = layout
        self._epoch = epoch
        self._due = Script(client, "due")
        self._readmit = Script(client, "readmit")

    async def due(self) -> dict[bytes, bytes]:
        """Keys whose time has come, those that wait longest first, as {digest: packed}."""
        with translated():
            answer = await self._due([self._keys.delayed, self._keys.deferred], [MOST_AT_ONCE])
        return dict(zip(answer[::2], answer[1::2], strict=True))

    async def readmit(self, planner: str, due: Mapping[bytes, bytes]) -> bool:
        """Move keys that are due into new blocks, all or nothing; False when another planner leads, or did it.

        Raises EpochLost. A key that cannot be read only leaves the set: it is missed by count, and planned again.
        """
        keys = [self._keys.state, self._keys.leader, self._keys.ready, self._keys.delayed, self._keys.deferred]
        arguments: list[Argument] = [self._epoch, planner, len(due), *due]
        for shard, group in groupby(self._blocks(due), attrgetter("shard")):
            payloads = [encode(block) for block in group]
            keys.append(self._keys.stream(shard))
            arguments += [shard, len(payloads), *payloads]
        with translated():
            answer = as_text(await self._readmit(keys, arguments))
        if answer == "epoch":
            raise EpochLost(f"run {self._keys.run} in Redis is not the one this coordinator joined; start it again")
        return answer == "ok"

    def _blocks(self, due: Mapping[bytes, bytes]) -> Iterator[Block]:
        """The keys in whole blocks, sorted by digest: few keys that come back must not make a block each."""
        readable = []
        for digest in sorted(due):
            try:
                readable.append(unpacked(digest, due[digest]))
            except ValueError as error:
                logger.error("a deferred key cannot be read and is planned again from the source: %s", error)
        for start in range(0, len(readable), BLOCK_KEYS):
            part = readable[start : start + BLOCK_KEYS]
            yield Block(
                shard=self._layout.shard(part[0].digest),
                keys=tuple(one.key for one in part),
                tries={index: one.tries for index, one in enumerate(part)},
            )
