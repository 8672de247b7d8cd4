"""The history of a run: how many keys were done at which time, for a chart of its pace.

The janitor adds a point every five seconds. When there are too many, every second one is left out, so the history of a
run of a week is as small as that of a run of an hour. Each point has counts from the run's beginning: what is left out
takes nothing from the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import msgpack
from redis.asyncio import Redis

from coordinator.errors import RedisDamaged
from coordinator.model import Outcome
from coordinator.redis.connection import MAX_NUMBER, as_number, translate_redis_errors
from coordinator.redis.keys import RunKeys

MOST_POINTS = 512
LEAST_SECONDS = 5.0
PACE_SECONDS = 10.0
KEPT_SECONDS = 7 * 86_400


class HistoryPoint(NamedTuple):
    """A run's counts at one moment, `at` seconds since 1970: keys that were `done`, and how many of them `failed`."""

    at: float
    done: int
    failed: int
    requests: int


def is_due(points: Sequence[HistoryPoint], now: float) -> bool:
    """Pure: whether it is time for another point."""
    if not points:
        return True
    seconds = LEAST_SECONDS
    while (now - points[0].at) / seconds > MOST_POINTS:
        seconds *= 2
    return now - points[-1].at >= seconds or now < points[-1].at  # the clock was set back


def with_point(points: Sequence[HistoryPoint], point: HistoryPoint) -> Sequence[HistoryPoint]:
    """Pure: the points with one more, and without every second one when they are too many."""
    kept = [one for one in points if one.at < point.at]
    return [*(kept[::2] if len(kept) >= MOST_POINTS else kept), point]


def pace(points: Sequence[HistoryPoint], now: HistoryPoint) -> float:
    """Pure: keys a second lately: since the newest point that is ten seconds old."""
    before = next((one for one in reversed(points) if now.at - one.at >= PACE_SECONDS), points[0] if points else now)
    return max(0, now.done - before.done) / (now.at - before.at) if now.at > before.at else 0.0


class HistoryKeeper:
    """Adds points to the history of one run; its methods raise RedisUnavailable."""

    def __init__(self, client: Redis, keys: RunKeys) -> None:
        self._client = client
        self._keys = keys
        self._points: Sequence[HistoryPoint] | None = None

    async def record(self) -> None:
        """Add the counts of this moment, if it is time for that."""
        if self._points is None:
            self._points = await read_history(self._client, self._keys)
        point = await read_point(self._client, self._keys)
        if is_due(self._points, point.at):
            self._points = with_point(self._points, point)
            with translate_redis_errors():
                await self._client.set(self._keys.history, bytes(msgpack.packb(self._points)), ex=KEPT_SECONDS)


async def read_point(client: Redis, keys: RunKeys) -> HistoryPoint:
    """The counts of a run now, by the clock of Redis. Raises RedisUnavailable, RedisDamaged."""
    with translate_redis_errors():
        seconds, micros = await client.time()
        found = await client.hmget(keys.state, "requests", *(outcome.value for outcome in Outcome))
    requests, *counts = map(as_number, found)
    failed = counts[list(Outcome).index(Outcome.FAILED)]
    return HistoryPoint(round(seconds + micros / 1_000_000, 1), sum(counts), failed, requests)


async def read_history(client: Redis, keys: RunKeys) -> Sequence[HistoryPoint]:
    """The points of a run, oldest first; none where something else is there. Raises RedisUnavailable."""
    try:
        with translate_redis_errors():
            packed = await client.get(keys.history)
        points = [HistoryPoint(*point) for point in msgpack.unpackb(cast("bytes", packed or b"\x90"))]
        ours = all(isinstance(number, int | float) and 0 <= number < MAX_NUMBER for one in points for number in one)
    except (RedisDamaged, msgpack.UnpackException, ValueError, TypeError):
        return []
    return points[-MOST_POINTS - 1 :] if ours else []
