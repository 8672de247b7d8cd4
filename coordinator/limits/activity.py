"""What each upstream of a run was sent, in the last ten seconds and in all, as workers report it for its breaker."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import msgpack
from redis.asyncio import Redis

from coordinator.errors import RedisDamaged
from coordinator.redis.connection import MAX_NUMBER, as_text, translate_redis_errors
from coordinator.redis.keys import RunKeys

# Those that were sent to last; a run can have millions of hosts.
MOST_ACTIVE = 1000
HEALTH_SECONDS = 10
# Where `lua/limits/breaker` counts the upstreams that come after the first thousand, all together.
OTHER_UPSTREAMS = "other"
_COUNTS = re.compile(r"(\d{1,15}) (\d{1,15}) (\d{1,15})")


@dataclass(frozen=True, slots=True)
class UpstreamActivity:
    """Requests a second to one upstream, over the last ten seconds, and the share of them that failed, from 0 to 1."""

    rate: float
    failing: float


async def read_activity(client: Redis, keys: RunKeys) -> Mapping[str, UpstreamActivity]:
    """{upstream: what it was sent}, of the MOST_ACTIVE ones of the last minute. Raises RedisUnavailable."""
    try:
        with translate_redis_errors():
            names = [as_text(cast("bytes", name)) for name in await client.zrevrange(keys.active, 0, MOST_ACTIVE - 1)]
            if not names:
                return {}
            (now, _), packed = await client.time(), await client.mget([keys.health(name) for name in names])
    except RedisDamaged:
        return {}
    return {name: _activity(cast("bytes", one or b""), now) for name, one in zip(names, packed, strict=True)}


def _activity(packed: bytes, now: int) -> UpstreamActivity:
    """`packed` is described in lua/limits/breaker. The second that has just begun says nothing yet."""
    try:
        health: Any = msgpack.unpackb(packed, strict_map_key=False)
        seconds = [(at, sent, failed) for at, sent, failed in health["seconds"] if now - HEALTH_SECONDS <= at < now]
        sent, failed = sum(one[1] for one in seconds), sum(one[2] for one in seconds)
        if not 0 <= failed <= sent < MAX_NUMBER:
            raise ValueError(sent)
    except (msgpack.UnpackException, ValueError, TypeError, KeyError):
        return UpstreamActivity(0.0, 0.0)
    return UpstreamActivity(sent / HEALTH_SECONDS, failed / sent if sent else 0.0)


@dataclass(frozen=True, slots=True)
class UpstreamRequests:
    """Requests to one upstream that ended: `sent` in all; `throttled` and `failed` of them, none of them both."""

    sent: int
    throttled: int
    failed: int

    @property
    def accepted(self) -> int:
        """Those with any other response."""
        return max(0, self.sent - self.throttled - self.failed)


async def read_requests(client: Redis, keys: RunKeys) -> Mapping[str, UpstreamRequests]:
    """{upstream: its requests}, without what is not ours. Raises RedisUnavailable."""
    try:
        with translate_redis_errors():
            found = await client.hgetall(keys.requests)
    except RedisDamaged:
        return {}
    counted = ((as_text(upstream), _COUNTS.fullmatch(as_text(counts))) for upstream, counts in found.items())
    return {upstream: UpstreamRequests(*map(int, match.groups())) for upstream, match in counted if match}
