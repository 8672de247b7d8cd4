"""What origins say in their robots.txt, kept for the whole fleet: one worker asks an origin, the others wait for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from redis.asyncio import Redis

from coordinator.redis.connection import translate_redis_errors
from coordinator.redis.keys import RunKeys
from coordinator.redis.scripts import Script

# What does not hold any more is kept so much longer: it still counts while the origin does not answer.
ROBOTS_STALE_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True)
class CachedRobots:
    """What the fleet knows of one origin.

    "known": `found` holds for `seconds`. "ask": this worker is to ask within `seconds`, and `found` is what was found
    before, if anything. "wait": another worker is asking and must be done in `seconds`.
    """

    state: Literal["known", "ask", "wait"]
    seconds: float
    found: bytes


class RobotsCache:
    """One run's cache, as `worker` sees it. What was found is bytes whose meaning only the callers know.

    An origin's entry goes by itself. Both calls may be repeated; both raise RedisUnavailable.
    """

    def __init__(self, client: Redis, keys: RunKeys, worker: str) -> None:
        self._keys = keys
        self._worker = worker
        self._ask = Script(client, "robots/ask")
        self._store = Script(client, "robots/store")

    async def ask(self, origin: str, lease: float) -> CachedRobots:
        """What is known of an origin; whoever is told to ask has `lease` seconds before another worker may."""
        with translate_redis_errors():
            word, milliseconds, found = await self._ask([self._keys.robots(origin)], [self._worker, int(lease * 1000)])
        return CachedRobots(cast("Literal['known', 'ask', 'wait']", word.decode()), milliseconds / 1000, found)

    async def store(self, origin: str, found: bytes, holds: float) -> None:
        """Tell what this worker found and for how many seconds that holds; unheard when its lease has ended."""
        with translate_redis_errors():
            await self._store(
                [self._keys.robots(origin)],
                [self._worker, found, int(holds * 1000), int((holds + ROBOTS_STALE_SECONDS) * 1000)],
            )
