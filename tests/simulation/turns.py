"""What replaces asyncio in a simulation: without an event loop, coroutines wait for their next turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
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


class EndedTask:
    """A task of a coroutine that waits for nothing."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        try:
            coroutine.send(None)
        except StopIteration as ended:
            self.value = ended.value

    def result(self) -> Any:
        return self.value

    def exception(self) -> None:
        return None

    def cancel(self) -> None:
        """It has ended."""


class TurnClock:
    """The simulated clock in seconds, for modules that measure time."""

    truth: Truth

    def __call__(self) -> float:
        return self.truth.now / 1000


def patch_asyncio(patch: pytest.MonkeyPatch) -> TurnClock:
    """Replace asyncio in the modules whose coroutines a simulation runs; returns their clock."""

    async def nap(seconds: float) -> None:
        await pause(NAP)

    @asynccontextmanager
    async def time_out(seconds: float) -> AsyncIterator[None]:
        """A time that always passes, before its body begins."""
        await nap(seconds)
        raise TimeoutError
        yield

    async def at_once(call: Callable[..., Any], *arguments: Any) -> Any:
        return call(*arguments)

    async def all_ended(tasks: set[EndedTask], timeout: float | None) -> tuple[set[EndedTask], set[EndedTask]]:
        return tasks, set()

    clock = TurnClock()
    replacement = SimpleNamespace(
        sleep=nap, to_thread=at_once, Event=Event, timeout=time_out, create_task=EndedTask, wait=all_ended
    )
    roles = ("coordinator", "planner", "frontier_planner", "janitor", "election")
    for module in ("redis.retrying", *(f"roles.{role}" for role in roles)):
        patch.setattr(f"coordinator.{module}.asyncio", replacement)
    for module in ("worker", "pipeline.intake"):
        patch.setattr(f"crawler.{module}.asyncio", replacement)
    for module in ("janitor", "planner"):
        patch.setattr(f"coordinator.roles.{module}.monotonic", clock)
    return clock
