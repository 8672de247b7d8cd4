"""ROLE planner: source -> not yet done -> blocks -> streams, never more than the high-water mark ahead."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from itertools import chain

from coordinator.failpoints import Failpoint, no_failpoint
from coordinator.model import Block, RunCounts
from coordinator.queue.done import DoneSet
from coordinator.queue.sharding import Layout, blocks, by_digest
from coordinator.queue.streams import Streams
from coordinator.source import Chunk, Source

logger = logging.getLogger(__name__)

# One chunk is read, published and forgotten before the next: it bounds the planner's memory whatever the corpus.
CHUNK_KEYS = 65_536
# The queue has room for this many chunks at least, so that the next one goes in while workers drain the last.
MIN_QUEUED_CHUNKS = 4
# A slow source hands over what it has after this many seconds, so that workers do not wait for a full chunk.
CHUNK_READ_SECONDS = 1.0
ROOM_POLL_SECONDS = 0.05


class Planner:
    """Feeds one run from its source. A chunk and the cursor behind it reach Redis together or not at all."""

    def __init__(
        self,
        *,
        name: str,
        source: Source,
        cursor: str,
        streams: Streams,
        done: DoneSet,
        layout: Layout,
        counts: Callable[[], Awaitable[RunCounts]],
        high_water: int,
        failpoint: Failpoint = no_failpoint,
    ) -> None:
        self._name = name
        self._source = source
        self._cursor = cursor
        self._streams = streams
        self._done = done
        self._layout = layout
        self._counts = counts
        self._high_water = high_water
        self._failpoint = failpoint
        self._exhausted = False
        self._anything_done = True
        self._chunk_keys = max(1, min(CHUNK_KEYS, high_water // MIN_QUEUED_CHUNKS))

    async def plan(self) -> bool:
        """Publish the whole source; False when another planner leads now. Raises SourceError.

        While nothing is done, nothing is looked up: a key ends only after it was published from here. One that ends
        while the rest is planned, and stands in the source again, is dropped by the worker that opens its block, which
        looks up every key.
        """
        self._anything_done = (await self._counts()).done > 0
        while not self._exhausted:
            if not await self._plan_chunk():
                return False
        logger.info("planner reached the end of the source at cursor %s", self._cursor)
        return True

    async def _plan_chunk(self) -> bool:
        """One chunk, which is forgotten when this returns; False when another planner leads now."""
        chunk = await asyncio.to_thread(self._source.read, self._chunk_keys, CHUNK_READ_SECONDS)
        end, self._exhausted = str(chunk.end), chunk.exhausted
        planned, skipped = await self._unfinished(chunk)
        await self._room(sum(len(block.keys) for block in planned))
        self._failpoint("read")
        published = await self._streams.publish(
            self._name,
            planned,
            skipped=skipped,
            cursor=self._cursor,
            next_cursor=end,
            exhausted=chunk.exhausted,
        )
        self._failpoint("published")
        self._cursor = end
        return published

    async def _unfinished(self, chunk: Chunk) -> tuple[list[Block], int]:
        """The chunk's blocks without the keys that are done, and how many those are."""
        refusals = {line.key: f"line {line.line}: {line.reason}" for line in chunk.refused}
        keys = await asyncio.to_thread(by_digest, chain(chunk.keys, refusals))
        finished = await self._done.intersection(list(keys)) if self._anything_done else ()
        for name in finished:
            del keys[name]
        reasons = {name: refusals[key] for name, key in keys.items() if key in refusals} if refusals else {}
        return list(blocks(keys, self._layout, reasons)), len(finished)

    async def _room(self, keys: int) -> None:
        """Wait until `keys` more stay below the high-water mark, or nothing is queued at all."""
        while True:
            queued = (await self._counts()).queued
            if queued == 0 or queued + keys <= self._high_water:
                return
            await asyncio.sleep(ROOM_POLL_SECONDS)
