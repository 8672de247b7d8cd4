"""A world without an event loop: the product's coroutines sleep and wait turn by turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from tests.simulation.truth import Truth, pause

IDLE, NAP = "idle", "nap"


class Event(asyncio.Event):
    """An event for which a coroutine waits turn by turn."""

    async def wait(self) -> Literal[True]:
        while not self.is_set():
            await pause(IDLE)
        return True


class Clock:
    """Seconds of the simulated clock, for the modules that measure time."""

    truth: Truth

    def __call__(self) -> float:
        return self.truth.now / 1000


def without_a_loop(patch: pytest.MonkeyPatch) -> Clock:
    """Let the product's coroutines sleep and wait in the simulation instead of in an event loop."""

    async def nap(seconds: float) -> None:
        await pause(NAP)

    async def time_out(waiting: Coroutine[Any, Any, Any], seconds: float) -> None:
        waiting.close()
        await nap(seconds)
        raise TimeoutError

    async def at_once(call: Callable[..., Any], *arguments: Any) -> Any:
        return call(*arguments)

    clock = Clock()
    world = SimpleNamespace(sleep=nap, to_thread=at_once, Event=Event, wait_for=time_out)
    for module in ("roles.coordinator", "redis.retrying", "roles.planner", "roles.janitor", "roles.election"):
        patch.setattr(f"coordinator.{module}.asyncio", world)
    for module in ("worker", "pipeline.intake"):
        patch.setattr(f"crawler.{module}.asyncio", world)
    patch.setattr("coordinator.roles.janitor.monotonic", clock)
    return clock
