"""The done set: digests of keys whose outcome is committed in Postgres, as intsets of 64-bit integers.

8.3 bytes a key were measured, against 68 for a set of digests and 116 for a set of URLs. But a key that is not done
counts as done when the first 64 bits of its digest are those of a key that is. At a billion keys the chance that this
happens to any of them is 3 % (10^18 / 2 pairs over 2^64).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from itertools import compress, islice

from redis.asyncio import Redis

from coordinator.errors import EpochLost
from coordinator.model import Epoch, Outcome
from coordinator.queue.sharding import Layout, by_bucket
from coordinator.queue.wire import encode_members
from coordinator.redis.connection import translate_redis_errors
from coordinator.redis.keys import RunKeys
from coordinator.redis.scripts import Script

# SMISMEMBER and SADD take their members from Lua's stack, which ends near 8,000.
DIGESTS_PER_CALL = 4000
# While Redis carries one call out, the next one is encoded.
PARALLEL_CALLS = 2


class DoneSet:
    """The done set of one run. Every method raises RedisUnavailable."""

    def __init__(self, client: Redis, keys: RunKeys, layout: Layout, epoch: Epoch) -> None:
        self._client = client
        self._keys = keys
        self._layout = layout
        self._epoch = epoch
        self._done_contains = Script(client, "run/done_contains")
        self._done_add = Script(client, "run/done_add")

    async def intersection(self, digests: Sequence[bytes]) -> set[bytes]:
        """Those of the digests that are done."""
        parts = list(_parts(digests))
        if len(parts) < PARALLEL_CALLS:  # as many digests as a block has
            return await self._intersection(parts)
        calls = (self._intersection(parts[first::PARALLEL_CALLS]) for first in range(PARALLEL_CALLS))
        return set[bytes]().union(*await asyncio.gather(*calls))

    async def _intersection(self, parts: Iterable[Sequence[bytes]]) -> set[bytes]:
        done: set[bytes] = set()
        for part in parts:
            keys, members = self._encoded(part)
            with translate_redis_errors():
                flags: bytes = await self._done_contains(keys, [members])
            done.update(compress(part, flags.replace(b"0", b"\0")))  # only a zero byte is false
        return done

    async def add(self, outcome: Outcome, digests: Iterable[bytes]) -> None:
        """Add digests of keys that ended with this outcome, as Postgres says. Raises EpochLost."""
        for part in _parts(digests):
            keys, members = self._encoded(part)
            with translate_redis_errors():
                status, *_ = await self._done_add([self._keys.state, *keys], [self._epoch, outcome, members])
            if status == b"epoch":
                raise EpochLost(f"run {self._keys.run} was made anew in Redis while its done set was rebuilt")

    async def rebuild(self, batches: AsyncIterator[Mapping[Outcome, Sequence[bytes]]]) -> None:
        """Add batches of {outcome: digests} from Postgres. Raises EpochLost."""
        async for batch in batches:
            for outcome, digests in batch.items():
                await self.add(outcome, digests)

    def _encoded(self, digests: Sequence[bytes]) -> tuple[list[str], bytes]:
        """The Redis keys of the digests' buckets, and the members of these buckets, encoded."""
        counts, members = by_bucket(digests, self._layout)
        return self._bucket_keys(counts), encode_members(counts.values(), members)

    def _bucket_keys(self, buckets: Iterable[int]) -> list[str]:
        return self._keys.done_buckets(buckets)


class KnownSet(DoneSet):
    """The digests of the keys that pages have named: who names one again need not tell Postgres."""

    async def mark(self, digests: Iterable[bytes]) -> None:
        """Add digests when a run is rebuilt."""
        for part in _parts(digests):
            counts, members = by_bucket(part, self._layout)
            rest = iter(members)
            with translate_redis_errors():
                async with self._client.pipeline(transaction=False) as pipe:
                    for key, count in zip(self._bucket_keys(counts), counts.values(), strict=True):
                        pipe.sadd(key, *islice(rest, count))
                    await pipe.execute()

    def _bucket_keys(self, buckets: Iterable[int]) -> list[str]:
        return self._keys.known_buckets(buckets)


def _parts(digests: Iterable[bytes]) -> Iterator[Sequence[bytes]]:
    """The digests in parts that one call can take; sorted, so that those of one bucket are together."""
    ordered = sorted(digests)
    for start in range(0, len(ordered), DIGESTS_PER_CALL):
        yield ordered[start : start + DIGESTS_PER_CALL]
