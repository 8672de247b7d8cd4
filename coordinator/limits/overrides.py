"""Overrides: limits that the user changes while a run goes on. How they are stored, and how they are changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import msgpack
from redis.asyncio import Redis

from coordinator.limits.matcher import UpstreamMatcher
from coordinator.redis.connection import translate_redis_errors
from coordinator.redis.keys import RunKeys
from coordinator.redis.scripts import Script
from coordinator.settings import ANY_UPSTREAM, LimitSettings, Window

# Arguments of `LimitOverrides.change`: leave the override as it is, or remove it.
KEEP = None
DEFAULT = ""
# Bounds on what another program may have written.
MAX_WINDOWS = 10
MAX_WINDOW_SECONDS = 100 * 86_400.0
MAX_CONCURRENCY_DIGITS = 6


@dataclass(frozen=True, slots=True)
class LimitOverride:
    """The override of one upstream. None means not overridden; `concurrency` 0 means no bound."""

    rate: LimitSettings | None = None
    concurrency: int | None = None

    def over(self, limit: LimitSettings) -> LimitSettings:
        """The limit that holds: the job's `limit`, with what is overridden."""
        rate = self.rate or limit
        concurrency = limit.concurrency if self.concurrency is None else self.concurrency or None
        return LimitSettings(rate.windows, rate.auto, concurrency)

    @classmethod
    def decode(cls, rate: bytes, concurrency: bytes) -> LimitOverride | None:
        """The override of these two fields in Redis; empty, and what is not ours, means not overridden.

        None when neither is overridden.
        """
        found = cls(decode_rate(rate) if rate else None, _decode_concurrency(concurrency))
        return None if found == _NOTHING else found


_NOTHING = LimitOverride()


def limit_now(upstream: str, overrides: Mapping[str, LimitOverride], matcher: UpstreamMatcher) -> LimitSettings:
    """Pure: the limit of an upstream that holds: the job's, with the override of itself, its host, or all others."""
    limit, override = matcher.limit(upstream), overrides.get(upstream)
    if override is None and not matcher.has_own_limit(upstream):
        host = upstream.rstrip("0123456789").removesuffix(":")  # of which every port has its limit
        override = overrides.get(host) or overrides.get(ANY_UPSTREAM)
    return limit if override is None else override.over(limit)


class LimitOverrides:
    """Changes the overrides of a run. Every worker learns of a change within 50 ms."""

    def __init__(self, client: Redis, keys: RunKeys) -> None:
        self._keys = keys
        self._override_limit = Script(client, "limits/override_limit")

    async def change(
        self, upstream: str, rate: LimitSettings | str | None = KEEP, concurrency: int | str | None = KEEP
    ) -> bool:
        """Override what is not KEEP. DEFAULT goes back to the job's limit; concurrency 0 means no bound.

        Returns False, and changes nothing, when the run is complete or unknown. Raises RedisUnavailable.
        """
        arguments: list[str | bytes | int] = [upstream]
        if rate is not KEEP:
            arguments += ["rate", encode_rate(rate) if isinstance(rate, LimitSettings) else rate]
        if concurrency is not KEEP:
            arguments += ["concurrency", concurrency]
        with translate_redis_errors():
            keys = [self._keys.state, self._keys.limits, self._keys.changes, self._keys.changed]
            changed = await self._override_limit(keys, arguments)
        return bool(changed)


@lru_cache(maxsize=1000)
def encode_rate(limit: LimitSettings) -> bytes:
    """The rate of a limit as the scripts read it: msgpack of [auto, [[count, seconds], …]], shortest window first."""
    encoded: bytes = msgpack.packb([limit.auto, [[window.count, window.seconds] for window in limit.windows]])
    return encoded


def decode_rate(encoded: bytes) -> LimitSettings | None:
    """The rate from msgpack, without a concurrency; None when it is not one of ours, or no request would ever leave."""
    try:
        auto, windows = msgpack.unpackb(encoded, max_array_len=MAX_WINDOWS)
        found = tuple(Window(count, seconds) for count, seconds in windows)
    except (msgpack.UnpackException, ValueError, TypeError):
        return None
    ours = isinstance(auto, bool) and all(map(_is_window, found))
    return LimitSettings(found, auto) if ours else None


def _is_window(window: Window) -> bool:
    numbers = all(isinstance(value, int | float) for value in (window.count, window.seconds))
    return numbers and 0 < window.seconds <= MAX_WINDOW_SECONDS and 1 <= window.count <= 1e6 * window.seconds


def _decode_concurrency(encoded: bytes) -> int | None:
    return int(encoded) if encoded.isdigit() and len(encoded) <= MAX_CONCURRENCY_DIGITS else None
