"""An event loop that never waits: when nothing else is to be done, its time jumps to the next timer."""

from __future__ import annotations

import asyncio
import selectors
from typing import Any

BACKEND = ("asyncio", {"use_uvloop": False, "loop_factory": lambda: VirtualLoop()})


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its `time()` is virtual; no sockets, threads or processes may be waited for."""

    def __init__(self) -> None:
        self.now = 1_000.0
        super().__init__(_Jumping(self))

    def time(self) -> float:
        return self.now

    def freeze(self, seconds: float) -> None:
        """The process stands still for a while; timers fire late."""
        self.now += seconds


class _Jumping(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        found = super().select(0)
        if found:
            return found
        if timeout is None:
            raise RuntimeError("everything waits, and nothing will ever happen")
        self._loop.now += max(timeout, 0.0)
        return found


def freeze(seconds: float) -> None:
    """Let the running loop stand still for a while."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    loop.freeze(seconds)


def now() -> float:
    """The running loop's time."""
    return asyncio.get_running_loop().time()


async def settled() -> None:
    """Let every task go as far as it can without a timer."""
    for _ in range(20):
        await asyncio.sleep(0)
