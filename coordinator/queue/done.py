"""The done set: digests of keys whose outcome is committed in Postgres, as intsets of 64-bit integers.

8.3 bytes a key were measured, against 68 for a set of digests and 116 for a set of URLs. Two keys of which
only one is done share their 64 bits once in 1.8e19 / keys tries: at a billion keys, 3 % for a single one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from itertools import compress

from redis.asyncio import Redis

from coordinator.errors import EpochLost
from coordinator.model import Epoch, Outcome
from coordinator.queue.sharding import Layout, by_bucket
from coordinator.queue.wire import encode_members
from coordinator.redis.connection import translate_redis_errors
from coordinator.redis.keys import RunKeys
from coordinator.redis.scripts import Script

# One SMISMEMBER or SADD takes its members from Lua's stack, which ends near 8,000.
DIGESTS_PER_CALL = 4000
# Calls at a time: while Redis looks up one part, the next is put together.
PARALLEL_CALLS = 2


class DoneSet:
    """The done set of one run."""

    def __init__(self, client: Redis, keys: RunKeys, layout: Layout, epoch: Epoch) -> None:
        self._keys = keys
        self._layout = layout
        self._epoch = epoch
        self._done_contains = Script(client, "run/done_contains")
        self._done_add = Script(client, "run/done_add")

    async def intersection(self, digests: Sequence[bytes]) -> set[bytes]:
        """Those of the digests that are done."""
        parts = list(_parts(digests))
        if len(parts) < PARALLEL_CALLS:  # a worker's block
            return await self._intersection(parts)
        lanes = (self._intersection(parts[lane::PARALLEL_CALLS]) for lane in range(PARALLEL_CALLS))
        return set[bytes]().union(*await asyncio.gather(*lanes))

    async def _intersection(self, parts: Iterable[Sequence[bytes]]) -> set[bytes]:
        found: set[bytes] = set()
        for part in parts:
            keys, members = self._by_bucket(part)
            with translate_redis_errors():
                hits: bytes = await self._done_contains(keys, [members])
            found.update(compress(part, hits.replace(b"0", b"\0")))
        return found

    async def add(self, outcome: Outcome, digests: Iterable[bytes]) -> None:
        """Add digests that Postgres says are finished. Raises EpochLost."""
        for part in _parts(digests):
            keys, members = self._by_bucket(part)
            with translate_redis_errors():
                returned = await self._done_add([self._keys.state, *keys], [self._epoch, outcome, members])
            if returned[0] == b"epoch":
                raise EpochLost(f"run {self._keys.run} was made anew in Redis while its done set was rebuilt")

    async def rebuild(self, rows: AsyncIterator[Mapping[Outcome, Sequence[bytes]]]) -> None:
        """Fill the done set from batches of Postgres' own rows, as {outcome: digests}."""
        async for batch in rows:
            for outcome, digests in batch.items():
                await self.add(outcome, digests)

    def _by_bucket(self, digests: Sequence[bytes]) -> tuple[list[str], bytes]:
        """The buckets' keys, and their members on the wire."""
        counts, members = by_bucket(digests, self._layout)
        return [self._keys.done(bucket) for bucket in counts], encode_members(counts.values(), members)


def _parts(digests: Iterable[bytes]) -> Iterator[Sequence[bytes]]:
    """The digests sorted, so that those of one bucket are asked for together, in parts that a script can take."""
    ordered = sorted(digests)
    for start in range(0, len(ordered), DIGESTS_PER_CALL):
        yield ordered[start : start + DIGESTS_PER_CALL]
