"""The fleet's rate at each upstream: slots booked ahead in Redis, pauses and breakers that stop everybody.

A script books the next evenly spaced slots (GCRA on Redis TIME), at most 200 ms ahead; the worker sleeps until each
one. Measured: 1,000/s at 40 calls/s with -0.13 % error, where polling a bucket lost 25 % to wake-up jitter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from time import monotonic

from redis.asyncio import Redis

from coordinator.errors import RedisUnavailable
from coordinator.limits.matcher import UpstreamMatcher
from coordinator.limits.overrides import LimitOverride, encode_rate
from coordinator.redis.connection import as_text, translate_redis_errors
from coordinator.redis.keys import RunKeys
from coordinator.redis.scripts import Argument, Script
from coordinator.settings import ANY_UPSTREAM, LimitSettings

HORIZON_SECONDS = 0.2
SLOT_EXPIRY_SECONDS = 0.05
CHANGES_POLL_SECONDS = 0.05
# What came of requests is told with every so many looks: a breaker and an "auto" rate need it four times a second.
POLLS_PER_REPORT = 5
UPSTREAMS_PER_REPORT = 200
# Slots are this much further apart than the rate says: arrival jitter at the upstream then never adds up to more.
SLOT_MARGIN = 1.004


@dataclass(frozen=True, slots=True)
class Reservation:
    """When requests may leave, on the limiter's clock; with no slots, when to ask again."""

    slots: tuple[float, ...]
    again_at: float


@dataclass(slots=True)
class _State:
    """What stops or slows requests to one upstream, on this process' clock."""

    paused_until: float = 0.0
    rising_until: float = 0.0
    broken: bool = False
    shut_until: float = 0.0
    found_rate: float | None = None


@dataclass(slots=True)
class _Tally:
    """What came of requests since it was last told."""

    sent: int = 0
    throttled: int = 0
    failed: int = 0
    seconds: float = 0.0


class Limiter:
    """Everything this worker needs to stay within one run's budgets; run `watch` beside it.

    `on_change` is called when something changed that lets or forbids requests: a pause, a breaker, a live limit.
    """

    def __init__(
        self, client: Redis, keys: RunKeys, matcher: UpstreamMatcher, *, clock: Callable[[], float] = monotonic
    ) -> None:
        self._keys = keys
        self._matcher = matcher
        self.clock = clock
        self.on_change: Callable[[], None] = lambda: None
        self._reserve = Script(client, "limits/reserve")
        self._pause = Script(client, "limits/pause")
        self._changes_since = Script(client, "limits/changes_since")
        self._breaker = Script(client, "limits/breaker")
        self._auto_rate = Script(client, "limits/auto_rate")
        self._states: dict[str, _State] = {}
        self._live: dict[str, LimitOverride] = {}
        self._tallies: dict[str, _Tally] = {}
        self._heard = 0

    def needs_slots(self, upstream: str) -> bool:
        """Whether requests need a booked slot now; else only pauses bound them."""
        state = self._states.get(upstream)
        if state is not None and (state.broken or self.clock() < state.rising_until):
            return True
        return self._limit(upstream).needs_slots

    def rate(self, upstream: str) -> float | None:
        """The fleet's requests a second, as the limit allows or "auto" has found; None when unbound or unknown."""
        limit = self._limit(upstream)
        if limit.auto:
            state = self._states.get(upstream)
            return state.found_rate if state is not None else None
        return limit.rate

    def concurrency(self, upstream: str) -> int | None:
        """How many requests of the whole fleet may be in flight now; None: as many as there are."""
        return self._limit(upstream).concurrency

    def resumes_at(self, upstream: str) -> float:
        """When the upstream's pause, or its open breaker, lets requests through, on this process' clock."""
        state = self._states.get(upstream)
        return max(state.paused_until, state.shut_until) if state is not None else 0.0

    def report(self, upstream: str, sent: int = 1, throttled: int = 0, failed: int = 0, seconds: float = 0.0) -> None:
        """Count what came of requests, once each has ended.

        `throttled`: answered 429, or 503 that means it; `failed`: 5xx or no answer; `seconds`: the answers' in all.
        """
        tally = self._tallies.get(upstream)
        if tally is None:
            tally = self._tallies[upstream] = _Tally()
        tally.sent += sent
        tally.throttled += throttled
        tally.failed += failed
        tally.seconds += seconds

    async def reserve(self, upstream: str, wanted: int) -> Reservation:
        """Book up to `wanted` slots, at most a fair share (25 ms of the rate) and at most 200 ms ahead.

        Raises RedisUnavailable, RedisRefused.
        """
        limit = self._limit(upstream)
        with translate_redis_errors():
            granted, ahead, between = await self._reserve(
                [self._keys.slots(upstream), self._keys.upstreams, self._keys.changes],
                [upstream, wanted, encode_rate(limit), int(HORIZON_SECONDS * 1_000_000), SLOT_MARGIN],
            )
        first, interval = self.clock() + ahead / 1_000_000, float(between) / 1_000_000
        if granted and (state := self._state(upstream) if limit.auto else self._states.get(upstream)) is not None:
            state.shut_until = 0.0  # a probe: Redis' clock says that it may leave
            state.found_rate = SLOT_MARGIN / interval if interval else None
        return Reservation(tuple(first + index * interval for index in range(granted)), first)

    async def pause(self, upstream: str, seconds: float) -> None:
        """Stop the whole fleet at this upstream; a running pause is only ever prolonged."""
        self._hold(upstream, seconds, 0.0)
        self.on_change()
        with translate_redis_errors():
            left, ramp = await self._pause(
                [self._keys.upstreams, self._keys.changes], [upstream, int(seconds * 1_000_000)]
            )
        self._hold(upstream, left / 1_000_000, ramp / 1_000_000)

    async def watch(self) -> None:
        """Hear every 50 ms what changed, and tell four times a second what came of requests, until cancelled."""
        looks = 0
        while True:
            try:
                if looks % POLLS_PER_REPORT == 0:
                    await self._tell()
                await self._hear()
            except RedisUnavailable:
                await asyncio.sleep(1.0)  # whoever claims or completes says that Redis is away; pauses here go on
                continue
            looks += 1
            await asyncio.sleep(CHANGES_POLL_SECONDS)

    async def _hear(self) -> None:
        with translate_redis_errors():
            returned = await self._changes_since(
                [self._keys.changes, self._keys.upstreams, self._keys.limits], [self._heard]
            )
        self._heard = returned[0]
        for at in range(1, len(returned), 7):
            name, left, ramp, breaker, probe, rate, concurrency = returned[at : at + 7]
            upstream = as_text(name)
            state = self._hold(upstream, left / 1_000_000, ramp / 1_000_000)
            state.broken = bool(breaker)
            state.shut_until = self.clock() + probe / 1_000_000 if breaker == b"open" else 0.0
            live = LimitOverride.decode(rate, concurrency)
            if live is not None:
                self._live[upstream] = live
            else:
                self._live.pop(upstream, None)
        if len(returned) > 1:
            self.on_change()

    async def _tell(self) -> None:
        """Tell what was counted. What is under way when Redis goes away is not told twice: it may have arrived."""
        while self._tallies:
            names = list(islice(self._tallies, UPSTREAMS_PER_REPORT))
            reports: list[Argument] = []
            auto: list[Argument] = []
            for name in names:
                tally, limit = self._tallies.pop(name), self._limit(name)
                reports += [name, tally.sent, tally.failed]
                if limit.auto:
                    ceiling = limit.windows[0].count / limit.windows[0].seconds if limit.windows else 0
                    auto += [name, tally.sent, tally.throttled, int(tally.seconds * 1_000_000), ceiling]
            shared = [self._keys.upstreams, self._keys.changes, self._keys.limits]
            with translate_redis_errors():
                await self._breaker([*shared, *map(self._keys.health, names)], reports)
                if auto:
                    await self._auto_rate([self._keys.upstreams], auto)

    def _limit(self, upstream: str) -> LimitSettings:
        limit = self._matcher.limit(upstream)
        if not self._live:
            return limit
        live = self._live.get(upstream)
        if live is None and not self._matcher.has_own_limit(upstream):
            live = self._live.get(ANY_UPSTREAM)
        return live.over(limit) if live is not None else limit

    def _hold(self, upstream: str, seconds: float, ramp: float) -> _State:
        # Never lowered: an answer can be older than a pause that was set here, or that Redis has not heard of yet.
        state = self._state(upstream)
        until = self.clock() + seconds
        state.paused_until = max(state.paused_until, until)
        state.rising_until = max(state.rising_until, until + ramp)
        return state

    def _state(self, upstream: str) -> _State:
        state = self._states.get(upstream)
        if state is None:
            state = self._states[upstream] = _State()
        return state
