"""The planner: reads chunks of the source, drops keys that are done, and publishes the rest as blocks.

It waits when the queue is at its high-water mark.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import chain
from time import monotonic

from coordinator.failpoints import Failpoint, no_failpoint
from coordinator.model import KeyContext, RunCounts
from coordinator.queue.done import DoneSet, KnownSet
from coordinator.queue.sharding import BLOCK_KEYS, Layout, by_digest, cut_blocks, cut_request_blocks
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


@dataclass(slots=True)
class _Gathered:
    """What is read and not yet published: `keys` as {digest: key}, `reasons` as {digest: why it must not be fetched}.

    `contexts` are {digest: what travels with the key}. `lines` were read, `done` of them had keys that are done.
    """

    keys: dict[bytes, str] = field(default_factory=dict)
    reasons: dict[bytes, str] = field(default_factory=dict)
    lines: int = 0
    done: int = 0
    contexts: dict[bytes, KeyContext] = field(default_factory=dict)

    @property
    def to_fetch(self) -> int:
        """How many keys will be fetched."""
        return len(self.keys) - len(self.reasons)


class Planner:
    """Publishes one source from a cursor on. The blocks of a chunk and the cursor after it are published in one step.

    `counts` reads the run's counts; `high_water` is the most keys that are queued. With several keys a request, more is
    read for at most `fill_seconds`, until the keys fill whole requests; nothing that was read is held back after that.
    `known` has the keys that pages have named: they are published without the source.
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
        keys_per_request: int = 1,
        single_requests: bool = False,
        fill_seconds: float = 0.0,
        known: KnownSet | None = None,
        failpoint: Failpoint = no_failpoint,
    ) -> None:
        self._known = known
        self._coordinator_id = coordinator_id
        self._source = source
        self._cursor = self._end = cursor
        self._streams = streams
        self._done = done
        self._layout = layout
        self._counts = counts
        self._high_water = high_water
        self._keys_per_request = keys_per_request
        self._single_requests = single_requests
        self._fill_seconds = fill_seconds
        self._failpoint = failpoint
        self._exhausted = False
        self._reads_done_set = True
        self._reading: asyncio.Task[Chunk] | None = None
        chunk_keys = min(CHUNK_KEYS, high_water // MIN_QUEUED_CHUNKS)
        self._chunk_keys = max(1, chunk_keys // keys_per_request) * keys_per_request

    async def plan(self) -> bool:
        """Publish the rest of the source; False when another coordinator leads now. Raises SourceError, EpochLost.

        The done set is read only if it has keys when planning begins. So a key that becomes done later, and comes again
        in the source, is published again; the worker that claims its block looks up every key, and drops it.
        """
        self._reads_done_set = (await self._counts()).done > 0
        try:
            while not self._exhausted:
                if not await self._plan_chunk():
                    return False
        finally:
            if self._reading is not None:
                self._reading.cancel()
        logger.info("planner reached the end of the source at cursor %s", self._cursor, extra={"event": "source_read"})
        return True

    async def _plan_chunk(self) -> bool:
        """Read and publish one chunk; False when another coordinator leads now."""
        gathered = _Gathered()
        await self._add(gathered, await self._read())
        if self._keys_per_request > 1:
            await self._fill_requests(gathered)
            blocks = cut_request_blocks(
                gathered.keys,
                self._layout,
                self._keys_per_request,
                gathered.reasons,
                gathered.contexts,
                self._single_requests,
            )
        else:
            most = 1 if self._single_requests else BLOCK_KEYS
            blocks = cut_blocks(gathered.keys, self._layout, gathered.reasons, gathered.contexts, most)
        planned = list(blocks)
        await self._wait_for_room(len(gathered.keys))
        self._failpoint("read")
        published = await self._streams.publish(
            self._coordinator_id,
            planned,
            skipped=gathered.done,
            cursor=self._cursor,
            next_cursor=self._end,
            exhausted=self._exhausted,
        )
        self._failpoint("published")
        self._cursor = self._end
        return published

    async def _fill_requests(self, gathered: _Gathered) -> None:
        """Read more until the keys fill whole requests, the time for that has passed, or the source ends."""
        deadline = monotonic() + self._fill_seconds
        while not self._exhausted and (missing := -gathered.to_fetch % self._keys_per_request):
            if (seconds_left := deadline - monotonic()) <= 0:
                return
            # Where most keys are done already, so many lines are read that about the missing number is not.
            lines = missing * gathered.lines // gathered.to_fetch
            limit = min(lines, max(missing, self._chunk_keys - len(gathered.keys)))
            if (chunk := await self._read_within(seconds_left, limit)) is None:
                return
            await self._add(gathered, chunk)

    async def _read(self) -> Chunk:
        """The next chunk, or what a read brings that was not waited for. Raises SourceError."""
        if self._reading is None:
            return await asyncio.to_thread(self._source.read, self._chunk_keys, CHUNK_READ_SECONDS)
        chunk, self._reading = await self._reading, None
        return chunk

    async def _read_within(self, seconds: float, limit: int) -> Chunk | None:
        """At most so many of the next lines; None when none came in time, or the source is damaged.

        Then the read goes on, and the next chunk is what it brings, or its error: what came before is published first.
        """
        reading = asyncio.create_task(asyncio.to_thread(self._source.read, limit, min(seconds, CHUNK_READ_SECONDS)))
        ended, _ = await asyncio.wait({reading}, timeout=seconds)
        if ended and reading.exception() is None:
            return reading.result()
        self._reading = reading
        return None

    async def _add(self, gathered: _Gathered, chunk: Chunk) -> None:
        """Add the keys of a chunk that are not done."""
        self._end, self._exhausted = str(chunk.end), chunk.exhausted
        refusals = {bad.key: f"{bad.place}: {bad.reason}" for bad in chunk.refused}
        keys = await asyncio.to_thread(by_digest, chain(chunk.keys, refusals), chunk.kind)
        done = await self._done.intersection(list(keys)) if self._reads_done_set else set()
        if self._known is not None:  # pages have named them, so they are in the queue or in the frontier
            done |= await self._known.intersection(list(keys))
        for digest in done:
            del keys[digest]
        if refusals:
            gathered.reasons |= {digest: refusals[key] for digest, key in keys.items() if key in refusals}
        if chunk.fields or chunk.kind:
            contexts = {
                digest: KeyContext(chunk.kind, fields=chunk.fields.get(key, {}))
                for digest, key in keys.items()
                if chunk.kind or key in chunk.fields
            }
            gathered.contexts = contexts | gathered.contexts  # of a key that comes twice the first one counts
        gathered.lines += len(chunk.keys) + len(chunk.refused)
        gathered.done += len(done)
        gathered.keys = gathered.keys | keys if gathered.keys else keys

    async def _wait_for_room(self, keys: int) -> None:
        """Wait until there is room below the high-water mark for this number of keys, or nothing is queued."""
        while True:
            queued = (await self._counts()).queued
            if queued == 0 or queued + keys <= self._high_water:
                return
            await asyncio.sleep(ROOM_POLL_SECONDS)
