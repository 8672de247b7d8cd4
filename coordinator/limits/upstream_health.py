"""How the upstreams of a run stand: pauses, breakers, found rates, and limits that were changed while it goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgpack
from redis.asyncio import Redis

from coordinator.limits.overrides import LimitOverride
from coordinator.redis.connection import as_text, translate_redis_errors
from coordinator.redis.keys import RunKeys


@dataclass(frozen=True, slots=True)
class UpstreamHealth:
    """One upstream that is not as the job says, or whose rate was found. Times are seconds from now.

    `breaker` is "closed", "open" or "half-open"; `probe_in` is when it lets the next request through.
    """

    upstream: str
    paused: float = 0.0
    breaker: str = "closed"
    probe_in: float = 0.0
    found_rate: float | None = None
    override: LimitOverride | None = None

    @property
    def stops_requests(self) -> bool:
        """Whether it keeps requests from leaving."""
        return self.paused > 0 or self.breaker != "closed"

    @property
    def summary(self) -> str:
        """What is the matter there, for people; empty when nothing is."""
        words = []
        if self.paused > 0:
            words.append(f"paused {self.paused:.0f} s")
        if self.breaker == "open":
            words.append(f"breaker open, probe in {self.probe_in:.0f} s")
        elif self.breaker == "half-open":
            words.append("breaker half-open")
        if self.override is not None and self.override.rate is not None:
            words.append(f"live rate {self.override.rate.rate_text}")
        if self.override is not None and self.override.concurrency is not None:
            words.append(f"live concurrency {self.override.concurrency or 'none'}")
        if self.found_rate is not None:
            words.append(f"found {self.found_rate:.3g}/s")
        return ", ".join(words)


async def upstream_health(client: Redis, keys: RunKeys) -> tuple[UpstreamHealth, ...]:
    """Every upstream of a run of which there is something to say, by name. Raises RedisUnavailable."""
    with translate_redis_errors():
        async with client.pipeline(transaction=True) as pipe:
            pipe.time()
            pipe.hgetall(keys.upstreams)
            pipe.hgetall(keys.limits)
            (seconds, micros), records, limits = await pipe.execute()
    now = seconds * 1_000_000 + micros
    fields = {as_text(name): value for name, value in limits.items()}
    packed = {as_text(name): value for name, value in records.items()}
    names = packed.keys() | {name.partition(" ")[2] for name in fields}
    found = []
    for name in sorted(names):
        record = msgpack.unpackb(packed[name]) if name in packed else {}
        live = LimitOverride.decode(fields.get(f"rate {name}", b""), fields.get(f"concurrency {name}", b""))
        health = _health(name, record, live, now)
        if health.summary:
            found.append(health)
    return tuple(found)


def _health(name: str, record: dict[str, Any], live: LimitOverride | None, now: float) -> UpstreamHealth:
    breaker, auto = record.get("breaker"), record.get("auto")
    state = "closed"
    if breaker:
        state = "half-open" if breaker["probing"] or breaker["good"] else "open"
    return UpstreamHealth(
        upstream=name,
        paused=max(0.0, (record.get("ends", 0) - now) / 1_000_000),
        breaker=state,
        probe_in=max(0.0, (breaker["at"] - now) / 1_000_000) if breaker else 0.0,
        found_rate=auto["rate"] if auto else None,
        override=live,
    )
