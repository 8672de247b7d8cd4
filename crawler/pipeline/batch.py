"""What waits for the next commit: filled by fetches, taken by the flush, bounded by rows and bytes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic

from coordinator.model import Attempts
from crawler.job.models import StoreSettings
from crawler.model import Item, OpenBlock, Page, Request


@dataclass(frozen=True, slots=True)
class DeferredItem:
    """A key that has no outcome yet and is to be tried again after `delay` seconds, by whoever is free then."""

    item: Item
    attempts: Attempts
    delay: float


@dataclass(slots=True)
class Load:
    """One flush's share: pages to commit, keys to defer, and blocks that had nothing left to fetch."""

    pages: list[Page] = field(default_factory=list)
    deferred: list[DeferredItem] = field(default_factory=list)
    idle_blocks: list[OpenBlock] = field(default_factory=list)


class Batch:
    """Pages not committed yet. At most `batch_rows` of them (and `batch_bytes`) exist in a worker, those being
    flushed included: that bounds memory, and what a kill -9 makes others fetch again."""

    def __init__(self, settings: StoreSettings, *, clock: Callable[[], float] = monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._load = Load()
        self._weight = 0
        self._flushing = 0
        self._flushing_weight = 0
        self._since: float | None = None
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._closing = False

    def __len__(self) -> int:
        return len(self._load.pages) + self._flushing

    @property
    def full(self) -> bool:
        """Whether fetches must wait for the flush."""
        settings = self._settings
        return len(self) >= settings.batch_rows or self._weight + self._flushing_weight >= settings.batch_bytes

    def add(self, page: Page) -> None:
        """Take one page."""
        self._load.pages.append(page)
        self._weight += page.weight
        self._touch()

    def defer(self, request: Request, delay: float) -> None:
        """Take the keys of a request that is to be tried again after `delay` seconds."""
        self._load.deferred += [DeferredItem(item, request.attempts, delay) for item in request.items]
        self._touch()

    def idle(self, block: OpenBlock) -> None:
        """Take a block all of whose keys were done before."""
        self._load.idle_blocks.append(block)
        self._touch()

    async def room(self) -> None:
        """Return when the batch is not full."""
        while self.full:
            self._room.clear()
            await self._room.wait()

    def hurry(self) -> None:
        """What is there is due: nothing comes soon that would be worth waiting for."""
        if self._since is not None:
            self._since = -math.inf
            self._changed.set()

    def close(self) -> None:
        """No more pages come: what is there is due, and after it `due` gives None."""
        self._closing = True
        self._changed.set()

    async def due(self) -> Load | None:
        """The next load, when half the rows or bytes are there, or the oldest is old enough; None after the last."""
        while not self._is_due():
            if self._closing and self._since is None:
                return None
            self._changed.clear()
            wait = None if self._since is None else self._since + self._settings.batch_age - self._clock()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), wait)
        load, self._load = self._load, Load()
        self._flushing, self._flushing_weight = len(load.pages), self._weight
        self._weight, self._since = 0, None
        return load

    def flushed(self) -> None:
        """The load that was taken is committed."""
        self._flushing = self._flushing_weight = 0
        self._room.set()

    def _touch(self) -> None:
        if self._since is None:
            self._since = self._clock()
            self._changed.set()
        elif self._half():
            self._changed.set()

    def _half(self) -> bool:
        settings = self._settings
        return 2 * len(self._load.pages) >= settings.batch_rows or 2 * self._weight >= settings.batch_bytes

    def _is_due(self) -> bool:
        if self._since is None:
            return False
        return self._closing or self._half() or self._clock() - self._since >= self._settings.batch_age
