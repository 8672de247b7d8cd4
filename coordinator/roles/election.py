"""One coordinator of a run leads; others stand by and take over when its lease ends."""

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
    """The right to plan a run. What a deposed planner publishes is refused by the script that publishes."""

    def __init__(self, client: Redis, keys: RunKeys, planner: str) -> None:
        self.planner = planner
        self._keys = keys
        self._election = Script(client, "run/election")

    async def gain(self) -> None:
        """Return when this planner leads; say once that it stands by."""
        standing_by = False
        while not await self._ask("lead"):
            if not standing_by:
                logger.info("coordinator %s stands by: another one leads run %s", self.planner, self._keys.run)
                standing_by = True
            await asyncio.sleep(ELECTION_POLL_SECONDS)
        logger.info("coordinator %s leads run %s", self.planner, self._keys.run)

    async def keep(self) -> None:
        """Prolong the lease until another planner has it or this call is cancelled."""
        while True:
            await asyncio.sleep(ELECTION_LEASE_SECONDS / 4)
            try:
                if not await self._ask("lead"):
                    logger.warning("coordinator %s no longer leads run %s", self.planner, self._keys.run)
                    return
            except RedisUnavailable as error:
                logger.warning("coordinator %s waits: %s", self.planner, error)

    async def leave(self) -> None:
        """Give the lease back, so that a standby need not wait for its end."""
        await self._ask("leave")

    async def _ask(self, verb: str) -> bool:
        with translate_redis_errors():
            return bool(
                await self._election([self._keys.leader], [self.planner, int(ELECTION_LEASE_SECONDS * 1000), verb])
            )
