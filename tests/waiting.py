"""Wait for a condition, so that no test sleeps."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic

import pytest

POLL_SECONDS = 0.02


async def eventually(
    condition: Callable[[], Awaitable[bool]] | Callable[[], bool], what: str, *, seconds: float = 20.0
) -> None:
    """Wait until `condition` is true; after `seconds` the test fails, and its message says `what` was waited for."""
    deadline = monotonic() + seconds
    while True:
        holds = condition()
        if isinstance(holds, Awaitable):
            holds = await holds
        if holds:
            return
        if monotonic() > deadline:
            pytest.fail(f"not within {seconds:.0f} s: {what}")
        await asyncio.sleep(POLL_SECONDS)
