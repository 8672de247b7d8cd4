"""Requests wait here, in a queue for each upstream, until a lane takes one that may leave.

A lane waits for no upstream, except up to 200 ms for a slot that is reserved already. So a slow, paused or broken
upstream holds up no other one.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from coordinator.limits.limiter import Limiter
from coordinator.model import Presence
from crawler.model import Request
from crawler.pipeline.fair_share import Room
from crawler.pipeline.upstream_queue import Hold, ReadyQueues, UpstreamQueue

# Requests that wait in a worker, at most. When there are more, some are deferred.
MAX_WAITING_REQUESTS = 10_000
# More than a block brings. To put back thousands at once would hold Redis for so long that slots pass unused.
OVERFLOW_REQUESTS, OVERFLOW_DEFER_SECONDS = 1_000, 30.0
# When the queue of a busy upstream is empty, more blocks are claimed to find keys of it. But it may have no keys left:
# so only until this many requests of other upstreams are at hand.
MAX_AT_HAND_WHEN_DRY = 2_000


class Scheduler:
    """The upstream queues of one worker, and the lanes that wait for a request.

    The queue decides whether a request may leave (see UpstreamQueue), and ReadyQueues whose turn it is. `enough` is how
    many requests should be at hand: when there are fewer, the intake claims another block. `lanes` are as many, or a
    number of their own. `reached` are the upstreams that have responded, `slow` those whose last request was slow,
    `waiting` is how many requests wait in the `queues`.
    """

    def __init__(self, limiter: Limiter, *, enough: int, lanes: int | None = None) -> None:
        self._limiter = limiter
        self._enough, self._lanes = enough, lanes or enough
        self._room = Room(limiter)
        self.reached, self.slow = self._room.reached, self._room.slow
        self.queues: dict[str, UpstreamQueue] = {}
        self._alone: str | None = None  # the upstream of the only queue, until another one is added
        self.ready = ReadyQueues(self._lanes, self._recount)
        self._parked = 0  # requests whose delay is not over
        self.waiting = 0
        self._at_hand = 0
        self._ran_dry = False  # the queue of a busy upstream became empty, and no new request has come since
        self._low = asyncio.Event()
        limiter.on_change = self.limits_changed

    # -- requests come and go

    def put(self, request: Request, delay: float = 0.0) -> None:
        """Add a request to its queue after `delay` seconds: in front if it was sent before, else at the end."""
        if delay > 0:
            self.put_together((request,), delay)
            return
        queue = self.queues.get(request.upstream) or self._add_queue(request.upstream)
        if request.attempts.total or request.hops:
            queue.waiting.appendleft(request)
        else:
            queue.waiting.append(request)
            self._ran_dry = False
        self.waiting += 1
        self._recount(queue)
        if queue.pause_timer is None:
            self.ready.add(queue)

    def put_together(self, requests: Sequence[Request], delay: float) -> None:
        """Add requests to their queues after `delay` seconds, all at the same moment."""
        self._parked += len(requests)
        asyncio.get_running_loop().call_later(delay, self._put_parked, requests)

    def take_alike(self, request: Request, since: float) -> list[Request]:
        """Remove and return the requests that wait for the host of `request`, which was never reached.

        Those stay of which an attempt was counted after `since`.
        """
        queue = self.queues[request.upstream]
        alike = queue.take_alike(request, since)
        self.waiting -= len(alike)
        self._recount(queue)
        return alike

    async def next(self) -> Request:
        """Wait for the next request that may leave. The caller sends it at once, and then calls `finished`.

        May be cancelled at any time. Raises the error that ended a reservation of slots.
        """
        while True:
            picked = self._pick()
            if picked is None:
                await self.ready.idle_lanes.wait()
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

    def finished(self, upstream: str, reached: bool = True, slow: bool = False) -> None:
        """Say that a request to `upstream`, as it was in `next`, has ended, whether it was connected, and if slow."""
        queue = self.queues[upstream]
        queue.in_flight -= 1
        if queue.speed != "quick":
            self.ready.count(queue, -1)
            if upstream not in self.reached:
                self._room.add(upstream, reached=reached)
                queue.limits_changed()
            self.set_slow(upstream, slow)
        if queue.waiting:
            self.ready.add(queue)
        else:
            self._forget_if_over(queue)

    def set_slow(self, upstream: str, slow: bool = True) -> None:
        """Say whether the request to `upstream` that is in flight, or has just ended, is slow."""
        self._room.set_slow(upstream, slow)
        self.ready.set_speed(self.queues[upstream], self._room.speed(upstream))

    def overflow(self) -> list[tuple[Request, float]]:
        """When too many requests wait, remove the last ones of the longest queue, at most half of it; returns them.

        Each request comes with the seconds for which to defer it: the upstream's pause plus a random time.
        """
        if self.waiting + self._parked < MAX_WAITING_REQUESTS or not self.waiting:
            return []
        queue = max(self.queues.values(), key=lambda queue: len(queue.waiting))
        pause = max(0.0, self._limiter.resumes_at(queue.name) - self._limiter.clock())
        removed = [queue.waiting.pop() for _ in range(min(OVERFLOW_REQUESTS, (len(queue.waiting) + 1) // 2))]
        self.waiting -= len(removed)
        self._recount(queue)
        self._forget_if_over(queue)
        return [(request, pause + OVERFLOW_DEFER_SECONDS * (1.0 + random.random())) for request in removed]

    # -- what the intake and the worker ask

    @property
    def empty(self) -> bool:
        """Whether no request is waiting, parked or in flight."""
        return not (self.queues or self._parked)

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
        """Whether one more request would wait: the upstream is paused, has no room, or has enough queued here."""
        queue = self.queues.get(upstream)
        if queue is not None and len(queue.waiting) > queue.at_hand:
            return True
        return self._limiter.resumes_at(upstream) > self._limiter.clock() or self._room_at(upstream) == 0

    def held_back(self, upstream: str) -> tuple[int, float] | None:
        """Return what UpstreamQueue.held_back has, None without a queue."""
        queue = self.queues.get(upstream)
        return None if queue is None else queue.held_back

    # -- limits change

    def resize(self, presence: Presence) -> None:
        """Take this worker's share of each upstream's concurrency from its last heartbeat."""
        if self._room.resize(presence):
            self.limits_changed()

    def limits_changed(self) -> None:
        """Look at every queue again: a limit, a pause, a breaker or the fair share has changed."""
        for queue in list(self.queues.values()):
            queue.limits_changed()
            queue.pacer.limits_changed()
            if queue.pause_timer is not None and self._limiter.resumes_at(queue.name) <= self._limiter.clock():
                self._resume(queue)  # earlier than the timer: a probe has closed the breaker
            elif queue.waiting:
                self.ready.add(queue)

    async def close(self) -> None:
        """Reserve no more slots."""
        for queue in self.queues.values():
            queue.pacer.close()

    # -- the decision, and what follows

    def _pick(self) -> tuple[UpstreamQueue, Request, float | None] | None:
        """Take the first request, and its slot if it needs one, of the next ready queue that lets one leave.

        None when no queue is ready any more.
        """
        while (queue := self.ready.pop()) is not None:
            picked = queue.pick()
            if not isinstance(picked, tuple):
                self._hold(queue, picked)
                continue
            request, slot = picked
            if queue.speed != "quick":
                self.ready.count(queue, 1)
            self.waiting -= 1
            self._recount(queue)
            if queue.waiting:
                self.ready.add(queue)
            elif queue.picked >= self._enough:
                self._ran_dry = True
                self._low.set()
            if self.ready:
                self.ready.idle_lanes.wake_one()
            return queue, request, slot
        return None

    def _hold(self, queue: UpstreamQueue, hold: Hold) -> None:
        """Arrange that the queue becomes ready when the hold is over; `finished` does it for a full one, `put` for an
        empty one.
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
        self.ready.idle_lanes.fail_all(error)
        self.ready.add(queue)  # a lane that is busy now reserves again, and meets the error then

    def _give_back(self, queue: UpstreamQueue, request: Request) -> None:
        queue.give_back(request)
        self.ready.count(queue, -1)
        self.waiting += 1
        self._recount(queue)
        self.ready.add(queue)

    def _put_parked(self, requests: Sequence[Request]) -> None:
        self._parked -= len(requests)
        for request in requests:
            self.put(request)

    # -- queues that are ready

    def _make_ready_or_forget(self, queue: UpstreamQueue) -> None:
        if queue.waiting:
            self.ready.add(queue)
        else:
            self._forget_if_over(queue)

    def _add_queue(self, upstream: str) -> UpstreamQueue:
        self._alone = upstream if not self.queues else None
        for queue in self.queues.values() if len(self.queues) == 1 else ():
            queue.limits_changed()
        queue = self.queues[upstream] = UpstreamQueue(
            upstream,
            self._limiter,
            lanes=self._lanes,
            speed=self._room.speed(upstream),
            room_at=self._room_at,
            free_lanes=self.ready.idle_lanes.__len__,
            on_reserved=self._on_reserved,
        )
        return queue

    def _forget_if_over(self, queue: UpstreamQueue) -> None:
        """Drop a queue that is not needed, because a crawl over a million hosts must not keep them all."""
        if queue.forgettable:
            del self.queues[queue.name]

    def _room_at(self, upstream: str) -> int | None:
        return self._room.at(upstream, alone=upstream == self._alone)

    def _recount(self, queue: UpstreamQueue) -> None:
        self._at_hand += queue.recount()
        if self._at_hand < self._enough:
            self._low.set()
