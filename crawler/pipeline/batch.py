"""Pages that wait for the next commit, and what a committed load means for the queue.

Lanes fill the batch, the flush empties it; rows and bytes bound it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from time import monotonic

from coordinator.model import Attempts, FoundKey, Outcome
from coordinator.queue.found import FoundKeys
from coordinator.queue.streams import Completion, FinishedBlock
from coordinator.queue.wire import Deferral
from crawler.job.models import StoreSettings
from crawler.model import Item, OpenBlock, Page, Request
from crawler.parse.follow.sitemap import LASTMOD
from crawler.store.rows.base import BaseReader


@dataclass(frozen=True, slots=True)
class DeferredItem:
    """A key without an outcome, for another attempt by any worker after `delay` seconds."""

    item: Item
    attempts: Attempts
    delay: float


@dataclass(slots=True)
class Load:
    """What one flush takes: pages to commit, keys to defer, and blocks that had nothing left to fetch."""

    pages: list[Page] = field(default_factory=list)
    deferred: list[DeferredItem] = field(default_factory=list)
    done_blocks: list[OpenBlock] = field(default_factory=list)


class Batch:
    """The pages of one worker that are not committed yet: those of the next load, and those of the current flush.

    It is full at `batch_rows` pages or `batch_bytes` bytes, with those that a stage before it holds. Then lanes take no
    more requests, which bounds the memory and what others must fetch again after a kill -9. `clock` counts seconds.
    """

    def __init__(self, settings: StoreSettings, *, clock: Callable[[], float] = monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._load = Load()
        self._bytes = 0
        self._flushing_pages = 0
        self._flushing_bytes = 0
        self._held_pages = self._held_bytes = 0
        self._oldest_at: float | None = None  # when the load's oldest content came, by the clock; None when it is empty
        self._changed = asyncio.Event()
        self._has_room = asyncio.Event()
        self._closing = False

    def __len__(self) -> int:
        return len(self._load.pages) + self._flushing_pages

    @property
    def full(self) -> bool:
        """Whether lanes must wait for the flush."""
        settings = self._settings
        if len(self._load.pages) + self._flushing_pages + self._held_pages >= settings.batch_rows:
            return True
        return self._bytes + self._flushing_bytes + self._held_bytes >= settings.batch_bytes

    def add(self, page: Page) -> None:
        """Add one page."""
        self._load.pages.append(page)
        self._bytes += page.memory_bytes
        self._added()

    def hold(self, pages: int, size: int) -> None:
        """Count so many pages and bytes that a stage holds: they come later."""
        self._held_pages, self._held_bytes = pages, size
        if not self.full:
            self._has_room.set()

    def defer(self, request: Request, delay: float) -> None:
        """Add the keys of a request, to be deferred for `delay` seconds."""
        self._load.deferred += [DeferredItem(item, request.attempts, delay) for item in request.items]
        self._added()

    def defer_item(self, item: Item, attempts: Attempts, delay: float) -> None:
        """Add one key, to be deferred for `delay` seconds."""
        self._load.deferred.append(DeferredItem(item, attempts, delay))
        self._added()

    def add_done_block(self, block: OpenBlock) -> None:
        """Add a block all of whose keys were done when it was claimed."""
        self._load.done_blocks.append(block)
        self._added()

    async def until_room(self) -> None:
        """Return when the batch is not full."""
        while self.full:
            self._has_room.clear()
            await self._has_room.wait()

    def make_due(self) -> None:
        """Make the load due now, because nothing that could join it is in flight."""
        if self._oldest_at is not None:
            self._oldest_at = -math.inf
            self._changed.set()

    def close(self) -> None:
        """Say that no more pages come: the load is due now, and after it `due` returns None."""
        self._closing = True
        self._changed.set()

    async def due(self) -> Load | None:
        """Wait until the next load is due, and take it; None when the batch is closed and empty.

        A load is due when it has half of `batch_rows` or `batch_bytes`, or is `batch_age` seconds old.
        """
        while not self._is_due():
            if self._closing and self._oldest_at is None:
                return None
            self._changed.clear()
            wait = None if self._oldest_at is None else self._oldest_at + self._settings.batch_age - self._clock()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._changed.wait()
        load, self._load = self._load, Load()
        self._flushing_pages, self._flushing_bytes = len(load.pages), self._bytes
        self._bytes, self._oldest_at = 0, None
        return load

    def flushed(self) -> None:
        """Say that the load that `due` returned last is committed and completed."""
        self._flushing_pages = self._flushing_bytes = 0
        self._has_room.set()

    def _added(self) -> None:
        """Wake `due` when it has something new to decide: the load has begun, or is half full."""
        if self._oldest_at is None:
            self._oldest_at = self._clock()
            self._changed.set()
        elif self._is_half_full():
            self._changed.set()

    def _is_half_full(self) -> bool:
        settings = self._settings
        return 2 * len(self._load.pages) >= settings.batch_rows or 2 * self._bytes >= settings.batch_bytes

    def _is_due(self) -> bool:
        if self._oldest_at is None:
            return False
        return self._closing or self._is_half_full() or self._clock() - self._oldest_at >= self._settings.batch_age


async def drop_seen(pages: Sequence[Page], found_keys: FoundKeys, base: BaseReader | None = None) -> None:
    """Drop what pages have named that was named before or is done, but next pages of lists.

    Pages that failed, and keep what the base has of them, name what they had named there: lists lose no page. So do
    those that the parser calls unchanged. But what a sitemap said of pages then is not what it would say now.
    Raises RedisUnavailable, PostgresUnavailable, PostgresRefused.
    """
    kept = {page.item.digest: page for page in pages if page.is_carried and _was_read_before(page)}
    if base is not None and kept:
        for digest, found in (await base.found(list(kept))).items():
            kept[digest].found = [_without_lastmod(one) for one in found]
    if any(page.found for page in pages):
        new = await found_keys.new(one for page in pages for one in page.found)
        for page in pages:
            page.found = [one for one in page.found if one.digest in new or one.context.list_key]


def _without_lastmod(one: FoundKey) -> FoundKey:
    fields = {name: text for name, text in one.context.fields.items() if name != LASTMOD}
    return one._replace(context=one.context._replace(fields=fields))


def _was_read_before(page: Page) -> bool:
    """Whether only the base knows what a page that is carried over has named: its kind may name keys."""
    return page.outcome is Outcome.FAILED or page.content_digest == b""


def completion_of(load: Load, requests: int, received: int, timings: Mapping[str, int] | None = None) -> Completion:
    """The completion of a load. Call it once for each load, because it counts down what is left of each block.

    `requests` were sent, and `received` bytes of bodies came, since the last completion; `timings` are
    what the times of stages have grown by.
    """
    return Completion(
        outcomes=[(page.item.digest, page.outcome) for page in load.pages],
        finished=[FinishedBlock(block.shard, block.entry, block.keys) for block in _finished_blocks(load)],
        deferred=[_deferral(one) for one in load.deferred],
        requests=requests,
        received=received,
        timings=timings or {},
    )


def _deferral(one: DeferredItem) -> Deferral:
    return Deferral(one.item.digest, one.item.key, one.attempts, one.delay, one.item.context)


def _finished_blocks(load: Load) -> Iterator[OpenBlock]:
    """The blocks that had nothing to fetch, and those whose last open key this load commits or defers."""
    yield from load.done_blocks
    for item in chain((page.item for page in load.pages), (one.item for one in load.deferred)):
        block = item.block
        block.left -= 1
        if not block.left:
            yield block
