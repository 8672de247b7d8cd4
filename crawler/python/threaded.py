"""A run in a thread of its own, which is shown, and can be interrupted, in the thread that waits for it."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import closing, contextmanager
from dataclasses import replace
from queue import SimpleQueue

from coordinator.tasks import Background
from crawler.job.job import Job
from crawler.local.events import DrainBegins, Event, Listener, OnEvent, RunEnd
from crawler.local.run import run_in
from crawler.local.services import Place


def run_in_thread(place: Place, job: Job, listener: Listener, environ: Mapping[str, str]) -> RunEnd:
    """Like `run_in`, but for a caller whose thread has an event loop, or is not the main thread.

    The `listener` is called in the caller's thread. There KeyboardInterrupt begins the drain, and a second one leaves
    at once; when the run is not complete then, it is raised at the end. Raises ShardcrawlError like `run_in`.
    """
    with closing(Background()) as background:
        run = _ThreadedRun(background, place, job, listener, environ)
        interrupted = False
        while True:
            try:
                with _sigint_interrupts():
                    run.show(listener.on_event)
                    end = run.future.result()
                    break
            except KeyboardInterrupt:
                interrupted = True
                run.interrupt()
            except CancelledError:
                raise KeyboardInterrupt from None
    if interrupted and end.stored is None:
        raise KeyboardInterrupt(f"run {end.job.run.name} is interrupted; the same call goes on with it")
    return end


@contextmanager
def _sigint_interrupts() -> Iterator[None]:
    """Let SIGINT raise KeyboardInterrupt in this thread, as it does unless `asyncio.run` has begun in it."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or handler in (None, signal.SIG_IGN):
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


class _ThreadedRun:
    def __init__(
        self, background: Background, place: Place, job: Job, listener: Listener, environ: Mapping[str, str]
    ) -> None:
        self._background = background
        self._events: SimpleQueue[Event | None] = SimpleQueue()
        self._task: asyncio.Task[RunEnd] | None = None
        self._drain: Callable[[], None] | None = None
        self._draining = False
        queued = replace(listener, on_event=self._events.put, on_drain=self._begun)
        self.future = background.start(self._run(place, job, queued, environ))
        self.future.add_done_callback(lambda _: self._events.put(None))

    def show(self, on_event: OnEvent) -> None:
        """Pass on what happens, in this thread, until the run has ended."""
        while (event := self._events.get()) is not None:
            on_event(event)
        self._events.put(None)  # for who was interrupted just now, and comes again

    def interrupt(self) -> None:
        """Begin the drain; end the run at once when that has begun before, or no child is there yet."""
        self._background.start(self._interrupt())

    async def _run(self, place: Place, job: Job, listener: Listener, environ: Mapping[str, str]) -> RunEnd:
        self._task = asyncio.current_task()
        return await run_in(place, job, listener, environ)

    def _begun(self, drain: Callable[[], None]) -> None:
        self._drain = drain
        if self._draining:
            drain()

    async def _interrupt(self) -> None:
        if self._drain is None or self._draining:
            assert self._task is not None
            self._task.cancel()
            return
        self._draining = True
        self._events.put(DrainBegins())
        self._drain()
