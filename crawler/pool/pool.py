"""Runs tasks in a child process, in order, and finds the task that ends the child."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Generic, TypeVar

from coordinator.errors import ShardcrawlError
from coordinator.tasks import cancel_and_wait
from crawler.pool.process import EXIT_SECONDS, ChildProcess, ChildUnusable
from crawler.pool.protocol import ChildSetup
from crawler.telemetry import logs

logger = logging.getLogger(__name__)

Setup = TypeVar("Setup")
Task = TypeVar("Task")
TaskResult = TypeVar("TaskResult")

# Tasks that are sent and have no result yet, at most. Several, so that the child need not wait for the event loop.
TASKS_AHEAD = 32
# Nothing is received until the child is nearly done with half of what was sent; then that half is received at once.
# Waking for each result, and then letting one lane send one request, would take three times as much of the core that
# the child could use. The rest before it is this share of the time that the half is expected to take. If it were all of
# it, the time that a task really takes could not be measured.
REST_SHARE = 0.8
LONGEST_REST_SECONDS = 0.1
# A child that is not ready after so long is killed.
MAX_START_SECONDS = 150.0
# A task's deadline may be wrong by this share: moving it for each result would cost more than receiving the result.
DEADLINE_TOLERANCE = 0.02
START_ATTEMPTS = 3
# A function that is out of time is interrupted in its process. One that cannot be, because it is in C, is killed then.
KILL_SLACK_SECONDS = 1.0
MAX_DEATHS_PER_TASK = 2


class TaskFailed(ShardcrawlError):
    """Each child that worked on the task died, or one had no result in time."""


class _Call(Generic[Task, TaskResult]):
    """One task on its way through the child."""

    __slots__ = ("deaths", "result", "task")

    def __init__(self, task: Task) -> None:
        self.task = task
        self.result: asyncio.Future[TaskResult] = asyncio.get_running_loop().create_future()
        self.deaths = 0


class Pool(Generic[Setup, Task, TaskResult]):
    """Runs tasks in one child process, in order. A task that the child dies of is run once more, alone.

    A child that works longer than `seconds` on one task is killed; that task is not run again.

    `handler` is a function at the top of a module. In the child it is called once with `setup`, and returns the
    function from a task to its result. It may raise ShardcrawlError when it is called; what it returns must not raise,
    except MemoryError, which ends the child. `memory` is that of ChildSetup. `name` is for log lines.
    """

    def __init__(
        self,
        handler: Callable[[Setup], Callable[[Task], TaskResult]],
        setup: Setup,
        *,
        name: str,
        seconds: float,
        memory: int | None = None,
    ) -> None:
        self._handler = f"{handler.__module__}:{handler.__qualname__}"
        self._setup = setup
        self._name = name
        self._seconds = seconds
        self._memory = memory
        self._waiting: deque[_Call[Task, TaskResult]] = deque()
        self._sent: deque[_Call[Task, TaskResult]] = deque()
        self._serving: asyncio.Task[None] | None = None
        self._child: ChildProcess | None = None
        self._deadline: asyncio.Timeout | None = None
        self._deaths = 0
        self._closing = False

    def __len__(self) -> int:
        """How many tasks have no result yet."""
        return len(self._waiting) + len(self._sent)

    async def run(self, task: Task) -> TaskResult:
        """The task's result. Raises TaskFailed when two children died of it or it took too long, ChildUnusable."""
        call: _Call[Task, TaskResult] = _Call(task)
        self._waiting.append(call)
        if self._serving is None or self._serving.done():
            self._serving = asyncio.create_task(self._serve(), name=self._name)
        self._feed()
        return await call.result

    async def close(self) -> None:
        """End the child and wait for it. Tasks without a result are cancelled."""
        self._closing = True
        if self._serving is not None:
            if self._child is not None:
                self._child.abort()
                await asyncio.wait([self._serving], timeout=2 * EXIT_SECONDS)
            await cancel_and_wait([self._serving])

    async def _serve(self) -> None:
        """Run one child after another, as long as there are tasks."""
        try:
            while self._waiting:
                ending, hung = await self._serve_with(await self._start())
                if self._closing:
                    return
                self._deaths += 1
                # One warning is enough: the reasons of failed tasks say the rest.
                level = logging.WARNING if self._deaths == 1 else logging.DEBUG
                logger.log(
                    level, "the %s's process %s; starts again", self._name, ending, extra={"event": "process_restarted"}
                )
                self._blame_first(ending, hung=hung)
        except ChildUnusable as error:
            self._give_up(error)
        except Exception as error:
            self._give_up(error)
            raise
        finally:
            self._give_up()

    def _give_up(self, error: Exception | None = None) -> None:
        """End all calls with the error, or cancel them without one, because no child will work on them."""
        for call in (*self._sent, *self._waiting):
            if call.result.done():
                continue
            if error is None:
                call.result.cancel()
            else:
                call.result.set_exception(error)
        self._sent.clear()
        self._waiting.clear()

    async def _serve_with(self, child: ChildProcess) -> tuple[str, bool]:
        """Feed one child until it ends; returns how it ended, and whether it was killed for a task without an end."""
        self._child = child
        hung = False
        try:
            async with asyncio.timeout(None) as self._deadline:
                self._feed()
                seconds_per_task = 0.0
                while True:
                    half = max(1, len(self._sent) // 2)
                    began = monotonic()
                    if half > 1:
                        child.pause_receiving()
                        await asyncio.sleep(min(LONGEST_REST_SECONDS, REST_SHARE * half * seconds_per_task))
                        child.resume_receiving()
                    for _ in range(half):
                        result = await child.receive()
                        call = self._sent.popleft()
                        if not call.result.done():  # its caller may have been cancelled
                            call.result.set_result(result)
                        self._move_deadline()
                    seconds_per_task = (monotonic() - began) / half
                    self._feed()
        except TimeoutError:
            hung = True
        except (EOFError, OSError):
            pass
        finally:
            self._child = self._deadline = None
            ending = await child.end()
        return (f"gave no result within {self._seconds:g} s" if hung else ending), hung

    async def _start(self) -> ChildProcess:
        """A child whose handler is ready. Raises ChildUnusable after the last attempt."""
        level = logging.getLevelName(logging.getLogger().level)
        setup = ChildSetup(
            *(self._handler, self._setup, self._seconds, self._name, level, logs.line_format(), logs.named_run()),
            memory=self._memory,
        )
        for attempt in range(1, START_ATTEMPTS + 1):
            try:
                return await ChildProcess.start(setup, MAX_START_SECONDS)
            except ChildUnusable as error:
                logger.debug("start %d of the %s's process: %s", attempt, self._name, error)
                last = error
        raise last

    def _feed(self) -> None:
        """Send tasks until the child has TASKS_AHEAD of them. A task that a child has died of is sent alone."""
        if self._child is None:
            return
        while self._waiting and len(self._sent) < TASKS_AHEAD and not (self._sent and self._sent[0].deaths):
            if self._waiting[0].deaths and self._sent:
                return
            call = self._waiting.popleft()
            if call.result.done():
                continue
            self._sent.append(call)
            self._child.send(call.task)
            if len(self._sent) == 1:
                self._move_deadline()

    def _move_deadline(self) -> None:
        """Set the deadline of the first sent task, which the child begins now; none when there is no task.

        The deadline stays as it is when it is nearly right.
        """
        assert self._deadline is not None
        now, deadline = asyncio.get_running_loop().time(), self._deadline.when()
        if not self._sent:
            self._deadline.reschedule(None)
        elif deadline is None or now + self._seconds - deadline > DEADLINE_TOLERANCE * self._seconds:
            self._deadline.reschedule(now + self._seconds)

    def _blame_first(self, ending: str, *, hung: bool) -> None:
        """Count the child's death against the first task without a result, and put the tasks back to be sent again."""
        if self._sent:
            first = self._sent[0]
            first.deaths += 1
            if hung or first.deaths == MAX_DEATHS_PER_TASK:
                self._sent.popleft()
                if not first.result.done():
                    times = "" if hung else f", {MAX_DEATHS_PER_TASK} times"
                    first.result.set_exception(TaskFailed(f"its process {ending}{times}"))
        self._waiting.extendleft(reversed(self._sent))
        self._sent.clear()
