"""This worker's share of an upstream's concurrency."""

from __future__ import annotations

import asyncio
from collections import deque


def share(limit: int, rank: int, size: int) -> int:
    """How many of `limit` the worker of that rank may use; the shares of all `size` workers add up to `limit`."""
    return limit // size + (1 if rank < limit % size else 0)


class Gate:
    """Lets through as many at once as this worker's share, which changes as workers come and go; None: everybody."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._share = limit
        self._inside = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    def __repr__(self) -> str:
        return f"<Gate {self._inside}/{self._share} inside, {len(self._waiting)} waiting>"

    async def __aenter__(self) -> None:
        if self._share is None:
            return
        while self._inside >= self._share:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                self._wake()
                raise
        self._inside += 1

    async def __aexit__(self, *error: object) -> None:
        if self._share is not None:
            self._inside -= 1
            self._wake()

    def resize(self, rank: int, size: int) -> None:
        """Take the share of the worker with `rank` among `size`."""
        self.settle((rank, size))

    def settle(self, *places: tuple[int, int]) -> None:
        """Take the least of the shares at these places, each (rank, size)."""
        if self._limit is not None:
            self._share = min(share(self._limit, rank, max(size, 1)) for rank, size in places)
            for _ in range(self._share - self._inside):
                self._wake()

    @property
    def shut(self) -> bool:
        """Whether this worker's share is nothing."""
        return self._share == 0

    def _wake(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
