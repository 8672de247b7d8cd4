"""The health of a run's upstreams as `status` shows it: pauses, breakers, found rates, and overridden limits.

An upstream has two states at a time, one of its pause and one of its breaker:

    pause     open --a response asks for a wait--> paused --its end--> rising --as long as the pause was,--> open
                                                   at most 5 s

    breaker   closed --more than 90 % of at least 20 requests in 10 s failed,
                       or 100 responses in a row ([retry] refused_in_a_row) were 401, 403 or 407--> open
              open --1, 2, 4, ... 60 s--> half-open: one probe at a time
              half-open --a probe failed--> open, twice as long
              half-open --3 probes in a row succeeded--> closed, and the rate rises as after a pause

`lua/limits/pause` and `lua/limits/breaker` change them; `lua/limits/reserve` grants the probes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import msgpack
from redis.asyncio import Redis

from coordinator.errors import RedisDamaged
from coordinator.limits.overrides import LimitOverride
from coordinator.redis.connection import as_text, translate_redis_errors
from coordinator.redis.keys import RunKeys

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class UpstreamHealth:
    """One upstream that is paused, has an open breaker, an override, or a rate found by "auto".

    `paused` is the seconds that are left of the pause, `probe_in` the seconds until the breaker lets the next request
    through. `breaker` is "closed", "open" or "half-open". When refusals opened it, `refused` of them came in a row, the
    last one with `status`. `found_rate` is requests a second.
    """

    upstream: str
    paused: float = 0.0
    breaker: str = "closed"
    probe_in: float = 0.0
    refused: int = 0
    status: int | None = None
    found_rate: float | None = None
    override: LimitOverride | None = None

    @property
    def stops_requests(self) -> bool:
        """Whether the pause or the breaker stops requests now."""
        return self.paused > 0 or self.breaker != "closed"

    @property
    def summary(self) -> str:
        """The health in words for people. Empty when there is nothing to say."""
        words = []
        if self.paused > 0:
            words.append(f"paused {self.paused:.0f} s")
        if self.status is not None:
            probe = f"next attempt in {self.probe_in:.0f} s" if self.breaker == "open" else "one attempt at a time"
            words.append(f"paused: its last {self.refused} responses were {self.status}, {probe}")
        elif self.breaker == "open":
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


async def read_upstream_health(client: Redis, keys: RunKeys) -> tuple[UpstreamHealth, ...]:
    """The upstreams of a run that have a summary, sorted by name. Raises RedisUnavailable."""
    try:
        with translate_redis_errors():
            async with client.pipeline(transaction=True) as pipe:
                pipe.time()
                pipe.hgetall(keys.upstreams)
                pipe.hgetall(keys.limits)
                (seconds, micros), records, limits = await pipe.execute()
    except RedisDamaged:  # the next worker that looks there deletes it
        return ()
    now_us = seconds * 1_000_000 + micros
    encoded_records = {as_text(upstream): record for upstream, record in records.items()}
    overrides = {as_text(field): value for field, value in limits.items()}  # "rate UPSTREAM", "concurrency UPSTREAM"
    shown = []
    for upstream in sorted(encoded_records.keys() | {field.partition(" ")[2] for field in overrides}):
        override = LimitOverride.decode(
            overrides.get(f"rate {upstream}", b""), overrides.get(f"concurrency {upstream}", b"")
        )
        try:
            record = msgpack.unpackb(encoded_records[upstream]) if upstream in encoded_records else {}
            health = _health(upstream, record, override, now_us)
            words = health.summary
        except (msgpack.UnpackException, ValueError, TypeError, AttributeError, KeyError):
            continue  # another program wrote it
        if words:
            shown.append(health)
    return tuple(shown)


def _health(upstream: str, record: dict[str, Any], override: LimitOverride | None, now_us: int) -> UpstreamHealth:
    """`record` is described in lua/fragments/upstream_record."""
    breaker = record.get("breaker")
    auto = record.get("auto")
    state = "closed"
    if breaker:
        state = "half-open" if breaker["probing"] or breaker["good"] else "open"
    return UpstreamHealth(
        upstream=upstream,
        paused=max(0.0, (record.get("ends", 0) - now_us) / 1_000_000),
        breaker=state,
        probe_in=max(0.0, (breaker["at"] - now_us) / 1_000_000) if breaker else 0.0,
        refused=breaker.get("refused", 0) if breaker else 0,
        status=breaker.get("status") if breaker else None,
        found_rate=auto["rate"] if auto else None,
        override=override,
    )


def log_refusals(upstream: str, status: int, refused: int) -> None:
    """Say that refusals opened an upstream's breaker, or, when `status` is 0, that it lets requests through again."""
    if status:
        logger.warning(
            "%s is paused: its last %d responses were %d; single requests go on. Renew the token, or what else it "
            "refuses, and start again; `shardcrawl retry` puts back the keys that were refused. If these refusals are "
            "right, set [retry] refused_in_a_row = 0",
            upstream,
            refused,
            status,
            extra={"event": "upstream_refuses"},
        )
    else:
        logger.info("%s lets requests through again", upstream, extra={"event": "upstream_accepts"})
