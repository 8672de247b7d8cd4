"""How long each stage of a run takes, as histograms: their bounds, their form in Redis, and what is read from there."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from coordinator.errors import RedisDamaged
from coordinator.redis.connection import as_number, as_text, translate_redis_errors
from coordinator.redis.keys import RunKeys

# Upper bounds of the buckets, in seconds; the last bucket has none.
BOUNDS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_BUCKETS = frozenset(map(str, range(len(BOUNDS) + 1)))
TOTAL_FIELD = "us"  # instead of the number of a bucket: microseconds in all


@dataclass(frozen=True, slots=True)
class StageTiming:
    """How often a stage of a run was passed, and how long that took in all; `counts` has one number for each bucket."""

    counts: tuple[int, ...]
    seconds: float

    @property
    def items(self) -> int:
        """How often it was passed."""
        return sum(self.counts)


NO_TIMES = StageTiming((), 0.0)


class Timing:
    """Counts how long one stage of a worker takes, since the worker began. `seconds` is the sum."""

    __slots__ = ("_counts", "_taken", "_taken_us", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0
        self._counts = [0] * (len(BOUNDS) + 1)
        self._taken = list(self._counts)
        self._taken_us = 0

    def add(self, seconds: float) -> None:
        """Count one item."""
        self._counts[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds

    def take(self, stage: str) -> Mapping[str, int]:
        """What was counted since the last call, as {field in Redis: how much it grows}."""
        if self._counts == self._taken:
            return {}
        pairs = enumerate(zip(self._counts, self._taken, strict=True))
        grown = {f"{stage} {bucket}": now - before for bucket, (now, before) in pairs if now > before}
        self._taken, microseconds = list(self._counts), int(self.seconds * 1_000_000)
        grown[f"{stage} {TOTAL_FIELD}"] = microseconds - self._taken_us
        self._taken_us = microseconds
        return grown


async def read_timings(client: Redis, keys: RunKeys) -> Mapping[str, StageTiming]:
    """{stage: how long it took in the run so far}; nothing when something else is there. Raises RedisUnavailable."""
    counts: dict[str, list[int]] = {}
    seconds: dict[str, float] = {}
    try:
        with translate_redis_errors():
            fields: Mapping[Any, Any] = await client.hgetall(keys.timings)
        for name, value in fields.items():
            stage, _, field = as_text(name).rpartition(" ")
            if field == TOTAL_FIELD:
                seconds[stage] = as_number(value) / 1_000_000
            elif field in _BUCKETS:
                counts.setdefault(stage, [0] * len(_BUCKETS))[int(field)] = as_number(value)
    except RedisDamaged:
        return {}
    return {stage: StageTiming(tuple(found), seconds.get(stage, 0.0)) for stage, found in counts.items()}
