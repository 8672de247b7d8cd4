"""What SIGINT (Ctrl-C) and SIGTERM do to a command that has children."""

from __future__ import annotations

import asyncio
import os
import signal

from crawler.local.child_spec import INTERRUPTED_EXIT_CODE
from crawler.local.embedded import Embedded
from crawler.local.events import DrainBegins, OnEvent
from crawler.local.supervisor import Supervisor


def drain_on_signals(supervisor: Supervisor, on_event: OnEvent, embedded: Embedded | None = None) -> None:
    """Drain at the first SIGINT or SIGTERM. At the second one kill the children and exit at once.

    At the second one embedded servers are asked to stop, and not waited for.
    """
    loop = asyncio.get_running_loop()
    draining = False

    def on_signal() -> None:
        nonlocal draining
        if draining:
            supervisor.kill()
            if embedded is not None:
                embedded.abandon()
            os._exit(INTERRUPTED_EXIT_CODE)
        draining = True
        on_event(DrainBegins())
        supervisor.drain()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
