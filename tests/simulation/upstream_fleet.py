"""Workers at one simulated upstream: real limiters and the real scripts in a real Redis, on a simulated clock."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

from redis.asyncio import Redis

from coordinator.limits.limiter import CHANGES_GAP_SECONDS, REPORT_INTERVAL_SECONDS, Limiter
from coordinator.limits.matcher import UpstreamMatcher
from coordinator.redis.keys import RunKeys
from coordinator.redis.scripts import source
from coordinator.settings import LimitSettings

BEGIN_SECONDS = 1_700_000_000.0
UPSTREAM = "example.org"
SCRIPTS = ("reserve", "pause", "changes_since", "breaker", "auto_rate")
READS_PER_REPORT = round(REPORT_INTERVAL_SECONDS / CHANGES_GAP_SECONDS)
OK, THROTTLED, FAILED = "ok", "throttled", "failed"
SLOTS_WANTED = 200
# The pause after a 429 that names no time, as fetch/retry has it.
PAUSE_SECONDS = 0.5


class RedisClock:
    """Seconds since the simulation began. Scripts that run in Redis read this clock too."""

    def __init__(self, client: Redis) -> None:
        self.now = 0.0
        self._client = client

    def __call__(self) -> float:
        return self.now

    def advance(self, now: float) -> None:
        """Set the time for who does not ask Redis; it never goes back."""
        self.now = max(self.now, now)

    async def set(self, now: float) -> None:
        """Set the time, also of scripts; it never goes back."""
        self.advance(now)
        micros = round((BEGIN_SECONDS + self.now) * 1_000_000)
        await self._client.mset({"test:seconds": micros // 1_000_000, "test:micros": micros % 1_000_000})

    def limiter(self, keys: RunKeys, limit: LimitSettings, *, most_refused: int = 0) -> Limiter:
        """A limiter on this clock. Its `watch` does not run."""
        matcher = UpstreamMatcher({UPSTREAM: limit, "*": LimitSettings()})
        limiter = Limiter(self._client, keys, matcher, most_refused=most_refused, clock=self)
        for name in SCRIPTS:
            text = source(f"limits/{name}")
            clocked = text.replace("redis.call('TIME')", "redis.call('MGET', 'test:seconds', 'test:micros')")
            assert clocked != text
            getattr(limiter, f"_{name}")._script = self._client.register_script(clocked)
        return limiter


class LeakyBucket:
    """An upstream like nginx with limit_req and nodelay: a request that finds the bucket full is not counted."""

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
    """One worker that always has requests waiting. It does one thing at a time."""

    def __init__(self, fleet: Fleet, limiter: Limiter) -> None:
        self.limiter = limiter
        self._fleet = fleet
        self._slots: list[float] = []
        self._ask_at = self._turn_at = 0.0
        self._responses: list[tuple[float, str, float]] = []
        limiter.on_change = self.ask_now

    def ask_now(self) -> None:
        self._ask_at = 0.0

    def next(self) -> float:
        """The time of its next action."""
        ask = self._slots[0] if self._slots else max(self._ask_at, self.limiter.resumes_at(UPSTREAM))
        return min(ask, self._responses[0][0]) if self._responses else ask

    async def act(self) -> None:
        """Take a response, send a request, or reserve slots."""
        now = self._fleet.clock()
        if self._responses and self._responses[0][0] <= now:
            _, what, took = heapq.heappop(self._responses)
            self.limiter.report(UPSTREAM, throttled=what == THROTTLED, failed=what == FAILED, seconds=took)
            if what == THROTTLED:
                await self._fleet.clock.set(now)
                await self.limiter.pause(UPSTREAM, PAUSE_SECONDS)
        elif self._slots:
            del self._slots[0]
            if self.limiter.resumes_at(UPSTREAM) <= now:  # slots inside a pause are void
                what, took = self._fleet.upstream(now), self._fleet.latency(now)
                self._fleet.sent.append((now, what))
                heapq.heappush(self._responses, (now + took, what, took))
        else:
            await self._fleet.clock.set(now)
            reservation = await self.limiter.reserve(UPSTREAM, SLOTS_WANTED, self._turn_at)
            self._turn_at = reservation.again_at
            self._slots, self._ask_at = list(reservation.slots), max(reservation.again_at, now + 0.001)


class Fleet:
    """Workers at one upstream.

    `upstream` returns the result of a request that is sent at a time; `latency` how many seconds it takes.
    """

    def __init__(
        self,
        clock: RedisClock,
        limiters: Sequence[Limiter],
        upstream: Callable[[float], str],
        latency: Callable[[float], float] = lambda at: 0.02,
    ) -> None:
        self.clock = clock
        self.upstream = upstream
        self.latency = latency
        self.sent: list[tuple[float, str]] = []
        self._workers = [Worker(self, limiter) for limiter in limiters]
        self._polls = 0

    async def run(self, until: float) -> None:
        """Let the workers work until that time. As in `watch`, one reads the changes only when there is a new one."""
        first, *others = [worker.limiter for worker in self._workers]
        while self.clock() < until:
            for number, worker in enumerate(self._workers):
                if (self._polls + number) % READS_PER_REPORT == 0:
                    await worker.limiter._send_report()
            await first._read_changes()
            for limiter in others:
                if limiter._signal.seen != first._signal.seen:
                    await limiter._read_changes()
            self._polls += 1
            ends = self.clock() + CHANGES_GAP_SECONDS
            while (worker := min(self._workers, key=Worker.next)).next() < ends:
                self.clock.advance(worker.next())
                await worker.act()
            await self.clock.set(ends)

    def count(self, what: str | None = None, after: float = 0.0) -> int:
        """How many requests were sent since a time: all, or those with this result."""
        return sum(at >= after and what in (None, ended) for at, ended in self.sent)
