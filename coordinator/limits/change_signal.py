"""Waits in Redis until the limits of a run have changed: so a worker that waits hardly asks."""

from __future__ import annotations

import asyncio

from redis.asyncio import Redis

from coordinator.errors import RedisDamaged
from coordinator.redis.connection import translate_redis_errors
from coordinator.redis.keys import RunKeys

# After this time a worker reads the changes though no signal came: a Redis that was set back may have lost one.
LONGEST_WAIT_SECONDS = 2.5


class ChangeSignal:
    """The stream of a run to which each change of its limits adds an entry. `seen` is the last entry that was seen."""

    def __init__(self, client: Redis, keys: RunKeys) -> None:
        self._client = client
        self._keys = keys
        self.seen: bytes | str = "0-0"
        # A read that waits in Redis must end before the connection calls it a timeout.
        most = client.connection_pool.connection_kwargs.get("socket_timeout") or 2 * LONGEST_WAIT_SECONDS
        self._block_ms = max(1, int(1000 * min(LONGEST_WAIT_SECONDS, most / 2)))

    async def wait(self) -> None:
        """Return when there is an entry behind `seen`, and after a few seconds. Raises RedisUnavailable."""
        try:
            with translate_redis_errors():
                await self._client.xread({self._keys.changed: self.seen}, count=1, block=self._block_ms)
        except RedisDamaged:  # the next read of the changes deletes what is there
            await asyncio.sleep(LONGEST_WAIT_SECONDS)
