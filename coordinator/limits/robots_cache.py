"""The robots.txt of each origin, cached for all workers: one worker fetches it, the others wait for the result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from redis.asyncio import Redis

from coordinator.redis.connection import translate_redis_errors
from coordinator.redis.keys import RunKeys
from coordinator.redis.scripts import Argument, Script

# An expired entry is kept for this time, for use while its origin does not respond.
ROBOTS_STALE_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True)
class CachedRobots:
    """The entry of one origin.

    `state` "known": `found` is valid for `seconds`. "ask": this worker must fetch it within `seconds`; `found` is the
    expired entry, or empty. "wait": another worker fetches it, and has `seconds` left; `found` is empty.
    """

    state: Literal["known", "ask", "wait"]
    seconds: float
    found: bytes


class RobotsCache:
    """One run's cache, for one worker. Only callers know what the bytes of an entry mean.

    Redis deletes an entry some time after it expired. Both calls may be repeated; both raise RedisUnavailable.
    """

    def __init__(self, client: Redis, keys: RunKeys, worker: str) -> None:
        self._keys = keys
        self._worker = worker
        self._ask = Script(client, "robots/ask", disposable=True)
        self._store = Script(client, "robots/store", disposable=True)

    async def ask(self, origin: str, fetch_seconds: float) -> CachedRobots:
        """The entry of an origin. On "ask" this worker has `fetch_seconds` before another one may fetch it."""
        arguments: list[Argument] = [self._worker, int(fetch_seconds * 1000)]
        with translate_redis_errors():
            state, milliseconds, found = await self._ask([self._keys.robots(origin)], arguments)
        return CachedRobots(cast("Literal['known', 'ask', 'wait']", state.decode()), milliseconds / 1000, found)

    async def store(self, origin: str, found: bytes, valid_seconds: float) -> None:
        """Store what this worker fetched. Changes nothing when this worker may no longer fetch it."""
        valid_ms = int(valid_seconds * 1000)
        kept_ms = int((valid_seconds + ROBOTS_STALE_SECONDS) * 1000)
        with translate_redis_errors():
            await self._store([self._keys.robots(origin)], [self._worker, found, valid_ms, kept_ms])
