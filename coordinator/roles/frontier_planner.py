"""The frontier planner: publishes found keys that wait in Postgres, the least deep ones first, when there is room."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from types import MappingProxyType

from coordinator.errors import RedisUnavailable, Unavailable
from coordinator.failpoints import Failpoint, no_failpoint
from coordinator.model import FoundBatch, FoundKey, RunCounts
from coordinator.queue.done import DoneSet
from coordinator.queue.found import Frontier, found_blocks
from coordinator.queue.sharding import Layout
from coordinator.redis.retrying import REDIS_RETRY_SECONDS

logger = logging.getLogger(__name__)

FRONTIER_POLL_SECONDS = 0.05


class FrontierPlanner:
    """Publishes the pointers of one run's frontier while this coordinator leads.

    `read_found` reads a batch from Postgres. With `by_level` a depth begins when all keys of the depth before are
    resolved, so that each key has the least depth that it can have. `most` is {rule: how many keys it may find}.
    """

    def __init__(
        self,
        *,
        coordinator_id: str,
        frontier: Frontier,
        done: DoneSet,
        layout: Layout,
        counts: Callable[[], Awaitable[RunCounts]],
        read_found: Callable[[FoundBatch], Awaitable[Sequence[FoundKey]]],
        high_water: int,
        keys_per_request: Mapping[str, int] = MappingProxyType({}),
        by_level: bool = False,
        most: Mapping[int, int],
        failpoint: Failpoint = no_failpoint,
    ) -> None:
        self._coordinator_id = coordinator_id
        self._frontier = frontier
        self._done = done
        self._layout = layout
        self._counts = counts
        self._read_found = read_found
        self._high_water = high_water
        self._keys_per_request = keys_per_request
        self._by_level = by_level
        self._most = most
        self._failpoint = failpoint

    async def plan(self) -> None:
        """Publish pointer after pointer; returns when another coordinator leads. Raises EpochLost."""
        while True:
            try:
                # First the counts: when nothing is queued, nobody adds a pointer of a lesser depth any more.
                counts = await self._counts()
                batch = await self._frontier.first()
                if batch is not None and await self._may_publish(batch, counts):
                    if not await self._publish(batch):
                        return
                    continue
            except RedisUnavailable:
                raise
            except Unavailable as error:
                logger.warning("planner waits: %s", error)
                await asyncio.sleep(REDIS_RETRY_SECONDS)
            await asyncio.sleep(FRONTIER_POLL_SECONDS)

    async def _may_publish(self, batch: FoundBatch, counts: RunCounts) -> bool:
        if self._by_level and batch.depth > await self._frontier.level():
            return counts.exhausted and counts.queued == 0
        return counts.queued == 0 or counts.queued + batch.size <= self._high_water

    async def _publish(self, batch: FoundBatch) -> bool:
        found = await self._read_found(batch)
        self._failpoint("found")
        wanted = found
        if self._most or len(found) != batch.size:  # else none had a page yet, and who claims them looks for these
            done = await self._done.intersection([one.digest for one in found])
            wanted = [one for one in found if one.digest not in done]
        kept, by_rule = await self._within_bounds(wanted)
        blocks = found_blocks(kept, self._layout, self._keys_per_request)
        skipped = len(found) - len(wanted)
        published = await self._frontier.publish(self._coordinator_id, batch, blocks, skipped=skipped, by_rule=by_rule)
        self._failpoint("followed")
        return published

    async def _within_bounds(self, found: Collection[FoundKey]) -> tuple[list[FoundKey], dict[int, tuple[int, int]]]:
        """The keys that their rules still allow, and {rule: (how many are allowed, how many are not)}."""
        kept: list[FoundKey] = []
        left: dict[int, int] = {}
        by_rule: dict[int, tuple[int, int]] = {}
        for one in found:
            if one.rule not in self._most:
                kept.append(one)
                continue
            if one.rule not in left:
                left[one.rule] = self._most[one.rule] - await self._frontier.followed(one.rule)
            published, cut = by_rule.get(one.rule, (0, 0))
            if published < left[one.rule]:
                kept.append(one)
                published += 1
            else:
                cut += 1
            by_rule[one.rule] = (published, cut)
        return kept, by_rule
