"""ROLE janitor: due retries back to streams; is every key resolved? did keys vanish from the queue?"""

from __future__ import annotations

import asyncio
import logging
from time import monotonic

from redis.asyncio import Redis

from coordinator.errors import EpochLost, RedisUnavailable
from coordinator.model import Epoch, RunState
from coordinator.queue.deferred import DeferredKeys
from coordinator.queue.sharding import Layout
from coordinator.redis.connection import as_text, translate_redis_errors
from coordinator.redis.keys import FIRST_CURSOR, RunKeys
from coordinator.redis.scripts import Script

logger = logging.getLogger(__name__)

JANITOR_ROUND_SECONDS = 0.2
MISSING_CHECK_SECONDS = 5.0


class Janitor:
    """Keeps one run tidy until it is complete."""

    def __init__(self, client: Redis, keys: RunKeys, layout: Layout, epoch: Epoch, planner: str) -> None:
        self._keys = keys
        self._epoch = epoch
        self._layout = layout
        self._planner = planner
        self._deferred = DeferredKeys(client, keys, layout, epoch)
        self._check_resolved = Script(client, "run/check_resolved")
        self._replan = Script(client, "run/replan")

    async def watch(self) -> bool:
        """Bring back deferred keys that are due; settle the run when its source is exhausted and every key resolved.

        Returns True when it is complete, False when keys vanished from the queue and the source is to be planned again.
        Raises EpochLost, also after the run is resolved: workers may still be taking the final counts. Raises
        RedisUnavailable when it is unknown whether the source is to be planned again: the cursor in Redis tells.
        """
        known = RunState.RUNNING
        look_at = monotonic() + MISSING_CHECK_SECONDS
        while known is not RunState.COMPLETE:
            try:
                await self._readmit()
                state = await self._settled()
            except RedisUnavailable as error:
                logger.warning("janitor waits: %s", error)
                await asyncio.sleep(1.0)
                continue
            if state is RunState.RUNNING and monotonic() > look_at:
                look_at = monotonic() + MISSING_CHECK_SECONDS
                if await self._vanished():
                    return False
            if state is RunState.RESOLVED and state is not known:
                logger.info("run %s is resolved: every published key has its outcome", self._keys.run)
            known = state
            await asyncio.sleep(JANITOR_ROUND_SECONDS)
        return True

    async def _readmit(self) -> None:
        """Put the deferred keys that are due back into the queue."""
        while due := await self._deferred.due():
            if not await self._deferred.readmit(self._planner, due):
                return

    async def _settled(self) -> RunState:
        with translate_redis_errors():
            returned = as_text(await self._check_resolved([self._keys.state], [self._epoch]))
        if returned == "epoch":
            raise EpochLost(f"run {self._keys.run} in Redis is not the one this coordinator joined; start it again")
        return RunState(returned)

    async def _vanished(self) -> bool:
        """Whether keys vanished from the queue; then the cursor is back at the source's beginning."""
        keys = [self._keys.state, self._keys.leader, self._keys.deferred_due, self._keys.ready]
        keys += [self._keys.stream(shard) for shard in range(self._layout.shards)]
        with translate_redis_errors():
            returned = await self._replan(keys, [self._epoch, self._planner, FIRST_CURSOR])
        if not isinstance(returned, int) or returned == 0:
            return False
        logger.warning(
            "%s keys vanished from the queue of run %s: the source is planned again", returned, self._keys.run
        )
        return True
