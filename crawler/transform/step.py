"""One transform of a worker: records wait here for a batch, and batches for a process."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from time import monotonic
from typing import Protocol

from coordinator.errors import UsageError
from coordinator.model import Outcome
from coordinator.stages.timing import Timing
from coordinator.tasks import cancel_and_wait
from crawler.job.job import Job
from crawler.pool.pool import KILL_SLACK_SECONDS, Pool, TaskFailed
from crawler.pool.process import ChildUnusable
from crawler.pool.protocol import pickled, unpickled
from crawler.transform.batching import (
    BATCHES_AHEAD,
    MAX_BATCH_BYTES,
    Coming,
    PassingPage,
    Portion,
    Waiting,
    count_of_next,
    halves,
    rows_of_next,
    take_records,
)
from crawler.transform.handler import (
    BatchResult,
    BatchTask,
    TransformSetup,
    transform_handler,
    unreadable,
)


class BatchProcess(Protocol):
    """Runs batches in order; it raises what Pool.run does."""

    async def run(self, task: BatchTask) -> BatchResult:
        """What became of the keys."""
        ...

    async def close(self) -> None:
        """End it."""
        ...


def open_processes(job: Job, number: int, files: Mapping[str, str]) -> list[BatchProcess]:
    """The processes of one worker for one of the job's transforms; each starts with its first batch."""
    settings = job.transform[number]
    setup = TransformSetup(job, number, files)
    name, seconds, memory = f"transform {settings.python}", settings.seconds, settings.memory_bytes
    return [
        Pool(transform_handler, setup, name=name, seconds=seconds + KILL_SLACK_SECONDS, memory=memory)
        for _ in range(settings.processes)
    ]


class TransformStep:
    """Takes the records of one table out of pages, and puts what the transform makes of them in their place.

    Pages leave by `onward`, those that have nothing for this transform at once. `coming` says whether more records
    come. `clock` counts seconds. `timing` counts batches, and what each took.

    For who watches: `rows_waiting` are in no process yet, `rows_held` and `bytes_held` are here at all. `rows_done` and
    `busy_seconds` count up: what came back from processes, and the time that the function took in all of them.
    """

    def __init__(
        self,
        job: Job,
        number: int,
        processes: Sequence[BatchProcess],
        onward: Callable[[PassingPage], None],
        coming: Callable[[], Coming],
        *,
        timing: Timing | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._settings = job.transform[number]
        self._table = [table.name for table in job.tables].index(self._settings.table)
        self._processes = processes
        self._batches = [0] * len(processes)  # that each process has
        self._onward = onward
        self._coming = coming
        self._clock = clock
        self._waiting: deque[Portion] = deque()
        self._bytes_waiting = 0
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._error: BaseException | None = None
        self.name = self._settings.python
        self.rows_waiting = self.rows_held = self.bytes_held = self.rows_done = 0
        self.busy_seconds = 0.0
        self._timing = timing or Timing()

    @property
    def processes(self) -> int:
        """How many processes it has."""
        return len(self._processes)

    @property
    def busy(self) -> int:
        """How many of them have a batch."""
        return sum(map(bool, self._batches))

    def add(self, passing: PassingPage) -> None:
        """Take a page."""
        page, size = passing.page, self._settings.batch
        records = take_records(page, self._table)
        try:
            parts = [records[start : start + size] for start in range(0, len(records), size)]
            portions = [
                Portion(passing, number, len(part), pickled(part), self._clock()) for number, part in enumerate(parts)
            ]
        except Exception as error:  # noqa: BLE001 - pickling runs the user's code, which may raise anything
            page.fail(unreadable(error))
            portions = []
        if not portions:
            self._onward(passing)
            return
        passing.open, passing.made = len(portions), [()] * len(portions)
        is_first = not self._waiting
        self._waiting.extend(portions)
        self.rows_waiting += len(records)
        self.rows_held += len(records)
        content = sum(len(one.content) for one in portions)
        self._bytes_waiting += content
        self.bytes_held += content
        is_full = self.rows_waiting >= size or self._bytes_waiting >= MAX_BATCH_BYTES
        if is_first or is_full or self._coming() is not Coming.AT_ANY_TIME:
            self._changed.set()

    def wake(self) -> None:
        """Look again whether a batch is due."""
        self._changed.set()

    async def run(self) -> None:
        """Start the processes, and take batches through them until cancelled. Raises UsageError for a bad function."""
        try:
            await asyncio.gather(*(self._result(process, ()) for process in self._processes))
            while True:
                self._changed.clear()
                while count := self._count_of_next():
                    self._begin([self._waiting.popleft() for _ in range(count)])
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._seconds_to_age()):
                        await self._changed.wait()
                if self._error is not None:
                    raise self._error
        finally:
            await cancel_and_wait(list(self._tasks))

    async def close(self) -> None:
        """End the processes."""
        await asyncio.gather(*(process.close() for process in self._processes))

    def _count_of_next(self) -> int:
        """How many portions are the next batch, 0 while none is due, or all processes have enough of them."""
        if not self._waiting or sum(self._batches) >= BATCHES_AHEAD * self.processes:
            return 0
        waiting = Waiting(
            rows=self.rows_waiting,
            size=self._bytes_waiting,
            held=self.rows_held,
            is_idle=self.busy < self.processes,
            coming=self._coming(),
            is_aged=self._clock() - self._waiting[0].at >= self._settings.age,
        )
        rows = rows_of_next(waiting, self._settings.batch, self.processes)
        return count_of_next(self._waiting, rows) if rows else 0

    def _seconds_to_age(self) -> float | None:
        """Until the oldest records are aged; None while none wait, or no process would take them."""
        if not self._waiting or self.busy == self.processes:
            return None
        return max(0.0, self._waiting[0].at + self._settings.age - self._clock())

    def _begin(self, portions: Sequence[Portion]) -> None:
        """Give a batch to the process that has the fewest."""
        number = min(range(self.processes), key=self._batches.__getitem__)
        self._batches[number] += 1
        self.rows_waiting -= sum(one.rows for one in portions)
        self._bytes_waiting -= sum(len(one.content) for one in portions)
        task = asyncio.create_task(self._transform(self._processes[number], portions), name=self.name)
        self._tasks.add(task)
        task.add_done_callback(partial(self._ended, number))

    def _ended(self, number: int, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._batches[number] -= 1
        lost = RuntimeError("a batch was cancelled from within")  # unless this step is cancelled, and reads no error
        if (error := lost if task.cancelled() else task.exception()) is not None:
            self._error = error
        self._changed.set()

    async def _transform(self, process: BatchProcess, portions: Sequence[Portion]) -> None:
        """Take a batch through a process; one that fails in halves, until the key is alone that fails."""
        result = await self._result(process, portions)
        self.busy_seconds += result.seconds
        self._timing.add(result.seconds)
        if result.error is not None and len(portions) > 1:
            for half in halves(portions):
                await self._transform(process, half)
            return
        for portion, made in zip(portions, result.made or (result.error or "",), strict=True):
            self._end(portion, made)
            await asyncio.sleep(0)  # reading the records of them all would hold up the loop

    async def _result(self, process: BatchProcess, portions: Sequence[Portion]) -> BatchResult:
        task = BatchTask([one.key for one in portions], [one.content for one in portions])
        try:
            return await process.run(task)
        except TaskFailed as error:
            return BatchResult((), f"transform: {error}", 0.0)
        except ChildUnusable as error:
            raise UsageError(str(error)) from error

    def _end(self, portion: Portion, made: bytes | str) -> None:
        """Give a page what became of a part of its records; it leaves with the last one."""
        self.rows_held -= portion.rows
        self.bytes_held -= len(portion.content)
        self.rows_done += portion.rows
        passing, page = portion.passing, portion.passing.page
        passing.open -= 1
        if isinstance(made, str):
            page.fail(page.reason if page.outcome is Outcome.FAILED and page.reason else made)
        else:
            try:
                passing.made[portion.number] = unpickled(made)
            except Exception as error:  # noqa: BLE001 - unpickling runs the user's code, which may raise anything
                page.fail(unreadable(error))
        if not passing.open:
            if page.outcome is not Outcome.FAILED:
                page.records.extend(chain.from_iterable(passing.made))
            self._onward(passing)
