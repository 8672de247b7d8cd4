"""Requests wait here, in a line for each upstream; lanes take those whose upstream has room, a slot and no pause.

A lane is never held by an upstream that cannot be asked now: at most for the 200 ms that slots are booked ahead. So a
slow, paused or broken upstream takes nothing from the others.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Iterator
from functools import partial

from coordinator.limits.limiter import Limiter
from coordinator.model import Presence
from crawler.model import Request
from crawler.pipeline.fair_share import FairShare
from crawler.pipeline.pacer import Pacer

# Requests that wait in a worker, at most. What an upstream cannot take before that goes to the delayed set.
MOST_WAITING = 10_000
SPILLED_FOR = 30.0
# So many seconds of an upstream's rate count as work at hand; the rest of its line keeps no lane busy.
SECONDS_AT_HAND = 2.0
# With so many at hand nothing more is claimed, also when the line of a busy upstream has run dry: it may be over.
ENOUGH_WHEN_DRY = 2_000


class UpstreamQueue:
    """The requests of one upstream, in order, and the slots booked for them."""

    __slots__ = (
        *("at_hand", "inside", "listed", "most_at_hand", "name", "paused", "room", "pacer", "surveyed", "taken"),
        "waiting",
    )

    def __init__(self, name: str, scheduler: Scheduler, limiter: Limiter) -> None:
        self.name = name
        self.waiting: deque[Request] = deque()
        self.pacer = Pacer(
            limiter, name, wanted=partial(scheduler.wanted, self), reserved=partial(scheduler.reserved, self)
        )
        self.inside = 0
        self.taken = 0
        self.at_hand = 0
        self.surveyed = False
        self.room: int | None = None
        self.most_at_hand: int | None = None
        self.listed = False
        self.paused: asyncio.TimerHandle | None = None


class Scheduler:
    """All lines of one worker. `listed` lines are worth a look; an event that may let a request leave lists its line.

    `enough` is how many requests should be at hand: below it, the intake claims another block.
    """

    def __init__(self, limiter: Limiter, *, enough: int) -> None:
        self._limiter = limiter
        self._enough = enough
        self._fair_share = FairShare()
        self._queues: dict[str, UpstreamQueue] = {}
        self._listed: deque[UpstreamQueue] = deque()
        self._lanes: deque[asyncio.Future[None]] = deque()  # those that found nothing
        self._parked = 0
        self._waiting = 0
        self._at_hand = 0
        self._dry = False  # since the last block a busy upstream's line came to its end
        self._low = asyncio.Event()
        limiter.on_change = self.look

    def put(self, request: Request, delay: float = 0.0) -> None:
        """Take a request; with a delay it comes first in its line after so many seconds."""
        if delay > 0:
            self._parked += 1
            asyncio.get_running_loop().call_later(delay, self._return, request)
            return
        queue = self._queue_of(request.upstream)
        self._dry = self._dry and bool(request.attempts.total)
        # One that was tried before has waited already.
        (queue.waiting.appendleft if request.attempts.total else queue.waiting.append)(request)
        self._waiting += 1
        self._count(queue)
        if not queue.paused:
            self._list(queue)

    async def next(self) -> Request:
        """The next request that may leave, now; tell `arrived` when it is back. Cancel it at any time."""
        while True:
            taken = self._take()
            if taken is None:
                await self._idle()
                continue
            queue, request, slot = taken
            try:
                if slot is None or await queue.pacer.wait_for(slot):
                    return request
            except asyncio.CancelledError:
                self._give_back(queue, request)
                raise
            self._give_back(queue, request)

    def arrived(self, upstream: str) -> None:
        """A request to this upstream is over."""
        queue = self._queues[upstream]
        queue.inside -= 1
        if queue.waiting:
            self._list(queue)
        else:
            self._forget(queue)

    def resize(self, presence: Presence) -> None:
        """Take this worker's share of each upstream's concurrency."""
        self._fair_share = self._fair_share.moved(presence.rank, presence.size, presence.turn)
        self.look()

    def look(self) -> None:
        """Something changed that may let requests leave: look at every line."""
        for queue in list(self._queues.values()):
            queue.surveyed = False
            queue.pacer.hurry()
            if queue.paused and self._limiter.resumes_at(queue.name) <= self._limiter.clock():
                self._resumed(queue)  # earlier than was said: a probe closed the breaker
            elif queue.waiting:
                self._list(queue)

    def shut(self, upstream: str) -> bool:
        """Whether one more request to this upstream would only wait: it pauses, we have no share, or enough in line."""
        queue = self._queues.get(upstream)
        if queue is not None and len(queue.waiting) > queue.at_hand:
            return True
        return self._limiter.resumes_at(upstream) > self._limiter.clock() or self._share(upstream) == 0

    @property
    def empty(self) -> bool:
        """Whether nothing waits here, and nothing that left is under way."""
        return not (self._queues or self._parked)

    @property
    def at_hand(self) -> int:
        """Requests that could leave within a moment."""
        return self._at_hand

    @property
    def low(self) -> bool:
        """Whether another block is wanted: too little is at hand, or what there is leaves a busy upstream idle."""
        return self._at_hand < self._enough or (self._dry and self._at_hand < ENOUGH_WHEN_DRY)

    async def until_low(self) -> None:
        """Return when `low` holds."""
        while not self.low:
            self._low.clear()
            await self._low.wait()

    def spilled(self) -> Iterator[tuple[Request, float]]:
        """When too many wait: half of the longest line from its end, and for how many seconds each is put off."""
        if self._waiting + self._parked < MOST_WAITING or not self._waiting:
            return
        queue = max(self._queues.values(), key=lambda queue: len(queue.waiting))
        pause = max(0.0, self._limiter.resumes_at(queue.name) - self._limiter.clock())
        for _ in range(-(-len(queue.waiting) // 2)):
            self._waiting -= 1
            yield queue.waiting.pop(), pause + SPILLED_FOR * (1.0 + random.random())
        self._count(queue)
        self._forget(queue)

    # -- taking

    def _take(self) -> tuple[UpstreamQueue, Request, float | None] | None:
        """A request and its slot, from the listed lines in turn; lines where nothing may leave are unlisted."""
        while self._listed:
            queue = self._listed.popleft()
            queue.listed = False
            if not queue.waiting or not self._open(queue):
                continue
            slot = None
            if self._limiter.needs_slots(queue.name) and (slot := queue.pacer.take()) is None:
                queue.pacer.reserve()
                continue
            request = queue.waiting.popleft()
            queue.inside += 1
            self._waiting -= 1
            self._count(queue)
            queue.taken += 1
            if queue.waiting:
                self._list(queue)
            elif queue.taken >= self._enough:
                self._dry = True
                self._low.set()
            if self._listed:
                self._wake()
            return queue, request, slot
        return None

    def _open(self, queue: UpstreamQueue) -> bool:
        """Whether the upstream is neither paused nor full; what will let requests leave again lists the line."""
        if (wait := self._limiter.resumes_at(queue.name) - self._limiter.clock()) > 0:
            if not queue.paused:
                queue.paused = asyncio.get_running_loop().call_later(wait, self._resumed, queue)
                self._count(queue)
            return False
        self._survey(queue)
        return queue.room is None or queue.inside < queue.room

    def _resumed(self, queue: UpstreamQueue) -> None:
        if queue.paused:
            queue.paused.cancel()
        queue.paused = None
        self._count(queue)
        if queue.waiting:
            self._list(queue)
        else:
            self._forget(queue)

    def _give_back(self, queue: UpstreamQueue, request: Request) -> None:
        queue.inside -= 1
        queue.waiting.appendleft(request)
        self._waiting += 1
        self._count(queue)
        self._list(queue)

    def _return(self, request: Request) -> None:
        self._parked -= 1
        self.put(request)

    # -- slots

    def wanted(self, queue: UpstreamQueue) -> int:
        """How many slots this line could use now: for the lanes that are free, one at least."""
        if not queue.waiting:
            return 0
        room = self._share(queue.name)
        free = len(self._lanes) if room is None else min(len(self._lanes), room - queue.inside)
        return max(1, min(free, len(queue.waiting)))

    def reserved(self, queue: UpstreamQueue, error: BaseException | None) -> None:
        """The line has slots, or nothing that waits for one; an error reaches the lanes."""
        queue.surveyed = False
        if error is not None:
            self._fail(error)
            self._list(queue)  # a lane that is busy now tries again, and learns of it then
        elif queue.waiting:
            self._list(queue)
        else:
            self._forget(queue)

    def _fail(self, error: BaseException) -> None:
        for lane in self._lanes:
            if not lane.done():
                lane.set_exception(error)

    async def close(self) -> None:
        """Stop booking."""
        for queue in self._queues.values():
            queue.pacer.close()

    # -- lanes that wait, lines that are listed

    async def _idle(self) -> None:
        lane: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lanes.append(lane)
        try:
            await lane
        except asyncio.CancelledError:
            if lane.done() and not lane.cancelled():
                self._wake()  # another lane takes what this one was woken for
            raise

    def _wake(self) -> None:
        while self._lanes:
            lane = self._lanes.popleft()
            if not lane.done():
                lane.set_result(None)
                return

    def _list(self, queue: UpstreamQueue) -> None:
        if not queue.listed:
            queue.listed = True
            self._listed.append(queue)
            self._wake()

    def _queue_of(self, upstream: str) -> UpstreamQueue:
        queue = self._queues.get(upstream)
        if queue is None:
            queue = self._queues[upstream] = UpstreamQueue(upstream, self, self._limiter)
        return queue

    def _forget(self, queue: UpstreamQueue) -> None:
        """A crawl over a million hosts must not remember them all."""
        if not (queue.waiting or queue.inside or queue.pacer.reserving or queue.paused):
            del self._queues[queue.name]

    def _share(self, upstream: str) -> int | None:
        limit = self._limiter.concurrency(upstream)
        return None if limit is None else self._fair_share.share(limit)

    def _survey(self, queue: UpstreamQueue) -> None:
        """What the limiter says of the line's upstream, asked again only after it may have changed."""
        if queue.surveyed:
            return
        queue.surveyed = True
        queue.room = self._share(queue.name)
        bounds = [] if queue.room is None else [4 * queue.room]
        if (rate := self._limiter.rate(queue.name)) is not None:
            bounds.append(max(1, int(rate * SECONDS_AT_HAND)))
        queue.most_at_hand = min(bounds, default=None)

    def _count(self, queue: UpstreamQueue) -> None:
        """Keep count of what is at hand: of each line only what its upstream takes within a moment."""
        at_hand = len(queue.waiting)
        if queue.paused:
            at_hand = 0
        elif at_hand:
            self._survey(queue)
            if queue.most_at_hand is not None and at_hand > queue.most_at_hand:
                at_hand = queue.most_at_hand
        self._at_hand += at_hand - queue.at_hand
        queue.at_hand = at_hand
        if self._at_hand < self._enough:
            self._low.set()
