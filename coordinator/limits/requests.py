"""How many requests each upstream of a run was sent, and how they ended, as the limiter's reports count them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from redis.asyncio import Redis

from coordinator.errors import RedisDamaged
from coordinator.redis.connection import as_text, translate_redis_errors
from coordinator.redis.keys import RunKeys

# Where `lua/limits/breaker` counts the upstreams that come after the first thousand, all together.
OTHER_UPSTREAMS = "other"
_COUNTS = re.compile(r"(\d{1,15}) (\d{1,15}) (\d{1,15})")


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
