"""Claims blocks and puts their requests into the lines, so that just enough is at hand for the fetches."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from coordinator.failpoints import Failpoint, no_failpoint
from coordinator.limits.matcher import UpstreamMatcher
from coordinator.model import NO_ATTEMPTS, Attempts, Claim, Outcome, ShardId, WorkerId
from coordinator.queue.done import DoneSet
from coordinator.queue.sharding import digest
from coordinator.queue.streams import Streams
from coordinator.redis.retrying import retry_unavailable
from crawler.fetch.template import Template
from crawler.model import Item, OpenBlock, Page, Request
from crawler.pipeline.batch import Batch
from crawler.pipeline.scheduler import Scheduler

logger = logging.getLogger(__name__)

IDLE_FIRST = 0.02
IDLE_LONGEST = 0.5
# Between claims that bring nothing but more for upstreams that have enough: what others could use may lie behind it.
SLOW_LONGEST = 2.0
# So many workers may die of a block before it is suspected of being the reason.
MOST_DELIVERIES = 3


class Intake:
    """Feeds one worker's lines. While `shut`, nothing is claimed."""

    def __init__(
        self,
        *,
        streams: Streams,
        done: DoneSet,
        worker: WorkerId,
        batch: Batch,
        template: Template,
        matcher: UpstreamMatcher,
        scheduler: Scheduler,
        keys_per_request: int,
        shut: Callable[[], bool] = lambda: False,
        failpoint: Failpoint = no_failpoint,
    ) -> None:
        self._streams = streams
        self._done = done
        self._worker = worker
        self._batch = batch
        self._template = template
        self._matcher = matcher
        self._scheduler = scheduler
        self._keys_per_request = keys_per_request
        self._shut = shut
        self._failpoint = failpoint
        self._shard: ShardId | None = None

    async def feed(self) -> None:
        """Claim block after block until cancelled. Raises LeaseLost, EpochLost."""
        idle = slow = IDLE_FIRST
        while True:
            await self._scheduler.until_low()
            for request, delay in self._scheduler.spilled():
                self._batch.defer(request, delay)
            # While the only upstream cannot be asked from here, a claim would only keep others from the block.
            claim = None if self._shut() else await retry_unavailable(self._claim, "worker")
            if claim is None:
                await asyncio.sleep(idle)
                idle = min(idle * 2, IDLE_LONGEST)
                continue
            idle = IDLE_FIRST
            self._failpoint("claimed")
            if await self._open(claim):
                slow = IDLE_FIRST
            else:
                await asyncio.sleep(slow)
                slow = min(slow * 2, SLOW_LONGEST)

    async def _claim(self) -> Claim | None:
        """The next block of the shard at hand, or of the next one that has any; None when no shard has.

        A worker that left may have held every shard, most of them drained: each is looked at once, without a pause.
        """
        while True:
            if self._shard is None:
                self._shard = await self._streams.claim_shard(self._worker)
            if self._shard is None:
                return None
            claim = await self._streams.claim(self._worker, self._shard)
            if claim is not None:
                return claim
            self._shard = None

    async def _open(self, claim: Claim) -> bool:
        """Turn a block into requests for those of its keys that are not done; False when all of them only wait."""
        keys = claim.block.keys
        digests = [digest(key) for key in keys]
        finished = await retry_unavailable(lambda: self._done.intersection(digests), "worker")
        block = OpenBlock(shard=claim.shard, entry=claim.entry, keys=len(keys), left=len(keys) - len(finished))
        if claim.deliveries > 1:
            logger.info(
                "took over a block of shard %s, delivery %s: %s of %s keys left",
                claim.shard,
                claim.deliveries,
                block.left,
                block.keys,
            )
        if not block.left:
            self._batch.idle(block)
            return True
        if claim.deliveries > MOST_DELIVERIES:
            await self._break_up(claim, block, [index for index, name in enumerate(digests) if name not in finished])
            return True
        refusals, attempted = claim.block.refusals, claim.block.attempts
        items: list[Item] = []
        attempts: dict[bytes, Attempts] = {}
        for index, (key, name) in enumerate(zip(keys, digests, strict=True)):
            if name in finished:
                continue
            # The source has judged each key, but a stranger may have put this block into the queue.
            reason = refusals.get(index) or self._template.fault(key)
            if reason is not None:
                item = Item(key, name, block)
                self._batch.add(Page(item, None, Outcome.REFUSED, reason, fetched_at=time.time()))
            else:
                items.append(Item(key, name, block))
                if index in attempted:
                    attempts[name] = attempted[index]
        step, at_hand = self._keys_per_request, self._scheduler.at_hand
        for start in range(0, len(items), step):
            part = items[start : start + step]
            url = self._template.url([key for key, _, _ in part])
            most = (
                max((attempts.get(item.digest, NO_ATTEMPTS) for item in part), key=_total) if attempts else NO_ATTEMPTS
            )
            self._scheduler.put(Request(url, part, self._matcher.upstream_of(url), most))
        return not items or self._scheduler.at_hand > at_hand

    async def _break_up(self, claim: Claim, block: OpenBlock, left: list[int]) -> None:
        """Cut a block of which workers died, or give up the key that is alone in it."""
        if len(left) > 1:
            logger.warning("%s workers died of a block of shard %s: it is split", claim.deliveries - 1, claim.shard)
            await retry_unavailable(lambda: self._streams.split(self._worker, claim, left), "worker")
            return
        key = claim.block.keys[left[0]]
        reason = f"{claim.deliveries - 1} workers died while they had this key"
        self._batch.add(Page(Item(key, digest(key), block), None, Outcome.FAILED, reason, fetched_at=time.time()))


def _total(attempts: Attempts) -> int:
    return attempts.total
