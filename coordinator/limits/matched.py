"""Which entries of `[limits]` a run has met so far: one that stays alone to its end is perhaps misspelt."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from redis.asyncio import Redis

from coordinator.redis.connection import as_text, translate_redis_errors
from coordinator.redis.keys import RunKeys
from coordinator.redis.retrying import retry_unavailable

RECORD_INTERVAL_SECONDS = 1.0


class MatchedLimits:
    """The entries that the workers of a run have met, in Redis. `matched` are those of this worker; it grows."""

    def __init__(self, client: Redis, keys: RunKeys, matched: set[str] | frozenset[str] = frozenset()) -> None:
        self._client = client
        self._keys = keys
        self._matched = matched
        self._recorded = 0

    async def watch(self) -> None:
        """Record the entries of this worker every second until cancelled; `record` it once more at the end."""
        while True:
            await self.record()
            await asyncio.sleep(RECORD_INTERVAL_SECONDS)

    async def record(self) -> None:
        """Record the entries of this worker, if there are new ones. Waits while Redis does not respond."""
        if len(self._matched) > self._recorded:
            names = tuple(self._matched)
            await retry_unavailable(lambda: self.add(names), "limits")
            self._recorded = len(names)

    async def add(self, names: Iterable[str]) -> None:
        """Record that these entries were met. Raises RedisUnavailable."""
        with translate_redis_errors():
            await self._client.sadd(self._keys.matched_limits, *names)

    async def without_match(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of the names that no worker has met. Raises RedisUnavailable."""
        with translate_redis_errors():
            met = {as_text(name) for name in await self._client.smembers(self._keys.matched_limits)}
        return tuple(name for name in names if name not in met)
