"""The stage between a worker's lanes and its batch, in a job with transforms.

Lanes must not wait for it: a lane that held its keys until a batch of records is full would wait for itself. So they
give pages away here, and these count as the batch's own: when it is full with them, lanes take no more requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

from coordinator.stages.timing import Timing
from coordinator.tasks import run_until_first_ends
from crawler.job.job import Job
from crawler.model import Page
from crawler.transform.batching import Coming, PassingPage
from crawler.transform.step import BatchProcess, TransformStep, open_processes


class NextBatch(Protocol):
    """The batch behind the stage, see crawler.pipeline.batch."""

    @property
    def full(self) -> bool:
        """Whether lanes must wait."""
        ...

    def add(self, page: Page) -> None:
        """Add one page."""
        ...

    def hold(self, pages: int, size: int) -> None:
        """Count pages that will come, and their bytes."""
        ...

    def make_due(self) -> None:
        """Make the load due now."""
        ...


class TransformStage:
    """The transforms of a job in their order. `is_idle` says that no other request waits or is in flight.

    `timing_of` are the times of the stage of a name.
    """

    def __init__(
        self,
        job: Job,
        batch: NextBatch,
        is_idle: Callable[[], bool],
        processes: Sequence[Sequence[BatchProcess]],
        timing_of: Callable[[str], Timing] = lambda _: Timing(),
    ) -> None:
        self._batch = batch
        self._is_idle = is_idle
        self._draining = False
        self._pages = 0
        self._empty = asyncio.Event()
        self._tables = {[table.name for table in job.tables].index(one.table) for one in job.transform}
        steps: list[TransformStep] = []
        onward = self._end
        for number in reversed(range(len(job.transform))):
            timing = timing_of(f"transform {job.transform[number].python}")
            coming = partial(self._coming, number)
            steps.insert(0, TransformStep(job, number, processes[number], onward, coming, timing=timing))
            onward = steps[0].add
        self.steps: Sequence[TransformStep] = steps

    @classmethod
    def open(
        cls,
        job: Job,
        batch: NextBatch,
        is_idle: Callable[[], bool],
        files: Mapping[str, str],
        timing_of: Callable[[str], Timing] = lambda _: Timing(),
    ) -> TransformStage:
        """The stage of a job; `files` are the digests of the files of the user's functions."""
        processes = [open_processes(job, number, files) for number in range(len(job.transform))]
        return cls(job, batch, is_idle, processes, timing_of)

    def add(self, page: Page) -> None:
        """Take a page from a lane. One without records for a transform, or whose rows the base has, goes on at once."""
        if page.is_carried or not any(table in self._tables for table, _ in page.records):
            self._batch.add(page)
            return
        self._pages += 1
        self._hold()
        self.steps[0].add(PassingPage(page))
        self._hold()

    def make_due(self) -> None:
        """Make batches and the load due, because nothing that could join them is in flight."""
        for step in self.steps:
            step.wake()
        if not self._pages:
            self._batch.make_due()

    async def run(self) -> None:
        """Take pages through the transforms until cancelled. Raises UsageError for a function that cannot be used."""
        await run_until_first_ends(*(step.run() for step in self.steps))

    async def drain(self) -> None:
        """Return when all pages have gone on; `run` must go on meanwhile."""
        self._draining = True
        self.make_due()
        while self._pages:
            self._empty.clear()
            await self._empty.wait()

    async def close(self) -> None:
        """End the processes."""
        await asyncio.gather(*(step.close() for step in self.steps))

    def _coming(self, number: int) -> Coming:
        """Whether more records come to a step."""
        if any(step.rows_held for step in self.steps[:number]):
            return Coming.AT_ANY_TIME
        if self._draining or self._is_idle():
            return Coming.NOTHING
        return Coming.AFTER_A_COMMIT if self._batch.full else Coming.AT_ANY_TIME

    def _end(self, passing: PassingPage) -> None:
        self._pages -= 1
        self._batch.add(passing.page)
        self._hold()
        if not self._pages:
            self._empty.set()
        if self._draining or self._is_idle():
            self.make_due()

    def _hold(self) -> None:
        self._batch.hold(self._pages, sum(step.bytes_held for step in self.steps))
