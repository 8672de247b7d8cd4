"""The coordinator of a run: it leads, or stands by. While it leads, its planner and its janitor work at the same time.

    standing by --no other one leads--> leading --the run is over------> ended
         ^                                 |
         |                                 +-- another one leads now, Redis was away, or the cursor was set back
         +---------------------------------+

From any state it ends with SourceError when the source cannot be read (or must be read again, and is a pipe),
and with EpochLost when Redis has another run, or lost this one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from redis.asyncio import Redis

from coordinator.errors import RedisDamaged, RedisUnavailable, SourceError
from coordinator.failpoints import Failpoint, no_failpoint
from coordinator.model import FoundBatch, FoundKey, RunCounts
from coordinator.queue.done import DoneSet, KnownSet
from coordinator.queue.found import Frontier
from coordinator.queue.registry import RunRecord, Runs
from coordinator.queue.streams import Streams
from coordinator.redis.connection import as_number, as_text, translate_redis_errors
from coordinator.redis.keys import FIRST_CURSOR, RunKeys
from coordinator.redis.retrying import REDIS_RETRY_SECONDS, retry_unavailable
from coordinator.roles.election import Election
from coordinator.roles.frontier_planner import FrontierPlanner
from coordinator.roles.janitor import Janitor
from coordinator.roles.planner import Planner
from coordinator.source import Cursor, Source
from coordinator.status import read_counts
from coordinator.tasks import run_until_first_ends

logger = logging.getLogger(__name__)

STATE_POLL_SECONDS = 0.2


def _usable(cursor: str) -> str:
    """The cursor that Redis has. Raises RedisDamaged when it is not one of ours."""
    try:
        place = Cursor.parse(cursor)
    except SourceError as error:
        raise RedisDamaged(str(error)) from error
    as_number(place.offset), as_number(place.line)
    return cursor


@dataclass(frozen=True, slots=True)
class Following:
    """What a run needs to follow what pages name; see FrontierPlanner."""

    read_found: Callable[[FoundBatch], Awaitable[Sequence[FoundKey]]]
    by_level: bool
    most: Mapping[int, int]
    keys_per_request: Mapping[str, int] = field(default_factory=dict)

    @property
    def covers_source(self) -> bool:
        """Whether a key of the source that a page named before need not be published for the source too.

        By level it must be, as a key of depth 0; and where a rule is bounded, what the page named may be cut.
        """
        return not self.by_level and not self.most


class Coordinator:
    """The coordinator of one run in this process.

    `open_corpus` opens the source at a cursor; `rereadable` is False for a pipe, which cannot be read from its
    beginning again. `high_water` is the most keys that are queued. A request that has fewer than `keys_per_request`
    keys waits `fill_seconds` for more of a slow source. `single_requests`: a block has the keys of one request, so
    that only these are in doubt when a worker dies. `following` says how keys that pages name are published.
    """

    def __init__(
        self,
        client: Redis,
        record: RunRecord,
        coordinator_id: str,
        open_corpus: Callable[[Cursor], Source],
        *,
        rereadable: bool,
        high_water: int,
        keys_per_request: int = 1,
        single_requests: bool = False,
        fill_seconds: float = 0.0,
        following: Following | None = None,
        failpoint: Failpoint = no_failpoint,
    ) -> None:
        self._following = following
        self._client = client
        self._record = record
        self._rereadable = rereadable
        self._high_water = high_water
        self._keys_per_request = keys_per_request
        self._single_requests = single_requests
        self._fill_seconds = fill_seconds
        self._coordinator_id = coordinator_id
        self._open_corpus = open_corpus
        self._failpoint = failpoint
        self._keys = RunKeys(record.name)
        self._streams = Streams(client, self._keys, record.layout, record.epoch)
        self._done = DoneSet(client, self._keys, record.layout, record.epoch)
        self._known = KnownSet(client, self._keys, record.layout, record.epoch) if record.layout.follows else None
        self._election = Election(client, self._keys, coordinator_id)

    async def run(self) -> None:
        """Return when the run is complete or cancelled. Raises SourceError, EpochLost."""
        try:
            await run_until_first_ends(self._lead(), self._wait_until_over())
        finally:
            with suppress(RedisUnavailable):  # the lease ends by itself
                await self._election.leave()

    async def _lead(self) -> None:
        """Gain the lead, then plan and let the janitor work. When one of these ends, begin again from Redis' cursor."""
        while True:
            await retry_unavailable(self._election.gain, "coordinator")
            try:
                frontier = () if self._following is None else (self._plan_frontier(self._following),)
                await run_until_first_ends(self._election.keep(), self._plan_rest(), self._watch_queue(), *frontier)
            except RedisUnavailable as error:
                logger.warning("coordinator waits: %s", error)
                await asyncio.sleep(REDIS_RETRY_SECONDS)

    async def _plan_rest(self) -> None:
        """Plan the rest of the source, then wait until cancelled. Returns only when another coordinator leads."""
        with translate_redis_errors():
            cursor, exhausted = await self._client.hmget(self._keys.state, "cursor", "exhausted")
        if exhausted == b"1" or await self._plan(_usable(as_text(cursor or FIRST_CURSOR))):
            await asyncio.Event().wait()

    async def _watch_queue(self) -> None:
        """Let the janitor work. Returns only when keys were missing and the source must be planned again.

        The janitor must work while the planner does: in a queue that lost its keys, the planner would wait for room for
        ever. Raises SourceError.
        """
        layout, epoch = self._record.layout, self._record.epoch
        janitor = Janitor(
            self._client,
            self._keys,
            layout,
            epoch,
            self._coordinator_id,
            self._keys_per_request,
            self._single_requests,
        )
        if await janitor.watch():
            await asyncio.Event().wait()  # the run is over: `_wait_until_over` returns, and this is cancelled
        elif not self._rereadable:
            raise SourceError(
                f"keys vanished from the queue of run {self._record.name}, and a pipe cannot be read again: "
                "give the same input to a run with another --name"
            )

    async def _plan(self, cursor: str) -> bool:
        """Plan the source from this cursor on; False when another coordinator leads now."""
        source = await asyncio.to_thread(self._open_corpus, Cursor.parse(cursor))
        try:
            return await Planner(
                coordinator_id=self._coordinator_id,
                source=source,
                cursor=cursor,
                streams=self._streams,
                done=self._done,
                layout=self._record.layout,
                counts=self._counts,
                high_water=self._high_water,
                keys_per_request=self._keys_per_request,
                single_requests=self._single_requests,
                fill_seconds=self._fill_seconds,
                known=self._known if self._following is not None and self._following.covers_source else None,
                failpoint=self._failpoint,
            ).plan()
        finally:
            source.close()

    async def _plan_frontier(self, following: Following) -> None:
        """Publish what pages have named. Returns only when another coordinator leads."""
        await FrontierPlanner(
            coordinator_id=self._coordinator_id,
            frontier=Frontier(self._client, self._keys, self._record.layout, self._record.epoch),
            done=self._done,
            layout=self._record.layout,
            counts=self._counts,
            read_found=following.read_found,
            high_water=self._high_water,
            keys_per_request=following.keys_per_request,
            by_level=following.by_level,
            most=following.most,
            failpoint=self._failpoint,
        ).plan()

    async def _counts(self) -> RunCounts:
        return await read_counts(self._client, self._record.name, self._record.total)

    async def _wait_until_over(self) -> None:
        runs = Runs(self._client)
        while True:
            state = await retry_unavailable(lambda: runs.state(self._record.name), "coordinator")
            if state is not None and state.is_over:
                return
            await asyncio.sleep(STATE_POLL_SECONDS)
