"""ROLE janitor: notices that every key of the run has its outcome."""

from __future__ import annotations

import asyncio
import logging

from redis.asyncio import Redis

from coordinator.connection import as_text, translated
from coordinator.errors import EpochLost, RedisUnavailable
from coordinator.keys import RunKeys
from coordinator.model import Epoch, RunState
from coordinator.scripts import Script

logger = logging.getLogger(__name__)

ROUND = 0.2


class Janitor:
    """Keeps one run tidy until it is complete."""

    def __init__(self, client: Redis, keys: RunKeys, epoch: Epoch) -> None:
        self._keys = keys
        self._epoch = epoch
        self._settle = Script(client, "settle")

    async def watch(self) -> None:
        """Settle the run when its source is exhausted and every published key is resolved; return when it is complete.

        Raises EpochLost, also after the run is resolved: workers may still be taking the final counts.
        """
        known = RunState.RUNNING
        while known is not RunState.COMPLETE:
            try:
                state = await self._settled()
            except RedisUnavailable as error:
                logger.warning("janitor waits: %s", error)
                await asyncio.sleep(1.0)
                continue
            if state is RunState.RESOLVED and state is not known:
                logger.info("run %s is resolved: every published key has its outcome", self._keys.run)
            known = state
            await asyncio.sleep(ROUND)

    async def _settled(self) -> RunState:
        with translated():
            answer = as_text(await self._settle([self._keys.state], [self._epoch]))
        if answer == "epoch":
            raise EpochLost(f"run {self._keys.run} in Redis is not the one this coordinator joined; start it again")
        return RunState(answer)
