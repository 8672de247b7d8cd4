"""Requests wait here, in a queue for each upstream, until a lane takes one that may leave.

A lane waits for no upstream, except up to 200 ms for a slot that is reserved already. So a slow, paused or broken
upstream holds up no other one.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque

from coordinator.limits.limiter import Limiter
from coordinator.model import Presence
from crawler.model import Request
from crawler.pipeline.fair_share import FairShare
from crawler.pipeline.upstream_queue import Hold, UpstreamQueue

# Requests that wait in a worker, at most. When there are more, some are deferred.
MAX_WAITING_REQUESTS = 10_000
OVERFLOW_DEFER_SECONDS = 30.0
# When the queue of a busy upstream is empty, more blocks are claimed to find keys of it. But it may have no keys left:
# so only until this many requests of other upstreams are at hand.
MAX_AT_HAND_WHEN_DRY = 2_000


class Scheduler:
    """The upstream queues of one worker, and the lanes that wait for a request.

    The queue decides whether a request may leave (see UpstreamQueue). The scheduler keeps the list of the queues that
    are ready, and wakes a lane for each one that it adds. `enough` is how many requests should be at hand: when there
    are fewer, the intake claims another block.
    """

    def __init__(self, limiter: Limiter, *, enough: int) -> None:
        self._limiter = limiter
        self._enough = enough
        self._fair_share = FairShare()
        self._queues: dict[str, UpstreamQueue] = {}
        self._ready: deque[UpstreamQueue] = deque()
        self._idle_lanes: deque[asyncio.Future[None]] = deque()
        self._parked = 0  # requests whose delay is not over
        self._waiting = 0
        self._at_hand = 0
        self._ran_dry = False  # the queue of a busy upstream became empty, and no new request has come since
        self._low = asyncio.Event()
        limiter.on_change = self.limits_changed

    # -- requests come and go

    def put(self, request: Request, delay: float = 0.0) -> None:
        """Add a request to its queue after `delay` seconds: in front if it was attempted before, else at the end."""
        if delay > 0:
            self._parked += 1
            asyncio.get_running_loop().call_later(delay, self._put_parked, request)
            return
        queue = self._queues.get(request.upstream) or self._add_queue(request.upstream)
        if request.attempts.total:
            queue.waiting.appendleft(request)
        else:
            queue.waiting.append(request)
            self._ran_dry = False
        self._waiting += 1
        self._recount(queue)
        if queue.pause_timer is None:
            self._make_ready(queue)

    async def next(self) -> Request:
        """Wait for the next request that may leave. The caller sends it at once, and then calls `finished`.

        May be cancelled at any time. Raises the error that ended a reservation of slots.
        """
        while True:
            picked = self._pick()
            if picked is None:
                await self._wait_until_woken()
                continue
            queue, request, slot = picked
            if slot is None:
                return request
            try:
                if await queue.pacer.wait_for(slot):
                    return request
            except asyncio.CancelledError:
                self._give_back(queue, request)
                raise
            self._give_back(queue, request)

    def finished(self, upstream: str) -> None:
        """Say that a request is no longer in flight; `upstream` is the one it had when `next` returned it."""
        queue = self._queues[upstream]
        queue.in_flight -= 1
        if queue.waiting:
            self._make_ready(queue)
        else:
            self._forget_if_over(queue)

    def overflow(self) -> list[tuple[Request, float]]:
        """When too many requests wait, remove the second half of the longest queue; returns what was removed.

        Each request comes with the seconds for which to defer it: the upstream's pause plus a random time.
        """
        if self._waiting + self._parked < MAX_WAITING_REQUESTS or not self._waiting:
            return []
        queue = max(self._queues.values(), key=lambda queue: len(queue.waiting))
        pause = max(0.0, self._limiter.resumes_at(queue.name) - self._limiter.clock())
        removed = [queue.waiting.pop() for _ in range((len(queue.waiting) + 1) // 2)]
        self._waiting -= len(removed)
        self._recount(queue)
        self._forget_if_over(queue)
        return [(request, pause + OVERFLOW_DEFER_SECONDS * (1.0 + random.random())) for request in removed]

    # -- what the intake and the worker ask

    @property
    def empty(self) -> bool:
        """Whether no request is waiting, parked or in flight."""
        return not (self._queues or self._parked)

    @property
    def at_hand(self) -> int:
        """Requests that could leave within a moment."""
        return self._at_hand

    @property
    def low(self) -> bool:
        """Whether another block is wanted: few requests are at hand, or a busy upstream has none."""
        return self._at_hand < self._enough or (self._ran_dry and self._at_hand < MAX_AT_HAND_WHEN_DRY)

    async def until_low(self) -> None:
        """Return when `low` holds."""
        while not self.low:
            self._low.clear()
            await self._low.wait()

    def would_only_wait(self, upstream: str) -> bool:
        """Whether one more request would only wait: the upstream is paused, has no room, or has enough queued here."""
        queue = self._queues.get(upstream)
        if queue is not None and len(queue.waiting) > queue.at_hand:
            return True
        return self._limiter.resumes_at(upstream) > self._limiter.clock() or self._room_at(upstream) == 0

    # -- limits change

    def resize(self, presence: Presence) -> None:
        """Take this worker's share of each upstream's concurrency from its last heartbeat."""
        self._fair_share = self._fair_share.after_heartbeat(presence.rank, presence.size, presence.turn)
        self.limits_changed()

    def limits_changed(self) -> None:
        """Look at every queue again, because a limit, a pause, a breaker or the fair share has changed."""
        for queue in list(self._queues.values()):
            queue.limits_changed()
            queue.pacer.limits_changed()
            if queue.pause_timer is not None and self._limiter.resumes_at(queue.name) <= self._limiter.clock():
                self._resume(queue)  # earlier than the timer: a probe has closed the breaker
            elif queue.waiting:
                self._make_ready(queue)

    async def close(self) -> None:
        """Reserve no more slots."""
        for queue in self._queues.values():
            queue.pacer.close()

    # -- the decision, and what follows

    def _pick(self) -> tuple[UpstreamQueue, Request, float | None] | None:
        """Take the first request, and its slot if it needs one, of the next ready queue that lets one leave.

        None when no queue is ready any more.
        """
        while self._ready:
            queue = self._ready.popleft()
            queue.ready = False
            picked = queue.pick()
            if not isinstance(picked, tuple):
                self._hold(queue, picked)
                continue
            request, slot = picked
            self._waiting -= 1
            self._recount(queue)
            if queue.waiting:
                self._make_ready(queue)
            elif queue.picked >= self._enough:
                self._ran_dry = True
                self._low.set()
            if self._ready:
                self._wake_lane()
            return queue, request, slot
        return None

    def _hold(self, queue: UpstreamQueue, hold: Hold) -> None:
        """Arrange that the queue becomes ready again when the hold is over.

        That needs no action for a full queue, which `finished` makes ready, and for an empty one, which `put` does.
        """
        if hold == "no slot":
            queue.pacer.reserve()
        elif hold == "paused" and queue.pause_timer is None:
            wait = self._limiter.resumes_at(queue.name) - self._limiter.clock()
            queue.pause_timer = asyncio.get_running_loop().call_later(wait, self._resume, queue)
            self._recount(queue)

    def _resume(self, queue: UpstreamQueue) -> None:
        if queue.pause_timer is not None:
            queue.pause_timer.cancel()
        queue.pause_timer = None
        self._recount(queue)
        self._make_ready_or_forget(queue)

    def _on_reserved(self, queue: UpstreamQueue, error: BaseException | None) -> None:
        """Make the queue ready or forget it, as the pacer is done; its error, if there is one, ends the idle lanes."""
        queue.limits_changed()
        if error is None:
            self._make_ready_or_forget(queue)
            return
        for lane in self._idle_lanes:
            if not lane.done():
                lane.set_exception(error)
        self._make_ready(queue)  # a lane that is busy now reserves again, and meets the error then

    def _give_back(self, queue: UpstreamQueue, request: Request) -> None:
        queue.give_back(request)
        self._waiting += 1
        self._recount(queue)
        self._make_ready(queue)

    def _put_parked(self, request: Request) -> None:
        self._parked -= 1
        self.put(request)

    # -- lanes that wait, queues that are ready

    async def _wait_until_woken(self) -> None:
        lane: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._idle_lanes.append(lane)
        try:
            await lane
        except asyncio.CancelledError:
            if lane.done() and not lane.cancelled():
                self._wake_lane()  # another lane takes what this one was woken for
            raise

    def _wake_lane(self) -> None:
        while self._idle_lanes:
            lane = self._idle_lanes.popleft()
            if not lane.done():
                lane.set_result(None)
                return

    def _make_ready(self, queue: UpstreamQueue) -> None:
        if not queue.ready:
            queue.ready = True
            self._ready.append(queue)
            self._wake_lane()

    def _make_ready_or_forget(self, queue: UpstreamQueue) -> None:
        if queue.waiting:
            self._make_ready(queue)
        else:
            self._forget_if_over(queue)

    def _add_queue(self, upstream: str) -> UpstreamQueue:
        queue = self._queues[upstream] = UpstreamQueue(
            upstream,
            self._limiter,
            room_at=self._room_at,
            free_lanes=self._idle_lanes.__len__,
            on_reserved=self._on_reserved,
        )
        return queue

    def _forget_if_over(self, queue: UpstreamQueue) -> None:
        """Drop a queue that is not needed, because a crawl over a million hosts must not keep them all."""
        if queue.forgettable:
            del self._queues[queue.name]

    def _room_at(self, upstream: str) -> int | None:
        """How many requests this worker may have in flight at the upstream; None without a limit."""
        limit = self._limiter.concurrency(upstream)
        return None if limit is None else self._fair_share.share(limit)

    def _recount(self, queue: UpstreamQueue) -> None:
        self._at_hand += queue.recount()
        if self._at_hand < self._enough:
            self._low.set()
