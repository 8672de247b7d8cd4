"""Upstreams that cannot be reached: what a worker knows of them, what it sends to Redis, and what `status` shows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from time import monotonic

import msgpack
from redis.asyncio import Redis

from coordinator.errors import RedisUnavailable
from coordinator.redis.connection import MAX_NUMBER, translate_redis_errors
from coordinator.redis.keys import RunKeys

logger = logging.getLogger(__name__)

# A heartbeat lists so many at most, those with the most keys; and so many are remembered for the log.
MAX_LISTED = 100
MAX_REMEMBERED = 10_000
# An entry whose next attempt is overdue for so long is of keys that another worker has now.
OVERDUE_SECONDS = 15.0
LOGGED_SECONDS = 3600
# More of them have no line of their own in the log.
MAX_LOGGED = 20
MAX_WORDS = 10_000


@dataclass(frozen=True, slots=True)
class UnreachableUpstream:
    """An upstream that does not respond, how many `keys` wait for it, why, and the seconds until the next attempt."""

    upstream: str
    keys: int
    fault: str
    next_attempt: float

    @property
    def summary(self) -> str:
        """The same in words for people."""
        keys = "1 key waits" if self.keys == 1 else f"{self.keys:,} keys wait"
        attempt = f"in {self.next_attempt:.0f} s" if self.next_attempt >= 0.5 else "now"
        return f"{keys} for {self.upstream}: {self.fault}, next attempt {attempt}"


class LoggedUpstreams:
    """Which upstreams are unreachable now to any worker of a run, so that each has one line in the log."""

    def __init__(self, client: Redis, keys: RunKeys) -> None:
        self._client = client
        self._name = keys.unreachable

    async def add(self, upstream: str) -> int:
        """Add an upstream; returns how many there are, 0 if it is not new. 1 when Redis does not respond."""
        try:
            with translate_redis_errors():
                is_new = await self._client.sadd(self._name, upstream)
                await self._client.expire(self._name, LOGGED_SECONDS)
                return await self._client.scard(self._name) if is_new else 0
        except RedisUnavailable:
            return 1

    async def remove(self, upstream: str) -> int:
        """Remove an upstream; returns how many there were, 0 if it was not there. 1 when Redis does not respond."""
        try:
            with translate_redis_errors():
                was_there = await self._client.srem(self._name, upstream)
                return await self._client.scard(self._name) + 1 if was_there else 0
        except RedisUnavailable:
            return 1


class UnreachableUpstreams:
    """Those of one worker. The log has one line when an upstream becomes one of them, and one when it is none any more.

    An upstream whose keys have all failed stays one of them, without keys. `logged` is for all workers.
    """

    def __init__(self, logged: LoggedUpstreams, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._logged = logged
        self._waiting: dict[str, tuple[int, str, float]] = {}  # keys, fault, and when the next attempt is
        self._known: dict[str, None] = {}

    def __contains__(self, upstream: str) -> bool:
        return upstream in self._known

    async def add(self, upstream: str, fault: str, keys: int, wait: float) -> None:
        """Say that an upstream was not reached, and that `keys` more wait, `wait` seconds, for the next attempt."""
        before, _, due = self._waiting.get(upstream, (0, "", 0.0))
        left = due - self._clock()
        if left > 0:  # several requests were in flight: their keys wait together
            keys, wait = keys + before, min(wait, left)
        await self.put(upstream, fault, keys, wait)

    async def put(self, upstream: str, fault: str, keys: int, wait: float) -> None:
        """Say that an upstream was not reached, and how many keys in all wait for the next attempt."""
        if keys:
            self._waiting[upstream] = keys, fault, self._clock() + wait
        else:
            self._waiting.pop(upstream, None)
        if upstream not in self._known:
            if len(self._known) >= MAX_REMEMBERED:
                del self._known[next(iter(self._known))]
            self._known[upstream] = None
            count = await self._logged.add(upstream)
            if 0 < count <= MAX_LOGGED:
                logger.warning("%s cannot be reached: %s", upstream, fault, extra={"event": "upstream_unreachable"})
            elif count == MAX_LOGGED + 1:
                logger.warning("further upstreams cannot be reached: see shardcrawl status")

    async def remove(self, upstream: str) -> None:
        """Say that an upstream has responded."""
        self._waiting.pop(upstream, None)
        if upstream in self._known:
            del self._known[upstream]
            if 0 < await self._logged.remove(upstream) <= MAX_LOGGED:
                logger.info("%s is reached again", upstream, extra={"event": "upstream_reached"})

    def listed(self) -> list[UnreachableUpstream]:
        """Those for which keys wait, the ones with the most keys first."""
        now = self._clock()
        for upstream in [name for name, (_, _, due) in self._waiting.items() if due + OVERDUE_SECONDS < now]:
            del self._waiting[upstream]
        listed = sorted(self._waiting.items(), key=lambda one: -one[1][0])[:MAX_LISTED]
        return [UnreachableUpstream(name, keys, fault, max(0.0, due - now)) for name, (keys, fault, due) in listed]


def encode_waits(cause: str, unreachable: Iterable[UnreachableUpstream]) -> bytes:
    """What a worker waits for, as its heartbeat sends it: a service, and upstreams; empty for nothing."""
    upstreams = [(one.upstream, one.keys, one.fault, one.next_attempt) for one in unreachable]
    return bytes(msgpack.packb((cause, upstreams))) if cause or upstreams else b""


def decode_waits(packed: bytes, age: float) -> tuple[str, list[UnreachableUpstream]]:
    """What `encode_waits` was given `age` seconds ago; nothing for what is not ours."""
    try:
        cause, upstreams = msgpack.unpackb(packed, max_array_len=MAX_LISTED, max_str_len=MAX_WORDS)
        found = [UnreachableUpstream(name, keys, fault, max(0.0, wait - age)) for name, keys, fault, wait in upstreams]
        ours = all(isinstance(one.upstream + one.fault, str) and 0 <= one.keys < MAX_NUMBER for one in found)
    except (msgpack.UnpackException, ValueError, TypeError):
        return "", []
    return (cause, found) if ours and isinstance(cause, str) else ("", [])


def merged(unreachable: Iterable[UnreachableUpstream]) -> tuple[UnreachableUpstream, ...]:
    """Those of all workers, each once, the ones with the most keys first."""
    found: dict[str, UnreachableUpstream] = {}
    for one in unreachable:
        other = found.get(one.upstream)
        found[one.upstream] = (
            one
            if other is None
            else UnreachableUpstream(
                one.upstream, one.keys + other.keys, one.fault, min(one.next_attempt, other.next_attempt)
            )
        )
    return tuple(sorted(found.values(), key=lambda one: (-one.keys, one.upstream)))
