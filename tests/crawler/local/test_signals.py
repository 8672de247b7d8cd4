from __future__ import annotations

import asyncio
import os
import signal

import pytest

from crawler.local.events import DrainBegins, Event, Listener
from crawler.local.signals import until_signal

pytestmark = pytest.mark.anyio


async def test_a_signal_ends_what_would_go_on_for_long_and_the_next_one_is_as_before() -> None:
    events: list[Event] = []
    asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(asyncio.CancelledError):
        await until_signal(asyncio.Event().wait(), Listener(events.append, 1.0))
    assert events == [DrainBegins()]
    assert signal.getsignal(signal.SIGTERM) == before
