"""A simulated fleet at a simulated upstream, on the real scripts of a real Redis whose clock is the simulation's."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

from redis.asyncio import Redis

from coordinator.limits.limiter import CHANGES_POLL_SECONDS, POLLS_PER_REPORT, Limiter
from coordinator.limits.matcher import UpstreamMatcher
from coordinator.redis.keys import RunKeys
from coordinator.redis.scripts import source
from coordinator.settings import LimitSettings

EPOCH = 1_700_000_000.0
UPSTREAM = "example.org"
SCRIPTS = ("reserve", "pause", "changes_since", "breaker", "auto_rate")
OK, THROTTLED, FAILED = "ok", "throttled", "failed"
AT_HAND = 200
# What the retry policy asks for after a 429 that names no time.
PAUSE = 0.5


class Clock:
    """Seconds since the simulation began; Redis' scripts read the same clock."""

    def __init__(self, client: Redis) -> None:
        self.now = 0.0
        self._client = client

    def __call__(self) -> float:
        return self.now

    async def set(self, now: float) -> None:
        """Never back."""
        self.now = max(self.now, now)
        micros = round((EPOCH + self.now) * 1_000_000)
        await self._client.mset({"test:seconds": micros // 1_000_000, "test:micros": micros % 1_000_000})

    def limiter(self, keys: RunKeys, limit: LimitSettings) -> Limiter:
        """A limiter that lives by this clock; nobody runs its watch."""
        limiter = Limiter(self._client, keys, UpstreamMatcher({UPSTREAM: limit, "*": LimitSettings()}), clock=self)
        for name in SCRIPTS:
            text = source(f"limits/{name}")
            clocked = text.replace("redis.call('TIME')", "redis.call('MGET', 'test:seconds', 'test:micros')")
            assert clocked != text
            getattr(limiter, f"_{name}")._script = self._client.register_script(clocked)
        return limiter


class LeakyBucket:
    """nginx' limit_req with nodelay: a request that finds the bucket full is refused and leaves no trace in it."""

    def __init__(self, rate: float, burst: float = 5) -> None:
        self.rate = rate
        self.burst = burst
        self._level = 0.0
        self._at = 0.0

    def __call__(self, at: float) -> str:
        level = max(0.0, self._level - (at - self._at) * self.rate)
        if level > self.burst:
            return THROTTLED
        self._level, self._at = level + 1, at
        return OK


class Worker:
    """One worker that always has requests waiting; it does one thing at a time."""

    def __init__(self, fleet: Fleet, limiter: Limiter) -> None:
        self.limiter = limiter
        self._fleet = fleet
        self._slots: list[float] = []
        self._again = 0.0
        self._answers: list[tuple[float, str, float]] = []
        limiter.on_change = self.look

    def look(self) -> None:
        self._again = 0.0

    def next(self) -> float:
        """When it has something to do."""
        ask = self._slots[0] if self._slots else max(self._again, self.limiter.resumes_at(UPSTREAM))
        return min(ask, self._answers[0][0]) if self._answers else ask

    async def act(self) -> None:
        """Take an answer, send a request, or book."""
        now = self._fleet.clock()
        if self._answers and self._answers[0][0] <= now:
            _, what, took = heapq.heappop(self._answers)
            self.limiter.report(UPSTREAM, throttled=what == THROTTLED, failed=what == FAILED, seconds=took)
            if what == THROTTLED:
                await self.limiter.pause(UPSTREAM, PAUSE)
        elif self._slots:
            del self._slots[0]
            if self.limiter.resumes_at(UPSTREAM) <= now:  # a pause voids what was booked
                what, took = self._fleet.upstream(now), self._fleet.latency(now)
                self._fleet.sent.append((now, what))
                heapq.heappush(self._answers, (now + took, what, took))
        else:
            booking = await self.limiter.reserve(UPSTREAM, AT_HAND)
            self._slots, self._again = list(booking.slots), max(booking.again_at, now + 0.001)


class Fleet:
    """Workers at one upstream, which says what becomes of a request sent at a time; `latency` is seconds until then."""

    def __init__(
        self,
        clock: Clock,
        limiters: Sequence[Limiter],
        upstream: Callable[[float], str],
        latency: Callable[[float], float] = lambda at: 0.02,
    ) -> None:
        self.clock = clock
        self.upstream = upstream
        self.latency = latency
        self.sent: list[tuple[float, str]] = []
        self._workers = [Worker(self, limiter) for limiter in limiters]
        self._looks = 0

    async def run(self, until: float) -> None:
        """Let the fleet work until that time."""
        while self.clock() < until:
            for number, worker in enumerate(self._workers):
                if (self._looks + number) % POLLS_PER_REPORT == 0:
                    await worker.limiter._send_report()
                await worker.limiter._read_changes()
            self._looks += 1
            ends = self.clock() + CHANGES_POLL_SECONDS
            while (worker := min(self._workers, key=Worker.next)).next() < ends:
                await self.clock.set(worker.next())
                await worker.act()
            await self.clock.set(ends)

    def count(self, what: str | None = None, after: float = 0.0) -> int:
        """Requests sent since a time, all or those that ended so."""
        return sum(at >= after and what in (None, ended) for at, ended in self.sent)
