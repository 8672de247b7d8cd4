"""Claims blocks and hands out their requests, keeping just enough at hand for the fetches."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from coordinator.done import DoneSet
from coordinator.model import Claim, Outcome, ShardId, WorkerId
from coordinator.patience import patiently
from coordinator.sharding import digest
from coordinator.steps import Reach, nowhere
from coordinator.streams import Streams
from crawler.batch import Batch
from crawler.fetch.template import Template
from crawler.page import Item, OpenBlock, Page

logger = logging.getLogger(__name__)

IDLE_FIRST = 0.02
IDLE_LONGEST = 0.5
# So many workers may die of a block before it is suspected of being the reason.
MOST_DELIVERIES = 3


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request and the keys that it asks for."""

    url: str
    items: Sequence[Item]


class Intake:
    """The requests of one worker; run `feed` beside those who ask for the `next`. While `shut`, nothing is claimed."""

    def __init__(
        self,
        *,
        streams: Streams,
        done: DoneSet,
        worker: WorkerId,
        batch: Batch,
        template: Template,
        keys_per_request: int,
        at_hand: int,
        shut: Callable[[], bool] = lambda: False,
        reach: Reach = nowhere,
    ) -> None:
        self._streams = streams
        self._done = done
        self._worker = worker
        self._batch = batch
        self._template = template
        self._keys_per_request = keys_per_request
        self._at_hand = at_hand
        self._shut = shut
        self._reach = reach
        self._requests: asyncio.Queue[Request] = asyncio.Queue()
        self._low = asyncio.Event()
        self._shard: ShardId | None = None

    async def next(self) -> Request:
        """The next request; waits while no shard has work."""
        request = await self._requests.get()
        if self._requests.qsize() < self._at_hand:
            self._low.set()
        return request

    async def feed(self) -> None:
        """Claim block after block until cancelled. Raises LeaseLost, EpochLost."""
        idle = IDLE_FIRST
        while True:
            while self._requests.qsize() >= self._at_hand:
                self._low.clear()
                await self._low.wait()
            # With no share of the only upstream a claim would only keep others from the block.
            claim = None if self._shut() else await patiently(self._claim, "worker")
            if claim is None:
                await asyncio.sleep(idle)
                idle = min(idle * 2, IDLE_LONGEST)
                continue
            idle = IDLE_FIRST
            self._reach("claimed")
            await self._open(claim)

    async def _claim(self) -> Claim | None:
        """The next block of the shard at hand, or of the one to drain next."""
        if self._shard is None:
            self._shard = await self._streams.seek(self._worker)
        if self._shard is None:
            return None
        claim = await self._streams.claim(self._worker, self._shard)
        if claim is None:
            self._shard = None
        return claim

    async def _open(self, claim: Claim) -> None:
        """Turn a block into requests for those of its keys that are not done."""
        keys = claim.block.keys
        digests = [digest(key) for key in keys]
        finished = await patiently(lambda: self._done.finished(digests), "worker")
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
            return
        if claim.deliveries > MOST_DELIVERIES:
            await self._break_up(claim, block, [index for index, name in enumerate(digests) if name not in finished])
            return
        refusals = claim.block.refusals
        items: list[Item] = []
        for index, (key, name) in enumerate(zip(keys, digests, strict=True)):
            if name in finished:
                continue
            if index in refusals:
                item = Item(key, name, block)
                self._batch.add(Page(item, None, Outcome.REFUSED, refusals[index], fetched_at=time.time()))
            else:
                items.append(Item(key, name, block))
        step = self._keys_per_request
        for start in range(0, len(items), step):
            part = items[start : start + step]
            self._requests.put_nowait(Request(self._template.url([item.key for item in part]), part))

    async def _break_up(self, claim: Claim, block: OpenBlock, left: list[int]) -> None:
        """Cut a block of which workers died, or give up the key that is alone in it."""
        if len(left) > 1:
            logger.warning("%s workers died of a block of shard %s: it is split", claim.deliveries - 1, claim.shard)
            await patiently(lambda: self._streams.split(self._worker, claim, left), "worker")
            return
        key = claim.block.keys[left[0]]
        reason = f"{claim.deliveries - 1} workers died while they had this key"
        self._batch.add(Page(Item(key, digest(key), block), None, Outcome.FAILED, reason, fetched_at=time.time()))
