"""What SIGINT (Ctrl-C) and SIGTERM do to a command that has children."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable

from crawler.local.child_spec import INTERRUPTED_EXIT_CODE
from crawler.local.embedded import Embedded
from crawler.local.events import DrainBegins, Listener

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def drain_on_signals(
    drain: Callable[[], None], kill: Callable[[], None], listener: Listener, embedded: Embedded | None = None
) -> None:
    """Drain at the first SIGINT or SIGTERM. At the second one kill the children and exit at once.

    At the second one embedded servers are asked to stop, and not waited for. A listener with `on_drain` begins the
    drain by itself.
    """
    if listener.on_drain is not None:
        listener.on_drain(drain)
        return
    loop = asyncio.get_running_loop()
    draining = False

    def on_signal() -> None:
        nonlocal draining
        if draining:
            kill()
            if embedded is not None:
                embedded.abandon()
            os._exit(INTERRUPTED_EXIT_CODE)
        draining = True
        listener.on_event(DrainBegins())
        drain()

    for number in SIGNALS:
        loop.add_signal_handler(number, on_signal)


async def until_signal(work: Awaitable[object], listener: Listener, embedded: Embedded | None = None) -> None:
    """Wait for the work. The first SIGINT or SIGTERM cancels it, which raises CancelledError; the second one exits."""
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)

    def cancel() -> None:
        task.cancel()

    drain_on_signals(cancel, lambda: None, listener, embedded)
    try:
        await task
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)
