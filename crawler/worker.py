"""The file to read first. A worker claims keys, fetches them, parses the responses, stores the pages, and completes.

    claim      the intake takes blocks of keys from the queue in Redis and puts requests for them into the scheduler
    fetch      a lane takes a request that may leave, and makes one attempt (see lanes)
    parse      the page builder makes a page for each key of the response
    transform  in a job with transforms, the stage takes the pages' records through them; the batch collects pages
    store      the flush commits the batch in Postgres
    complete   the flush then tells Redis in one script that keys are done and blocks are finished

A kill loses no key, because store comes before complete. A block is pending in Redis until it is completed; when its
worker dies, another takes it over. Keys that were stored but not completed are then fetched again, and the primary key
in Postgres keeps the first page. In the other order Redis could call a key done without a page.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from coordinator.errors import EpochLost
from coordinator.failpoints import Failpoint, no_failpoint
from coordinator.limits.unreachable import encode_waits
from coordinator.model import FoundBatch, Presence, RunState, WorkerId
from coordinator.queue.found import FoundKeys
from coordinator.queue.streams import WORKER_LEASE_SECONDS, Streams
from coordinator.redis.retrying import WaitCauses, retry_unavailable
from coordinator.tasks import cancel_and_wait, run_until_first_ends, wait_until_first_ends
from crawler.fetch.attempt import Meter
from crawler.model import Page
from crawler.pipeline.batch import Batch, Load, completion_of, drop_seen
from crawler.pipeline.intake import Intake
from crawler.pipeline.lanes import Lanes
from crawler.pipeline.scheduler import Scheduler
from crawler.store.rows.base import BaseReader
from crawler.store.writer import Writer
from crawler.telemetry.stage_watch import StageWatch
from crawler.transform.stage import TransformStage

logger = logging.getLogger(__name__)
HEARTBEAT_SECONDS = WORKER_LEASE_SECONDS / 10


@dataclass(eq=False)
class Worker:
    """One lease on one run. A worker whose lease ends early works no more; a new worker may join in its place."""

    name: WorkerId
    streams: Streams
    intake: Intake
    scheduler: Scheduler
    lanes: Lanes
    batch: Batch
    writer: Writer
    meter: Meter
    stages: StageWatch
    transforms: TransformStage | None = None
    found_keys: FoundKeys | None = None
    base: BaseReader | None = None
    failpoint: Failpoint = no_failpoint

    def __post_init__(self) -> None:
        self.state = RunState.RUNNING
        self._completions = self._moves = 0
        self._waits = WaitCauses()
        self._drain, self._heartbeat_due = asyncio.Event(), asyncio.Event()

    async def run(self) -> None:
        """Work until the run is resolved or drained. Raises WorkersFull, LeaseLost, EpochLost, PostgresRefused."""
        self._apply(await retry_unavailable(lambda: self.streams.join(self.name), "worker"))
        logger.info("worker %s joined", self.name, extra={"event": "worker_joined"})
        await run_until_first_ends(self._heartbeat(), self._work(), self.stages.watch())
        await retry_unavailable(lambda: self.streams.release(self.name), "worker")
        logger.info("worker %s left", self.name, extra={"event": "worker_left"})

    def drain(self) -> None:
        """Claim nothing more, finish what is in flight, commit, leave."""
        self._drain.set()

    async def _work(self) -> None:
        """Claim, fetch and flush until drained; then finish what is in flight, and flush the rest."""
        flush = asyncio.create_task(self._flush(), name="flush")
        behind = [flush]
        if self.transforms is not None:
            behind.append(asyncio.create_task(self.transforms.run(), name="stage"))
        try:
            await run_until_first_ends(
                self.intake.feed(), self._drain.wait(), self.lanes.run(), wait_until_first_ends(*behind)
            )
            await run_until_first_ends(self.lanes.drain(), wait_until_first_ends(*behind))
            if self.transforms is not None:
                await run_until_first_ends(self.transforms.drain(), wait_until_first_ends(*behind))
            self.batch.close()
            await flush
        finally:
            await self.lanes.close()
            await cancel_and_wait(behind)

    async def _flush(self) -> None:
        """Commit each load in Postgres, then complete it in Redis, until the batch is closed and empty."""
        while (load := await self.batch.due()) is not None:
            timings = self.meter.timings
            found = await timings.flush("commit", self._store(load.pages))
            await timings.flush("complete", self._complete(load, found))
            timings.keys += len(load.pages)
            self.failpoint("completed")
            self.batch.flushed()
            if self.scheduler.empty:
                self._heartbeat_due.set()  # these may have been the last keys: ask for the run's state now

    async def _store(self, pages: list[Page]) -> Sequence[FoundBatch]:
        """Commit the pages; returns what is to be published of the keys that they have named."""
        if self.found_keys is not None:
            await retry_unavailable(partial(drop_seen, pages, self.found_keys, self.base), "worker")
        return await retry_unavailable(lambda: self.writer.write(pages), "worker", self._waits) if pages else ()

    async def _complete(self, load: Load, found: Sequence[FoundBatch] = ()) -> None:
        self.failpoint("committed")
        self._completions += 1
        if found and self.found_keys is not None:  # first, so that the run is not resolved before they are counted
            await retry_unavailable(partial(self.found_keys.publish, self.name, self._completions, found), "worker")
            self.failpoint("named")
        completion = completion_of(load, *self.meter.read())
        await retry_unavailable(lambda: self.streams.complete(self.name, self._completions, completion), "worker")

    async def _heartbeat(self) -> None:
        while True:
            seconds = HEARTBEAT_SECONDS / (2 if self.scheduler.empty else 1)
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._heartbeat_due.wait()
            self._heartbeat_due.clear()
            waits = encode_waits(self._waits.oldest, await self.lanes.waits())
            renew = partial(self.streams.renew, self.name, waits=waits, figures=self.stages.figures().encode())
            self._apply(await retry_unavailable(renew, "worker"))

    def _apply(self, presence: Presence) -> None:
        if presence.moves < self._moves:
            raise EpochLost(f"Redis was rolled back behind what worker {self.name} has seen")
        self._moves, self.state = presence.moves, presence.state
        self.scheduler.resize(presence)
        self.intake.fleet = presence.size
        if presence.state is not RunState.RUNNING or presence.surplus:
            self._drain.set()
