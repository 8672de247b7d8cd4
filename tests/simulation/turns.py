"""What replaces asyncio in a simulation: without an event loop, coroutines wait for their next turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from tests.simulation.truth import Truth, pause

IDLE, NAP = "idle", "nap"


class Event(asyncio.Event):
    """An event that a waiting coroutine looks at with every turn."""

    async def wait(self) -> Literal[True]:
        while not self.is_set():
            await pause(IDLE)
        return True


class TurnClock:
    """The simulated clock in seconds, for modules that measure time."""

    truth: Truth

    def __call__(self) -> float:
        return self.truth.now / 1000


def patch_asyncio(patch: pytest.MonkeyPatch) -> TurnClock:
    """Replace asyncio in the modules whose coroutines a simulation runs; returns their clock."""

    async def nap(seconds: float) -> None:
        await pause(NAP)

    async def time_out(waiting: Coroutine[Any, Any, Any], seconds: float) -> None:
        waiting.close()
        await nap(seconds)
        raise TimeoutError

    async def at_once(call: Callable[..., Any], *arguments: Any) -> Any:
        return call(*arguments)

    clock = TurnClock()
    replacement = SimpleNamespace(sleep=nap, to_thread=at_once, Event=Event, wait_for=time_out)
    for module in ("roles.coordinator", "redis.retrying", "roles.planner", "roles.janitor", "roles.election"):
        patch.setattr(f"coordinator.{module}.asyncio", replacement)
    for module in ("worker", "pipeline.intake"):
        patch.setattr(f"crawler.{module}.asyncio", replacement)
    patch.setattr("coordinator.roles.janitor.monotonic", clock)
    return clock
