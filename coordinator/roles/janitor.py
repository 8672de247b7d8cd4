"""The janitor: requeues deferred keys that are due, finds out when a run is resolved or keys are missing, and keeps the
run's history.
"""

from __future__ import annotations

import asyncio
import logging
from time import monotonic

from redis.asyncio import Redis

from coordinator.errors import EpochLost, RedisUnavailable
from coordinator.model import Epoch, RunState
from coordinator.queue.deferred import DeferredKeys
from coordinator.queue.history import LEAST_SECONDS, HistoryKeeper
from coordinator.queue.registry import as_state
from coordinator.queue.sharding import Layout
from coordinator.redis.connection import as_text, translate_redis_errors
from coordinator.redis.keys import FIRST_CURSOR, RunKeys
from coordinator.redis.retrying import REDIS_RETRY_SECONDS
from coordinator.redis.scripts import Script

logger = logging.getLogger(__name__)

JANITOR_ROUND_SECONDS = 0.2
MISSING_CHECK_SECONDS = 5.0


class Janitor:
    """The janitor of one run, in the coordinator that leads it."""

    def __init__(
        self,
        client: Redis,
        keys: RunKeys,
        layout: Layout,
        epoch: Epoch,
        coordinator_id: str,
        keys_per_request: int = 1,
        single_requests: bool = False,
    ) -> None:
        self._keys = keys
        self._epoch = epoch
        self._layout = layout
        self._coordinator_id = coordinator_id
        self._deferred = DeferredKeys(client, keys, layout, epoch, keys_per_request, single_requests)
        self._history = HistoryKeeper(client, keys)
        self._check_resolved_script = Script(client, "run/check_resolved")
        self._replan_script = Script(client, "run/replan")

    async def watch(self) -> bool:
        """Requeue what is due, and call the run resolved when its source is exhausted and every key is resolved.

        Returns True when the run is over, False when keys were missing from the queue and the cursor is back at the
        source's beginning. Raises EpochLost, and RedisUnavailable when it is unknown whether the cursor was set back.
        """
        last_state = RunState.RUNNING
        check_missing_at, record_at = monotonic() + MISSING_CHECK_SECONDS, monotonic()
        while not last_state.is_over:
            try:
                await self._requeue_due()
                state = await self._check_resolved()
                if monotonic() >= record_at:
                    record_at = monotonic() + LEAST_SECONDS
                    await self._history.record()
            except RedisUnavailable as error:
                logger.warning("janitor waits: %s", error)
                await asyncio.sleep(REDIS_RETRY_SECONDS)
                continue
            if state is RunState.RUNNING and monotonic() > check_missing_at:
                check_missing_at = monotonic() + MISSING_CHECK_SECONDS
                if await self._replan_if_missing():
                    return False
            if state is RunState.RESOLVED and state is not last_state:
                logger.info(
                    "run %s is resolved: every published key has its outcome",
                    self._keys.run,
                    extra={"event": "run_resolved"},
                )
            last_state = state
            await asyncio.sleep(JANITOR_ROUND_SECONDS)
        return True

    async def _requeue_due(self) -> None:
        """Requeue all deferred keys that are due, unless another coordinator leads."""
        while due := await self._deferred.due():
            if not await self._deferred.requeue(self._coordinator_id, due):
                return

    async def _check_resolved(self) -> RunState:
        """The state of the run, which becomes `resolved` by this call when every key is resolved."""
        with translate_redis_errors():
            status = as_text(await self._check_resolved_script([self._keys.state], [self._epoch]))
        if status == "epoch":
            raise EpochLost(f"run {self._keys.run} in Redis is not the one this coordinator joined; start it again")
        return as_state(status)

    async def _replan_if_missing(self) -> bool:
        """When keys are missing from the queue, set the cursor back to the source's beginning, and return True."""
        keys = [self._keys.state, self._keys.leader, self._keys.deferred_due, self._keys.frontier]
        keys.append(self._keys.ready)
        keys += [self._keys.stream(shard) for shard in range(self._layout.shards)]
        with translate_redis_errors():
            missing = await self._replan_script(
                keys, [self._epoch, self._coordinator_id, FIRST_CURSOR, int(self._layout.follows)]
            )
        if missing == b"epoch" and self._layout.follows:
            raise EpochLost(f"keys vanished from the queue of run {self._keys.run}; it is to be rebuilt from Postgres")
        if not isinstance(missing, int) or missing == 0:
            return False
        logger.warning(
            "%s keys vanished from the queue of run %s: the source is planned again",
            missing,
            self._keys.run,
            extra={"event": "keys_vanished"},
        )
        return True
