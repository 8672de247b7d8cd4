"""Limits that are changed while a run goes on: how they are written in Redis, and the door to change them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import msgpack
from redis.asyncio import Redis

from coordinator.redis.connection import translate_redis_errors
from coordinator.redis.keys import RunKeys
from coordinator.redis.scripts import Script
from coordinator.settings import LimitSettings, Window

KEEP, DEFAULT = None, ""


@dataclass(frozen=True, slots=True)
class LimitOverride:
    """What was changed at one upstream, over the job's limit. None: nothing; `concurrency` 0: no bound."""

    rate: LimitSettings | None = None
    concurrency: int | None = None

    def over(self, limit: LimitSettings) -> LimitSettings:
        """The limit that holds."""
        rate = self.rate or limit
        concurrency = limit.concurrency if self.concurrency is None else self.concurrency or None
        return LimitSettings(rate.windows, rate.auto, concurrency)

    @classmethod
    def decode(cls, rate: bytes, concurrency: bytes) -> LimitOverride | None:
        """From the two fields in Redis, empty where nothing was changed; None when nothing was."""
        if not rate and not concurrency:
            return None
        return cls(decode_rate(rate) if rate else None, int(concurrency) if concurrency else None)


class LimitOverrides:
    """Changes a run's limits while it goes on; every worker hears of it within 50 ms."""

    def __init__(self, client: Redis, keys: RunKeys) -> None:
        self._keys = keys
        self._override_limit = Script(client, "limits/override_limit")

    async def change(
        self, upstream: str, rate: LimitSettings | str | None = KEEP, concurrency: int | str | None = KEEP
    ) -> bool:
        """Change what is not KEEP; DEFAULT goes back to the job's own, concurrency 0 means no bound.

        Returns whether the run goes on. Raises RedisUnavailable.
        """
        arguments: list[str | bytes | int] = [upstream]
        if rate is not KEEP:
            arguments += ["rate", encode_rate(rate) if isinstance(rate, LimitSettings) else rate]
        if concurrency is not KEEP:
            arguments += ["concurrency", concurrency]
        with translate_redis_errors():
            return bool(
                await self._override_limit([self._keys.state, self._keys.limits, self._keys.changes], arguments)
            )


@lru_cache(maxsize=1000)
def encode_rate(limit: LimitSettings) -> bytes:
    """The rate of a limit as scripts read it: msgpack of [auto, [[count, seconds], …]], shortest window first."""
    encoded: bytes = msgpack.packb([limit.auto, [[window.count, window.seconds] for window in limit.windows]])
    return encoded


def decode_rate(encoded: bytes) -> LimitSettings:
    """The rate from msgpack, without a concurrency."""
    auto, windows = msgpack.unpackb(encoded)
    return LimitSettings(tuple(Window(count, seconds) for count, seconds in windows), auto)
