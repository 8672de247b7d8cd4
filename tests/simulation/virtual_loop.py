"""An event loop that never waits: when no task can go on, its time jumps to the next timer."""

from __future__ import annotations

import asyncio
import selectors
from typing import Any

# What a turn of the loop takes. Without it, a delay that is shorter than the clock's resolution would never be over.
TURN_SECONDS = 1e-9
# More turns than any test takes: one that waits for what never comes fails, and does not hang.
MOST_TURNS = 2_000_000
BACKEND = ("asyncio", {"use_uvloop": False, "loop_factory": lambda: VirtualLoop()})


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its `time()` is virtual. Tasks must not wait for sockets, threads or processes."""

    def __init__(self) -> None:
        self.now = 1_000.0
        super().__init__(_Jumping(self))

    def time(self) -> float:
        return self.now

    def freeze(self, seconds: float) -> None:
        """Let time pass without running anything, as if the process was frozen: timers fire late."""
        self.now += seconds


class _Jumping(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop
        self._turns = 0

    def select(self, timeout: float | None = None) -> list[Any]:
        found = super().select(0)
        if found:
            return found
        if timeout is None:
            raise RuntimeError("every task waits, and no timer will wake one")
        self._turns += 1
        if self._turns > MOST_TURNS:
            raise RuntimeError("a task waits for what never comes, again and again")
        self._loop.now += max(timeout, TURN_SECONDS)
        return found


def freeze(seconds: float) -> None:
    """Freeze the running loop for so many seconds."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    loop.freeze(seconds)


def now() -> float:
    """The running loop's time."""
    return asyncio.get_running_loop().time()


async def run_ready_tasks() -> None:
    """Let every task go on until it waits for a timer."""
    for _ in range(20):
        await asyncio.sleep(0)
