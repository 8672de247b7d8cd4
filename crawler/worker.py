"""ROLE worker, and the page to read first: claim -> fetch -> parse -> store -> complete.

A worker drains one shard after another, block by block. What it fetched waits in a batch; a batch is committed in
Postgres first and recorded in Redis after that: commit, then done, then ack. A crash between any two repeats work that
the primary key and the done set make harmless; it never loses any.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from coordinator.errors import EpochLost
from coordinator.failpoints import Failpoint, no_failpoint
from coordinator.model import Presence, RunState, WorkerId
from coordinator.queue.streams import WORKER_LEASE_SECONDS, Streams
from coordinator.redis.retrying import WaitCauses, retry_unavailable
from coordinator.tasks import cancel_and_wait, run_until_first_ends, wait_until_first_ends
from crawler.fetch.fetcher import Defer, Fetcher, Lane, Meter, RetryInPlace
from crawler.model import Request
from crawler.pipeline.batch import Batch, Load
from crawler.pipeline.completion import completion_of
from crawler.pipeline.intake import Intake
from crawler.pipeline.page_builder import PageBuilder
from crawler.pipeline.scheduler import Scheduler
from crawler.store.writer import Writer

logger = logging.getLogger(__name__)

HEARTBEAT = WORKER_LEASE_SECONDS / 10


class Worker:
    """One lease on one run. When the lease ends early the worker is over, and a new one may begin."""

    def __init__(
        self,
        name: WorkerId,
        *,
        streams: Streams,
        intake: Intake,
        scheduler: Scheduler,
        fetcher: Fetcher,
        pages: PageBuilder,
        batch: Batch,
        writer: Writer,
        meter: Meter,
        concurrency: int,
        failpoint: Failpoint = no_failpoint,
    ) -> None:
        self.name = name
        self._streams = streams
        self._intake = intake
        self._scheduler = scheduler
        self._fetcher = fetcher
        self._pages = pages
        self._batch = batch
        self._writer = writer
        self._meter = meter
        self._failpoint = failpoint
        self._lanes = [Lane() for _ in range(concurrency)]
        self.state = RunState.RUNNING
        self._sequence = 0
        self._moves = 0
        self._waits = WaitCauses()
        self._drain = asyncio.Event()
        self._beat = asyncio.Event()

    async def run(self) -> RunState:
        """Work until the run is resolved or the worker is drained. Raises LeaseLost, EpochLost, PostgresRefused."""
        self._take(await retry_unavailable(lambda: self._streams.join(self.name), "worker"))
        logger.info("worker %s joined", self.name)
        await run_until_first_ends(self._heartbeat(), self._work())
        await retry_unavailable(lambda: self._streams.release(self.name), "worker")
        logger.info("worker %s left", self.name)
        return self.state

    def drain(self) -> None:
        """Finish what is in flight, claim nothing more, commit, leave."""
        self._drain.set()

    async def _heartbeat(self) -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._beat.wait(), HEARTBEAT)
            self._beat.clear()
            self._take(
                await retry_unavailable(lambda: self._streams.renew(self.name, waits=self._waits.oldest), "worker")
            )

    def _take(self, presence: Presence) -> None:
        if presence.moves < self._moves:
            raise EpochLost(f"Redis was rolled back behind what worker {self.name} has seen")
        self._moves = presence.moves
        self.state = presence.state
        self._scheduler.resize(presence)
        if presence.state is not RunState.RUNNING:
            self._drain.set()

    async def _work(self) -> None:
        """Fetch and flush until drained; then let what is in flight end, and flush the rest."""
        flushing = asyncio.create_task(self._flush(), name="flush")
        try:
            await run_until_first_ends(self._fetch(), wait_until_first_ends(flushing))
            self._batch.close()
            await flushing
        finally:
            await cancel_and_wait([flushing])

    async def _fetch(self) -> None:
        lanes = {asyncio.create_task(self._serve(lane)): lane for lane in self._lanes}
        try:
            await run_until_first_ends(self._intake.feed(), self._drain.wait(), wait_until_first_ends(*lanes))
            await cancel_and_wait([task for task, lane in lanes.items() if not lane.sending])
            await asyncio.gather(*lanes, return_exceptions=True)
        finally:
            await cancel_and_wait(lanes)

    async def _serve(self, lane: Lane) -> None:
        """One lane: request after request, one at a time."""
        while not self._drain.is_set():
            if self._batch.full:
                await self._batch.room()
            request = await self._scheduler.next()
            upstream = request.upstream
            try:
                await self._handle(request, lane)
            finally:
                self._scheduler.arrived(upstream)
            if self._scheduler.empty:
                self._batch.hurry()

    async def _handle(self, request: Request, lane: Lane) -> None:
        result = await self._fetcher.fetch(request, lane)
        if isinstance(result, RetryInPlace):
            self._scheduler.put(request, result.delay)
        elif isinstance(result, Defer):
            self._batch.defer(request, result.delay)
        else:
            self._failpoint("fetched")
            pages = self._pages.made(request, result)
            if not isinstance(pages, list):
                lane.sending = True  # a drain waits for it
                pages = await pages
                lane.sending = False
            for page in pages:
                self._batch.add(page)

    async def _flush(self) -> None:
        """Commit load after load, in this order: Postgres, then done and ack in one script."""
        while (load := await self._batch.due()) is not None:
            if load.pages:
                await retry_unavailable(lambda: self._writer.write(load.pages), "worker", self._waits)
            self._failpoint("committed")
            await self._complete(load)
            self._failpoint("completed")
            self._batch.flushed()
            if self._scheduler.empty:
                self._beat.set()  # this may have been the last of the run

    async def _complete(self, load: Load) -> None:
        self._sequence += 1
        completion = completion_of(load, *self._meter.read())
        await retry_unavailable(lambda: self._streams.complete(self.name, self._sequence, completion), "worker")
