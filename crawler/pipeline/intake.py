"""Claims blocks and makes requests of their keys, so that the lanes always have just enough to fetch."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from operator import attrgetter

from coordinator.failpoints import Failpoint, no_failpoint
from coordinator.limits.matcher import UpstreamMatcher
from coordinator.model import NO_ATTEMPTS, Attempts, Claim, Outcome, ShardId, WorkerId
from coordinator.queue.done import DoneSet
from coordinator.queue.sharding import block_digests
from coordinator.queue.streams import Streams
from coordinator.redis.retrying import retry_unavailable
from coordinator.url import InvalidUrl
from crawler.fetch.retry import NOT_AGAIN, UNKNOWN, add_attempt
from crawler.fetch.template import Template
from crawler.model import BasePage, Item, OpenBlock, Page, Request
from crawler.pipeline.batch import Batch
from crawler.pipeline.refresh import Refresh
from crawler.pipeline.scheduler import Scheduler

logger = logging.getLogger(__name__)

# After a claim that brought nothing to fetch at once, the intake waits. Each wait is twice as long as the one before.
FIRST_WAIT_SECONDS = 0.02
# The longest wait while no shard has a block.
MAX_IDLE_WAIT_SECONDS = 0.5
# The same in a run that follows, where all workers wait for the next depth, or page of a list: together they look 40
# times a second, while they are so few that each looks at least as often as the second number says.
LEVEL_WAIT_A_WORKER, MAX_LEVEL_WAIT_SECONDS = 0.025, 0.2
# The longest wait while all upstreams that are met have enough queued; later blocks may have other keys.
MAX_BUSY_WAIT_SECONDS = 2.0
# More workers than these look no more often all together: what one of them takes, the others need not look at.
WORKERS_THAT_LOOK = 8
# A block that was delivered more often than this is suspected of killing workers.
MAX_DELIVERIES = 3


class Intake:
    """Feeds the scheduler of one worker. While `would_only_wait()` is true, it claims nothing.

    `templates` and `keys_per_request` are those of each kind. In a `refresh` unchanged keys are carried over. The run
    has `fleet` workers. With `by_level` the keys of one depth wait until all of the depth before are resolved.
    """

    def __init__(
        self,
        *,
        streams: Streams,
        done: DoneSet,
        worker: WorkerId,
        batch: Batch,
        templates: Mapping[str, Template],
        matcher: UpstreamMatcher,
        scheduler: Scheduler,
        keys_per_request: Mapping[str, int],
        refresh: Refresh | None = None,
        follows: bool = False,
        by_level: bool = False,
        would_only_wait: Callable[[], bool] = lambda: False,
        failpoint: Failpoint = no_failpoint,
    ) -> None:
        self._streams = streams
        self._done = done
        self._worker = worker
        self._batch = batch
        self._templates = templates
        self._matcher = matcher
        self._scheduler = scheduler
        self._keys_per_request = keys_per_request
        self._refresh = refresh
        self._follows, self._by_level = follows, by_level
        self._would_only_wait = would_only_wait
        self._failpoint = failpoint
        self.fleet = 1
        self._shard: ShardId | None = None
        # What it waits for: "Redis", "keys" from a claim that brought nothing to the next block, or nothing.
        self.feeding = ""

    async def feed(self) -> None:
        """Claim block after block until cancelled. Raises LeaseLost, EpochLost."""
        idle_wait = busy_wait = FIRST_WAIT_SECONDS
        while True:
            await self._scheduler.until_low()
            for request, delay in self._scheduler.overflow():
                self._batch.defer(request, delay)
            # Requests of another block would only wait here, so the block is left to other workers.
            claim, only_waits = None, self._would_only_wait()
            if not only_waits:
                self.feeding = self.feeding or "Redis"
                claim = await retry_unavailable(self._claim, "worker")
            if claim is None:
                self.feeding = "" if only_waits else "keys"
                await asyncio.sleep(idle_wait)
                idle_wait = min(idle_wait * 2, self._most_busy_wait if self._has_enough else self._most_idle_wait)
                continue
            idle_wait = FIRST_WAIT_SECONDS
            self._failpoint("claimed")
            brings_requests = await self._open(claim)
            self.feeding = ""
            if brings_requests:
                busy_wait = FIRST_WAIT_SECONDS
            else:
                await asyncio.sleep(busy_wait)
                busy_wait = min(busy_wait * 2, self._most_busy_wait)

    @property
    def _has_enough(self) -> bool:
        """Whether each upstream has more waiting here than could leave within a moment, and none is paused."""
        queues = self._scheduler.queues.values()
        return bool(queues) and all(len(queue.waiting) > queue.at_hand > 0 for queue in queues)

    @property
    def _most_idle_wait(self) -> float:
        return min(LEVEL_WAIT_A_WORKER * self.fleet, MAX_LEVEL_WAIT_SECONDS) if self._follows else MAX_IDLE_WAIT_SECONDS

    @property
    def _most_busy_wait(self) -> float:
        return MAX_BUSY_WAIT_SECONDS * max(1.0, self.fleet / WORKERS_THAT_LOOK)

    async def _claim(self) -> Claim | None:
        """The next block of this worker's shard, or of the next shard that has one; None when no shard has a block.

        Shards that turn out to be empty are passed over without a wait: after a worker left there may be many of them.
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
        """Make requests of the block's keys that are not done. Returns False when all of the requests only wait."""
        keys = claim.block.keys
        digests = block_digests(claim.block)
        done = set[bytes]()
        if not (self._by_level and claim.brings_found):  # each of those is published once, when it was not done
            done = await retry_unavailable(lambda: self._done.intersection(digests), "worker")
        block = OpenBlock(claim.shard, claim.entry, len(keys), len(keys) - len(done), claim.deliveries)
        if claim.deliveries > 1:
            logger.info(
                "took over a block of shard %s, delivery %s: %s of %s keys left",
                claim.shard,
                claim.deliveries,
                block.left,
                block.keys,
                extra={"event": "block_taken_over"},
            )
        if not block.left:
            self._batch.add_done_block(block)
            return True
        base = None
        if self._refresh is not None:
            base = await self._refresh.pages([key_digest for key_digest in digests if key_digest not in done])
        at_risk = self._not_repeatable() if claim.deliveries > 1 else ()
        if claim.deliveries > MAX_DELIVERIES and not at_risk:
            left = [index for index, key_digest in enumerate(digests) if key_digest not in done]
            await self._split_or_fail(claim, block, left, digests, base)
            return True
        items, attempts = self._items_to_fetch(claim, block, digests, done)
        if at_risk:
            for item in items:
                if item.context.kind in at_risk:
                    self._fail(item, f"{UNKNOWN}: a worker died while it had this key; {NOT_AGAIN}", base)
            items = [item for item in items if item.context.kind not in at_risk]
        if self._refresh is not None and base:
            items, base = await self._carry_over(items, base, self._refresh)
        at_hand_before = self._scheduler.at_hand
        self._put(items, attempts, base)
        return not items or self._scheduler.at_hand > at_hand_before

    def _items_to_fetch(
        self, claim: Claim, block: OpenBlock, digests: Sequence[bytes], done: Container[bytes]
    ) -> tuple[list[Item], dict[bytes, Attempts]]:
        """The keys that are neither done nor refused, and the attempts of those that have some, by digest.

        The pages of refused keys go into the batch.
        """
        refusals, attempted, contexts = claim.block.refusals, claim.block.attempts, claim.block.contexts
        items: list[Item] = []
        attempts: dict[bytes, Attempts] = {}
        for index, (key, key_digest) in enumerate(zip(claim.block.keys, digests, strict=True)):
            if key_digest in done:
                continue
            item = Item(key, key_digest, block, claim.block.context(index))
            if index in refusals:
                self._refuse(item, refusals[index])
                continue
            if contexts and item.context.kind not in self._templates:
                self._refuse(item, f"it is of kind {item.context.kind!r:.200}, which the job does not have")
                continue
            items.append(item)
            if index in attempted:
                attempts[key_digest] = attempted[index]
        return items, attempts

    async def _carry_over(
        self, items: Sequence[Item], base: Mapping[bytes, BasePage], refresh: Refresh
    ) -> tuple[list[Item], Mapping[bytes, BasePage]]:
        """Add pages that need no request to the batch, when it has room; returns the other keys, and their base."""
        left: list[Item] = []
        for item in items:
            if (page := refresh.fresh(item, base.get(item.digest))) is None:
                left.append(item)
                continue
            await self._batch.until_room()
            self._batch.add(page)
        return left, {item.digest: refresh.requested(item, base[item.digest]) for item in left if item.digest in base}

    def put_alone(self, request: Request, error: str) -> None:
        """Put a request for each key of this one into the scheduler, because it failed with an error as a whole."""
        attempts = add_attempt(request.attempts, error, time.time())
        for item in request.items:
            self._put([item], {item.digest: attempts}, request.base)

    def _put(
        self, items: Sequence[Item], attempts: dict[bytes, Attempts], base: Mapping[bytes, BasePage] | None = None
    ) -> None:
        """Put a request for every `keys_per_request` items into the scheduler.

        A request has the attempts of that one of its keys which has the most.
        """
        most, now = NO_ATTEMPTS, time.monotonic()
        for part in self._requests(items):
            try:
                target, payload = self._templates[part[0].context.kind].build(
                    [item.key for item in part], part[0].context
                )
            except InvalidUrl as error:  # the source has checked each key, but this block may come from another program
                for item in part:
                    self._refuse(item, str(error))
                continue
            if attempts:
                most = max((attempts.get(item.digest, NO_ATTEMPTS) for item in part), key=attrgetter("total"))
            request = Request(target, part, self._matcher.upstream_of(target), most, payload, attempts, base)
            request.waits_since = now
            self._scheduler.put(request)

    def _not_repeatable(self) -> set[str]:
        """The kinds of the keys whose requests may not be sent again."""
        return {kind for kind, template in self._templates.items() if not template.is_repeatable}

    def _requests(self, items: Sequence[Item]) -> Iterator[Sequence[Item]]:
        """The items in parts of one request each. A page of a list behind the first is asked for alone."""
        size = self._keys_per_request[""]
        if len(self._keys_per_request) == 1 and (size == 1 or not any(item.context.list_key for item in items)):
            for start in range(0, len(items), size):
                yield items[start : start + size]
            return
        by_kind: dict[str, list[Item]] = {}
        for item in items:
            if item.context.list_key:
                yield [item]
            else:
                by_kind.setdefault(item.context.kind, []).append(item)
        for kind, alike in by_kind.items():
            size = self._keys_per_request[kind]
            for start in range(0, len(alike), size):
                yield alike[start : start + size]

    def _refuse(self, item: Item, reason: str) -> None:
        self._batch.add(Page(item, None, Outcome.REFUSED, reason, fetched_at=time.time()))

    async def _split_or_fail(
        self,
        claim: Claim,
        block: OpenBlock,
        left: list[int],
        digests: Sequence[bytes],
        base: Mapping[bytes, BasePage] | None,
    ) -> None:
        """Split a block of which several workers died into smaller ones; when only one key is left, that key fails."""
        if len(left) > 1:
            logger.warning(
                "%s workers died of a block of shard %s: it is split",
                claim.deliveries - 1,
                claim.shard,
                extra={"event": "block_split"},
            )
            await retry_unavailable(
                lambda: self._streams.split(self._worker, claim, left, self._keys_per_request[""]), "worker"
            )
            return
        (index,) = left
        reason = f"{claim.deliveries - 1} workers died while they had this key"
        self._fail(Item(claim.block.keys[index], digests[index], block, claim.block.context(index)), reason, base)

    def _fail(self, item: Item, reason: str, base: Mapping[bytes, BasePage] | None) -> None:
        known = base and base.get(item.digest)
        self._batch.add(Page(item, None, Outcome.FAILED, reason, fetched_at=time.time(), base=known or None))
