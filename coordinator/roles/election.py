"""The election of a run's leading coordinator. The others stand by, and one of them takes over when the lease ends."""

from __future__ import annotations

import asyncio
import logging

from redis.asyncio import Redis

from coordinator.errors import RedisUnavailable
from coordinator.redis.connection import translate_redis_errors
from coordinator.redis.keys import RunKeys
from coordinator.redis.scripts import Script

logger = logging.getLogger(__name__)

ELECTION_LEASE_SECONDS = 10.0
ELECTION_POLL_SECONDS = 1.0


class Election:
    """One coordinator's part in the election of a run.

    A coordinator that lost the lead may not know it yet. The scripts that change the queue refuse its calls.
    """

    def __init__(self, client: Redis, keys: RunKeys, coordinator_id: str) -> None:
        self._keys = keys
        self._coordinator_id = coordinator_id
        self._election = Script(client, "run/election")

    async def gain(self) -> None:
        """Return when this coordinator leads. Raises RedisUnavailable."""
        waited = False
        while not await self._call("lead"):
            if not waited:
                logger.info(
                    "coordinator %s stands by: another one leads run %s",
                    self._coordinator_id,
                    self._keys.run,
                    extra={"event": "coordinator_stands_by"},
                )
                waited = True
            await asyncio.sleep(ELECTION_POLL_SECONDS)
        logger.info(
            "coordinator %s leads run %s", self._coordinator_id, self._keys.run, extra={"event": "coordinator_leads"}
        )

    async def keep(self) -> None:
        """Prolong the lease; return when another coordinator leads. While Redis is away, try again."""
        while True:
            await asyncio.sleep(ELECTION_LEASE_SECONDS / 4)
            try:
                if not await self._call("lead"):
                    logger.warning(
                        "coordinator %s no longer leads run %s",
                        self._coordinator_id,
                        self._keys.run,
                        extra={"event": "coordinator_replaced"},
                    )
                    return
            except RedisUnavailable as error:
                logger.warning("coordinator %s waits: %s", self._coordinator_id, error)

    async def leave(self) -> None:
        """End the lease, so that another coordinator can lead at once. Raises RedisUnavailable."""
        await self._call("leave")

    async def _call(self, verb: str) -> bool:
        lease_ms = int(ELECTION_LEASE_SECONDS * 1000)
        with translate_redis_errors():
            return bool(await self._election([self._keys.leader], [self._coordinator_id, lease_ms, verb]))
