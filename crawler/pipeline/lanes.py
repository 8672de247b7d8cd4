"""The lanes of a worker: each takes one request after the other, attempts it, and puts it where it goes then."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

from coordinator.errors import FetchError
from coordinator.failpoints import Failpoint, no_failpoint
from coordinator.limits.unreachable import UnreachableUpstream, UnreachableUpstreams
from coordinator.stages.constraint import Constraint
from coordinator.stages.timing import Timing
from coordinator.tasks import cancel_and_wait
from crawler.fetch.attempt import Defer, FetchResult, Lane, RetryInPlace
from crawler.fetch.faults import fault_words
from crawler.fetch.fetcher import Fetcher
from crawler.fetch.memory import BodyMemory
from crawler.model import Request
from crawler.pipeline.batch import Batch
from crawler.pipeline.fair_share import SLOW_SECONDS, most_lent
from crawler.pipeline.page_builder import PageBuilder
from crawler.pipeline.scheduler import Scheduler
from crawler.telemetry.stage_watch import Look
from crawler.transform.stage import TransformStage

# How often slow requests are looked for while something is in flight.
LOOK_SECONDS = 0.05
# To see which queue is the longest, so many of them are looked at.
MAX_LOOKED_AT = 50


class Lanes:
    """As many lanes as requests may be in flight in this worker, and some more while slow requests hold these.

    A request that is slow lends its lane when one to another upstream could leave and no lane is free: another lane
    begins in its place, and it ends with the request. Pages go through the `transforms` before the batch.
    `clock` is the fetcher's. `wait` counts how long requests wait before their first attempt.
    """

    def __init__(
        self,
        concurrency: int,
        *,
        scheduler: Scheduler,
        fetcher: Fetcher,
        page_builder: PageBuilder,
        batch: Batch,
        unreachable: UnreachableUpstreams,
        transforms: TransformStage | None = None,
        memory: BodyMemory | None = None,
        wait: Timing | None = None,
        failpoint: Failpoint = no_failpoint,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._memory = memory or BodyMemory()
        self._wait = wait or Timing()
        self._concurrency = concurrency
        self._scheduler = scheduler
        self._fetcher = fetcher
        self._page_builder = page_builder
        self._batch = batch
        self._next = batch if transforms is None else transforms
        self._transforms = () if transforms is None else transforms.steps
        self._unreachable = unreachable
        self._faults: dict[str, str] = {}  # the last one of each upstream that responded before
        self._failpoint = failpoint
        self._tasks: dict[asyncio.Task[None], Lane] = {}
        self._failed: asyncio.Future[None] | None = None
        self._draining = False
        self._some_in_flight = asyncio.Event()

    async def run(self) -> None:
        """Serve until cancelled, or until a lane fails; raises what it raised."""
        self._failed = asyncio.get_running_loop().create_future()
        for _ in range(self._concurrency):
            self._begin()
        lending = asyncio.create_task(self._lend_slow_lanes())
        try:
            await self._failed
        finally:
            lending.cancel()

    async def drain(self) -> None:
        """Take no more requests, and return when those that an upstream may be working on have ended."""
        self._draining = True
        await cancel_and_wait([task for task, lane in self._tasks.items() if not lane.must_finish])
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def waits(self) -> list[UnreachableUpstream]:
        """Return the upstreams for which keys wait: dead ones, and those whose breaker opened after they responded."""
        for upstream, fault in list(self._faults.items()):
            if (held_back := self._scheduler.held_back(upstream)) is None:
                del self._faults[upstream]
                await self._unreachable.remove(upstream)
            else:
                await self._unreachable.put(upstream, fault, *held_back)
        return self._unreachable.listed()

    def look(self, feeding: str) -> Look:
        """What the worker does now; `feeding` is what its intake waits for."""
        parsing, parsers = self._page_builder.parsing
        return Look(
            fetching=sum(lane.upstream is not None for lane in self._tasks.values()),
            lanes=self._concurrency,
            requests=self._scheduler.waiting,
            held=self._longest_held(),
            parsing=parsing,
            parsers=parsers,
            pages=len(self._batch),
            batch_full=self._batch.full,
            memory_short=self._memory.short,
            feeding=feeding,
            transforms=self._transforms,
        )

    def _longest_held(self) -> tuple[Constraint, str] | None:
        """Why no request of the longest queue may leave, as far as that is the upstream's limit, and its name."""
        queues = list(self._scheduler.queues.values())
        if len(queues) > MAX_LOOKED_AT:
            queues = random.sample(queues, MAX_LOOKED_AT)
        queue = max(queues, key=lambda queue: len(queue.waiting), default=None)
        if queue is None or not queue.waiting:
            return None
        if queue.pause_timer is not None:  # while the run is paused, its upstreams have not asked for that
            return None if queue.run_is_paused else (Constraint.PAUSE, queue.name)
        # Those that wait for their slot are in flight too, in the words of the queue.
        sent = sum(lane.upstream == queue.name for lane in self._tasks.values())
        if sent < queue.room and queue.needs_slots:
            return Constraint.RATE, queue.name
        return (Constraint.CONCURRENCY, queue.name) if queue.in_flight >= queue.room else None

    async def close(self) -> None:
        """Cancel what is in flight."""
        await cancel_and_wait(self._tasks)

    async def serve(self, lane: Lane) -> None:
        """Take and attempt one request after the other until drained, or until another lane works in its place."""
        scheduler = self._scheduler
        result: FetchResult | RetryInPlace | Defer | None = None
        while not (self._draining or lane.lent):
            if self._batch.full:
                await self._batch.until_room()
            if self._memory.short:
                await self._memory.until_free()
            request = await scheduler.next()
            upstream = lane.upstream = request.upstream  # a redirect may change the request's
            self._some_in_flight.set()
            is_new = upstream not in scheduler.reached
            try:
                result = await self._fetcher.fetch(request, lane)
                lane.upstream = None
                if request.waits_since:
                    self._wait.add(max(0.0, lane.began_at - request.waits_since))
                    request.waits_since = 0.0
                if lane.fault is not None:
                    await self._count_fault(request, result, lane.fault, lane)
                else:
                    await self._place(request, result, lane)
                    if is_new:
                        await self._unreachable.remove(upstream)
            finally:
                scheduler.finished(upstream, lane.fault is None or lane.fault.sent, lane.slow)
                lane.upstream, lane.slow = None, False
                result = None  # it has the body, and this lane may wait long for the next request
                if lane.release is not None:
                    lane.release()
                    lane.release = None
            if scheduler.empty:
                self._next.make_due()

    async def _place(self, request: Request, result: FetchResult | RetryInPlace | Defer, lane: Lane) -> None:
        if isinstance(result, FetchResult):
            self._failpoint("fetched")
            lane.must_finish = True  # a drain waits for the parser too
            if lane.release is not None:
                await self._batch.until_room()  # its pages may be larger still, and the batch bounds their memory
            for page in await self._page_builder.build(request, result):
                self._next.add(page)
            lane.must_finish = False
        elif isinstance(result, RetryInPlace):
            self._scheduler.put(request, result.delay)
        else:
            self._batch.defer(request, result.delay)

    async def _count_fault(
        self, request: Request, result: FetchResult | RetryInPlace | Defer, fault: FetchError, lane: Lane
    ) -> None:
        """Put a request that brought no response where it goes. If its host was never reached, all that wait for the
        host have made this attempt too, and make the next one together.
        """
        upstream = request.upstream
        is_dead = not fault.sent and upstream not in self._scheduler.reached
        results = [(request, result)]
        delay = None if isinstance(result, FetchResult) else result.delay
        for other in self._scheduler.take_alike(request, lane.began_at) if is_dead else ():
            counted = self._fetcher.count_fault(other, fault, delay)
            results.append((other, counted))
            if delay is None and not isinstance(counted, FetchResult):
                delay = counted.delay
        in_place: list[Request] = []
        keys = 0
        for one, counted in results:
            if isinstance(counted, FetchResult):
                await self._place(one, counted, lane)
                continue
            keys += len(one.items)
            if isinstance(counted, Defer) or isinstance(result, Defer):
                self._batch.defer(one, counted.delay)
            else:
                in_place.append(one)
        if in_place:
            self._scheduler.put_together(in_place, delay or 0.0)
        if is_dead:
            self._fetcher.keep_fault(request, fault, lane.began_at, delay)
            await self._unreachable.add(upstream, fault_words(fault), keys, delay or 0.0)
        else:
            self._faults[upstream] = fault_words(fault)

    async def _lend_slow_lanes(self) -> None:
        while True:
            if not any(lane.upstream is not None for lane in self._tasks.values()):
                self._some_in_flight.clear()
                await self._some_in_flight.wait()
            await asyncio.sleep(LOOK_SECONDS)
            slow_since = self._clock() - SLOW_SECONDS
            for lane in self._tasks.values():
                if lane.upstream is not None and not lane.slow and lane.began_at <= slow_since:
                    lane.slow = True
                    self._scheduler.set_slow(lane.upstream)
            most = self._concurrency + most_lent(self._concurrency) - len(self._tasks)
            if wanted := min(self._scheduler.ready.lanes_wanted, most):
                slow = self._scheduler.slow  # a request that must be expected to be slow lends its lane at once
                lanes = [
                    lane for lane in self._tasks.values() if not lane.lent and (lane.slow or lane.upstream in slow)
                ]
                for lane in lanes[:wanted]:
                    lane.lent = True
                    self._scheduler.ready.lent += 1
                    self._begin()

    def _begin(self) -> None:
        lane = Lane()
        task = asyncio.create_task(self.serve(lane))
        self._tasks[task] = lane
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._scheduler.ready.lent -= self._tasks.pop(task).lent
        # One that was cancelled by nobody here has lost its request: what it called has raised CancelledError.
        lost = RuntimeError("a lane was cancelled from within") if not self._draining else None
        if (error := lost if task.cancelled() else task.exception()) is None:
            return
        if self._failed is not None and not self._failed.done():
            self._failed.set_exception(error)
