"""The planner: reads chunks of the source, drops keys that are done, and publishes the rest as blocks.

It waits when the queue is at its high-water mark.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from itertools import chain

from coordinator.failpoints import Failpoint, no_failpoint
from coordinator.model import Block, RunCounts
from coordinator.queue.done import DoneSet
from coordinator.queue.sharding import Layout, by_digest, cut_blocks
from coordinator.queue.streams import Streams
from coordinator.source import Chunk, Source

logger = logging.getLogger(__name__)

# Only one chunk is in memory at a time: that bounds the planner's memory for any corpus.
CHUNK_KEYS = 65_536
# With a low high-water mark chunks are smaller, so that this number of them can be queued: then the next chunk is
# published before workers have finished the last one.
MIN_QUEUED_CHUNKS = 4
# A slow source returns what it has after this time, so that workers do not wait for a full chunk.
CHUNK_READ_SECONDS = 1.0
ROOM_POLL_SECONDS = 0.05


class Planner:
    """Publishes one source from a cursor on. The blocks of a chunk and the cursor after it are published in one step.

    `counts` reads the run's counts; `high_water` is the most keys that are queued.
    """

    def __init__(
        self,
        *,
        coordinator_id: str,
        source: Source,
        cursor: str,
        streams: Streams,
        done: DoneSet,
        layout: Layout,
        counts: Callable[[], Awaitable[RunCounts]],
        high_water: int,
        failpoint: Failpoint = no_failpoint,
    ) -> None:
        self._coordinator_id = coordinator_id
        self._source = source
        self._cursor = cursor
        self._streams = streams
        self._done = done
        self._layout = layout
        self._counts = counts
        self._high_water = high_water
        self._failpoint = failpoint
        self._exhausted = False
        self._reads_done_set = True
        self._chunk_keys = max(1, min(CHUNK_KEYS, high_water // MIN_QUEUED_CHUNKS))

    async def plan(self) -> bool:
        """Publish the rest of the source; False when another coordinator leads now. Raises SourceError, EpochLost.

        The done set is read only if it has keys when planning begins. So a key that becomes done later, and comes again
        in the source, is published again; the worker that claims its block looks up every key, and drops it.
        """
        self._reads_done_set = (await self._counts()).done > 0
        while not self._exhausted:
            if not await self._plan_chunk():
                return False
        logger.info("planner reached the end of the source at cursor %s", self._cursor)
        return True

    async def _plan_chunk(self) -> bool:
        """Read and publish one chunk; False when another coordinator leads now."""
        chunk = await asyncio.to_thread(self._source.read, self._chunk_keys, CHUNK_READ_SECONDS)
        end, self._exhausted = str(chunk.end), chunk.exhausted
        planned, skipped = await self._blocks_not_done(chunk)
        await self._wait_for_room(sum(len(block.keys) for block in planned))
        self._failpoint("read")
        published = await self._streams.publish(
            self._coordinator_id,
            planned,
            skipped=skipped,
            cursor=self._cursor,
            next_cursor=end,
            exhausted=chunk.exhausted,
        )
        self._failpoint("published")
        self._cursor = end
        return published

    async def _blocks_not_done(self, chunk: Chunk) -> tuple[list[Block], int]:
        """The chunk as blocks, without the keys that are done, and how many are done."""
        refusals = {bad.key: f"line {bad.line}: {bad.reason}" for bad in chunk.refused}
        keys = await asyncio.to_thread(by_digest, chain(chunk.keys, refusals))
        done = await self._done.intersection(list(keys)) if self._reads_done_set else ()
        for digest in done:
            del keys[digest]
        reasons = {digest: refusals[key] for digest, key in keys.items() if key in refusals} if refusals else {}
        return list(cut_blocks(keys, self._layout, reasons)), len(done)

    async def _wait_for_room(self, keys: int) -> None:
        """Wait until there is room below the high-water mark for this number of keys, or nothing is queued."""
        while True:
            queued = (await self._counts()).queued
            if queued == 0 or queued + keys <= self._high_water:
                return
            await asyncio.sleep(ROOM_POLL_SECONDS)
