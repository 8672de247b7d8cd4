"""What the workers of a run have noticed, for `status` and the summary.

Entries of `[limits]` that a request met: one that stays alone to the run's end is perhaps misspelt. And columns that
turned null: perhaps the responses have changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from redis.asyncio import Redis

from coordinator.redis.connection import as_number, as_text, translate_redis_errors
from coordinator.redis.keys import SEEN_AFTER_END_SECONDS, RunKeys
from coordinator.redis.retrying import retry_unavailable
from coordinator.tasks import until_tick

RECORD_INTERVAL_SECONDS = 1.0
NOTHING_NULL: Mapping[str, float] = {}


@dataclass(frozen=True, slots=True)
class NullColumn:
    """A column, as table.column, that was filled and has become null; `since` is seconds since 1970."""

    name: str
    since: float

    @property
    def summary(self) -> str:
        """The same in words for people."""
        since = datetime.fromtimestamp(self.since, UTC)
        return f"{self.name} was filled, and is null in every record of 1,000 pages since {since:%Y-%m-%d %H:%M:%S} UTC"


class Notices:
    """The notices of a run in Redis.

    `matched` are the entries that this worker has met, `null_columns` the columns that turned null in it, and since
    when; both grow.
    """

    def __init__(
        self,
        client: Redis,
        keys: RunKeys,
        matched: set[str] | frozenset[str] = frozenset(),
        null_columns: Mapping[str, float] = NOTHING_NULL,
    ) -> None:
        self._client = client
        self._keys = keys
        self._matched = matched
        self._null_columns = null_columns
        self._recorded = 0

    async def watch(self) -> None:
        """Record the notices of this worker every second until cancelled; `record` them once more at the end."""
        while True:
            await self.record()
            await asyncio.sleep(until_tick(RECORD_INTERVAL_SECONDS))

    async def record(self) -> None:
        """Record the notices of this worker, if there are new ones. Waits while Redis does not respond."""
        count = len(self._matched) + len(self._null_columns)
        if count > self._recorded:
            names, null_columns = tuple(self._matched), dict(self._null_columns)
            await retry_unavailable(lambda: self.add(names, null_columns), "notices")
            self._recorded = count

    async def add(self, matched: Iterable[str], null_columns: Mapping[str, float] = NOTHING_NULL) -> None:
        """Record that these entries were met, and these columns turned null. Raises RedisUnavailable."""
        with translate_redis_errors():
            if names := tuple(matched):
                await self._client.sadd(self._keys.matched_limits, *names)
            for name, since in null_columns.items():
                await self._client.hsetnx(self._keys.null_columns, name, str(int(since)))
            state = await self._client.hget(self._keys.state, "state")
            if state not in (b"running", b"resolved"):  # this worker is the last one to leave
                await self._client.expire(self._keys.matched_limits, SEEN_AFTER_END_SECONDS)
                await self._client.expire(self._keys.null_columns, SEEN_AFTER_END_SECONDS)

    async def without_match(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of the names that no worker has met. Raises RedisUnavailable."""
        with translate_redis_errors():
            met = {as_text(name) for name in await self._client.smembers(self._keys.matched_limits)}
        return tuple(name for name in names if name not in met)

    async def turned_null(self) -> tuple[NullColumn, ...]:
        """The columns that turned null in any worker, by name. Raises RedisUnavailable, RedisDamaged."""
        with translate_redis_errors():
            found = await self._client.hgetall(self._keys.null_columns)
        columns = (NullColumn(as_text(name), as_number(since)) for name, since in found.items())
        return tuple(sorted(columns, key=lambda column: column.name))
