"""Coroutines and tasks that end together, and an event loop beside the caller's."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections import deque
from collections.abc import Callable, Collection, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

_Result = TypeVar("_Result")

CANCEL_REPEAT_SECONDS = 0.2
# A timer may fire a moment before a tick: then it is the next tick that is waited for.
TICK_ROUNDING_SECONDS = 0.005


async def run_until_first_ends(*coroutines: Coroutine[Any, Any, Any]) -> None:
    """Run all; when the first returns or raises, cancel the others, wait for them, and raise what the first raised.

    When several ended at once, the error of the first one in the order of the arguments is raised.
    """
    tasks = [asyncio.create_task(coroutine, name=getattr(coroutine, "__qualname__", None)) for coroutine in coroutines]
    ended: list[asyncio.Task[Any]] = []
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        ended = [task for task in tasks if task.done()]
    finally:
        await cancel_and_wait(tasks)
    for task in ended:
        task.result()


async def wait_until_first_ends(*tasks: asyncio.Task[Any]) -> None:
    """Return when one of the tasks has ended; raise what it raised. The others go on."""
    ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in ended:
        task.result()


async def cancel_and_wait(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel the tasks and return when all have ended. Their errors are dropped.

    A cancellation is repeated, because a library can swallow one: `asyncio.wait_for` of Python 3.11 does when it
    arrives as the inner task ends (https://github.com/python/cpython/issues/86296). A caller that is cancelled
    meanwhile still waits until all have ended, so that none is left behind, and is cancelled then.
    """
    pending = {task for task in tasks if not task.done()}
    interrupted: asyncio.CancelledError | None = None
    while pending:
        for task in pending:
            task.cancel()
        try:
            _, pending = await asyncio.wait(pending, timeout=CANCEL_REPEAT_SECONDS)
        except asyncio.CancelledError as error:
            interrupted = error
            pending = {task for task in pending if not task.done()}
    for task in tasks:
        if not task.cancelled():
            task.exception()  # read it, or asyncio logs that nobody did
    if interrupted is not None:
        raise interrupted


def until_tick(seconds: float) -> float:
    """How long it is until the next tick of this process' clock, which ticks every so many seconds.

    Who looks again and again sleeps until then: so a process that waits wakes up once for all of them, and processes
    that were started together wake up at different times.
    """
    left = seconds - (asyncio.get_running_loop().time() + os.getpid() * 0.0137) % seconds
    return left if left > TICK_ROUNDING_SECONDS else left + seconds


class WaitingTasks:
    """Tasks that wait until they are woken, one by one, the longest waiting first."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    async def wait(self) -> None:
        """Wait until woken. A task that is cancelled after it was woken wakes another one in its place."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(woken)
        try:
            await woken
        except asyncio.CancelledError:
            if woken.done() and not woken.cancelled():
                self.wake_one()
            raise

    def wake_one(self) -> None:
        """Wake the task that waits the longest, if there is one."""
        while self._waiting:
            woken = self._waiting.popleft()
            if not woken.done():
                woken.set_result(None)
                return

    def wake_all(self) -> None:
        """Wake every task that waits now."""
        for _ in range(len(self._waiting)):
            self.wake_one()

    def fail_all(self, error: BaseException) -> None:
        """Raise an error in every task that waits."""
        for woken in self._waiting:
            if not woken.done():
                woken.set_exception(error)


class Background:
    """An event loop in a thread of its own: the caller's thread may have one already, as in a notebook.

    `finish` is called and awaited at its end, which is that of the interpreter when nobody closes it before.
    """

    def __init__(self, finish: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
        self._finish = finish
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="shardcrawl", daemon=True)
        self._thread.start()
        # Who is collected after the interpreter's end, as a global is, would wait for a thread that stands still.
        atexit.register(self.close)

    def start(self, coroutine: Coroutine[Any, Any, _Result]) -> Future[_Result]:
        """Begin the coroutine as a task; the future ends with it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def result(self, coroutine: Coroutine[Any, Any, _Result]) -> _Result:
        """The coroutine's result, or what it raised."""
        return self.start(coroutine).result()

    def close(self) -> None:
        """Cancel the tasks that are not at their end, wait for them, finish, and end the thread; once."""
        atexit.unregister(self.close)
        if self._loop.is_closed():
            return
        try:
            self.result(self._end_all())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _end_all(self) -> None:
        await cancel_and_wait([task for task in asyncio.all_tasks() if task is not asyncio.current_task()])
        if self._finish is not None:
            await self._finish()
