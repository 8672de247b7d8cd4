"""The budget of each upstream, as one worker of a run keeps it: slots are reserved in Redis, pauses are shared there.

A script reserves the next evenly spaced slots (GCRA on Redis TIME), at most 200 ms ahead; the worker sleeps until each
of them. Measured: 1,000/s at 40 calls/s with -0.13 % error, where polling a bucket lost 25 % to wake-up jitter.

For a worker, an upstream is in one of these states (upstream_health has the states in Redis):

    open      requests leave; each needs a slot if the limit has a rate
    paused    until `resumes_at` nothing leaves
    broken    its breaker is open: until `resumes_at` nothing leaves, then each request needs a slot, and only a probe
              gets one. While refusals opened it, one more refusal is no outcome of a key: see `is_unauthorized`
    rising    for at most 5 s after a pause or a broken state each request needs a slot, also when the limit has no rate

    open --pause(), or another worker's pause--> paused --its end--> rising --> open
    open --a change says so--> broken --a change says so--> rising --> open
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from time import monotonic
from typing import Any

from redis.asyncio import Redis

from coordinator.errors import RedisUnavailable
from coordinator.limits.change_signal import ChangeSignal
from coordinator.limits.matcher import UpstreamMatcher
from coordinator.limits.overrides import LimitOverride, encode_rate, limit_now
from coordinator.limits.tally import Tally
from coordinator.limits.upstream_health import log_refusals
from coordinator.limits.upstream_state import Reservation, UpstreamState
from coordinator.redis.connection import as_text, translate_redis_errors
from coordinator.redis.keys import RunKeys
from coordinator.redis.retrying import REDIS_RETRY_SECONDS
from coordinator.redis.scripts import Argument, Script
from coordinator.settings import LimitSettings
from coordinator.tasks import run_until_first_ends

# How far ahead slots are reserved, and after what delay a slot is not used any more.
HORIZON_SECONDS = 0.2
SLOT_EXPIRY_SECONDS = 0.05
# Between two reads of the changes, at least: many upstreams may change at once.
CHANGES_GAP_SECONDS = 0.05
# While the whole run is paused, queues look again after so long; the change that ends it wakes them.
PAUSED_RUN_LOOK_SECONDS = 60.0
# While there are results to report: a breaker and an "auto" rate need a report four times a second.
REPORT_INTERVAL_SECONDS = 0.25
# A report goes at once when so many responses in a row were refused: each of them may cost a key its outcome.
REFUSALS_PER_REPORT = 10
UPSTREAMS_PER_REPORT = 200
# The factor by which slots are further apart than the rate says: jitter on the way must not make the rate higher.
SLOT_MARGIN = 1.004
# Values that changes_since returns for each upstream.
FIELDS_PER_CHANGE = 8
# Values that breaker returns for each breaker that refusals opened, or that good probes then closed.
FIELDS_PER_BREAKER = 3


class Limiter:
    """Keeps one worker within the run's budgets, as long as `watch` runs.

    `on_change` is called when a pause, a breaker or an override has changed. `most_refused` responses in a row that
    are refused open a breaker; 0: none do.
    """

    def __init__(
        self,
        client: Redis,
        keys: RunKeys,
        matcher: UpstreamMatcher,
        *,
        most_refused: int = 0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._keys = keys
        self._matcher = matcher
        self.clock = clock
        self.on_change: Callable[[], None] = lambda: None
        self._reserve = Script(client, "limits/reserve", disposable=True)
        self._pause = Script(client, "limits/pause", disposable=True)
        self._changes_since = Script(client, "limits/changes_since", disposable=True, keeps=[keys.state])
        self._breaker = Script(client, "limits/breaker", disposable=True)
        self._auto_rate = Script(client, "limits/auto_rate", disposable=True)
        self._states: dict[str, UpstreamState] = {}
        self._overrides: dict[str, LimitOverride] = {}
        self._tallies: dict[str, Tally] = {}
        self._last_change = 0
        self.run_is_paused = False
        self._most_refused = most_refused
        self._signal, self._reading = ChangeSignal(client, keys), asyncio.Lock()
        self._has_results, self._report_due, self._reported = asyncio.Event(), asyncio.Event(), asyncio.Event()

    def needs_slots(self, upstream: str) -> bool:
        """Whether each request needs a slot now. If not, it may leave unless the upstream is paused."""
        state = self._states.get(upstream)
        if state is not None and (not state.breaker_closed or self.clock() < state.rising_until):
            return True
        return self._limit(upstream).needs_slots

    def rate(self, upstream: str) -> float | None:
        """The run's requests a second, by the limit or found by "auto"; None without a bound, or while unknown."""
        limit = self._limit(upstream)
        if limit.auto:
            return state.found_rate if (state := self._states.get(upstream)) is not None else None
        return limit.rate

    def concurrency(self, upstream: str) -> int | None:
        """How many requests of the whole run may be in flight now; None means no bound."""
        return self._limit(upstream).concurrency

    def resumes_at(self, upstream: str) -> float:
        """When the upstream's pause or open breaker lets requests through, in seconds of the limiter's clock."""
        if self.run_is_paused:
            return self.clock() + PAUSED_RUN_LOOK_SECONDS
        return max(state.paused_until, state.breaker_open_until) if (state := self._states.get(upstream)) else 0.0

    def is_broken(self, upstream: str) -> bool:
        """Whether the upstream's breaker is not closed."""
        return (state := self._states.get(upstream)) is not None and not state.breaker_closed

    def is_unauthorized(self, upstream: str) -> bool:
        """Whether refusals opened the upstream's breaker: another one says nothing of its key."""
        return (state := self._states.get(upstream)) is not None and state.unauthorized

    def report(
        self,
        upstream: str,
        sent: int = 1,
        throttled: int = 0,
        failed: int = 0,
        seconds: float = 0.0,
        undecided: int = 0,
        refused: int = 0,
    ) -> None:
        """Count the results of `sent` requests that have ended. `watch` sends the counts to Redis.

        `throttled` of them got 429, or a response that means the same; `failed` of them 5xx or no response; all took
        `seconds` together. `undecided` of them did not decide their keys. `refused` is the status of a request that was
        refused because of who asks, else 0.
        """
        if (tally := self._tallies.get(upstream)) is None:
            tally = self._tallies[upstream] = Tally()
            self._has_results.set()
        tally.sent += sent
        tally.throttled += throttled
        tally.throttled_well += throttled and not failed
        tally.failed += failed
        tally.seconds += seconds
        tally.undecided += undecided
        if refused:
            tally.add_refusal(refused, self.clock())
            if self._has_many_refusals(tally):
                self._report_due.set()
        elif sent > undecided:
            tally.good_at = self.clock()

    async def reserve(self, upstream: str, wanted: int, turn_at: float = 0.0) -> Reservation:
        """Reserve up to `wanted` slots: at most what the rate gives in 25 ms, and at most 200 ms ahead.

        `turn_at` is the `again_at` of the last reservation: this turn is kept.
        Raises RedisUnavailable, RedisRefused.
        """
        limit = self._limit(upstream)
        with translate_redis_errors():
            granted, ahead_us, between_us, again_us = await self._reserve(
                [self._keys.slots(upstream), self._keys.upstreams, self._keys.changes, self._keys.changed],
                [
                    *(upstream, wanted, encode_rate(limit), int(HORIZON_SECONDS * 1_000_000), SLOT_MARGIN),
                    int(1_000_000 * (turn_at - self.clock())) if turn_at else 0,
                ],
            )
        now, interval = self.clock(), float(between_us) / 1_000_000
        first = now + ahead_us / 1_000_000
        if granted and (state := self._state(upstream) if limit.auto else self._states.get(upstream)) is not None:
            state.breaker_open_until = 0.0  # a probe: by the clock of Redis it may leave
            state.found_rate = SLOT_MARGIN / interval if interval else None
        slots = tuple(first + index * interval for index in range(granted))
        return Reservation(slots, now + again_us / 1_000_000 if again_us else 0.0)

    async def pause(self, upstream: str, seconds: float) -> None:
        """Stop all workers at this upstream. A pause can only become longer. Raises RedisUnavailable."""
        self._state(upstream).pause(self.clock() + seconds, 0.0)
        self.on_change()
        with translate_redis_errors():
            left_us, rise_us = await self._pause(
                [self._keys.upstreams, self._keys.changes, self._keys.changed], [upstream, int(seconds * 1_000_000)]
            )
        self._state(upstream).pause(self.clock() + left_us / 1_000_000, rise_us / 1_000_000)

    def slot_missed(self, upstream: str) -> None:
        """Say that a slot expired unused. If it was a probe's, the next report makes way for another probe."""
        if self.is_broken(upstream):
            self.report(upstream, sent=0)

    async def until_reported(self, upstream: str) -> None:
        """Wait until no row of refusals is left unreported: only then is it known whether the upstream is paused."""
        while (tally := self._tallies.get(upstream)) is not None and self._has_many_refusals(tally):
            await self._reported.wait()

    async def watch(self) -> None:
        """Until cancelled: read changes as they come, and report the results of requests four times a second.

        While Redis is away there is no log line: each call that claims or completes writes one. Pauses that this
        process knows go on.
        """
        await run_until_first_ends(self._watch_changes(), self._watch_results())

    async def _watch_changes(self) -> None:
        while True:
            try:
                await self._read_changes()
                await asyncio.sleep(CHANGES_GAP_SECONDS)
                await self._signal.wait()
            except RedisUnavailable:
                await asyncio.sleep(REDIS_RETRY_SECONDS)

    async def _watch_results(self) -> None:
        while True:
            await self._has_results.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(REPORT_INTERVAL_SECONDS):
                    await self._report_due.wait()
            try:
                await (self.refresh() if self._report_due.is_set() else self._send_report())
            except RedisUnavailable:
                await asyncio.sleep(REDIS_RETRY_SECONDS)
                self._has_results.set()
                self._report_due.set()
                continue
            self._reported.set()  # wakes those who wait now, and no others
            self._reported.clear()

    async def refresh(self) -> None:
        """Report results and read changes now; `watch` does it again and again. Raises RedisUnavailable."""
        await self._send_report()
        await self._read_changes()

    async def _read_changes(self) -> None:
        keys = [self._keys.changes, self._keys.upstreams, self._keys.limits, self._keys.state, self._keys.changed]
        async with self._reading:
            with translate_redis_errors():
                self._last_change, self._signal.seen, paused, *fields = await self._changes_since(
                    keys, [self._last_change]
                )
            self._apply_changes(bool(paused), fields)

    def _apply_changes(self, paused: bool, fields: Sequence[Any]) -> None:
        was_paused, self.run_is_paused = self.run_is_paused, paused
        for at in range(0, len(fields), FIELDS_PER_CHANGE):
            name, left_us, rise_us, breaker, probe_us, status, rate, concurrency = fields[at : at + FIELDS_PER_CHANGE]
            upstream = as_text(name)
            state, now = self._state(upstream), self.clock()
            state.pause(now + left_us / 1_000_000, rise_us / 1_000_000)
            state.set_breaker(breaker, now + probe_us / 1_000_000, status)
            self._overrides.pop(upstream, None)
            if (override := LimitOverride.decode(rate, concurrency)) is not None:
                self._overrides[upstream] = override
        if fields or was_paused != self.run_is_paused:
            self.on_change()

    async def _send_report(self) -> None:
        """Send the counts of all upstreams. A report that fails is not repeated: Redis may have it already."""
        self._has_results.clear()
        self._report_due.clear()
        while self._tallies:
            upstreams = list(islice(self._tallies, UPSTREAMS_PER_REPORT))
            breaker_report: list[Argument] = [self._most_refused]
            auto_report: list[Argument] = []
            for upstream in upstreams:
                tally, limit = self._tallies.pop(upstream), self._limit(upstream)
                breaker_report += [upstream, *tally.for_breaker(self.clock())]
                if limit.auto:
                    ceiling = limit.windows[0].count / limit.windows[0].seconds if limit.windows else 0
                    auto_report += [upstream, tally.sent, tally.throttled, int(tally.seconds * 1_000_000), ceiling]
            shared_keys = [self._keys.upstreams, self._keys.changes, self._keys.limits]
            shared_keys += [self._keys.changed, self._keys.requests, self._keys.active]
            with translate_redis_errors():
                changed = await self._breaker([*shared_keys, *map(self._keys.health, upstreams)], breaker_report)
                if auto_report:
                    await self._auto_rate([self._keys.upstreams], auto_report)
            for at in range(0, len(changed), FIELDS_PER_BREAKER):
                log_refusals(as_text(changed[at]), *changed[at + 1 : at + FIELDS_PER_BREAKER])

    def _has_many_refusals(self, tally: Tally) -> bool:
        return self._most_refused > 0 and tally.refused >= min(REFUSALS_PER_REPORT, self._most_refused)

    def _limit(self, upstream: str) -> LimitSettings:
        """The limit that holds now: the job's, or what overrides it."""
        if not self._overrides:
            return self._matcher.limit(upstream)
        return limit_now(upstream, self._overrides, self._matcher)

    def _state(self, upstream: str) -> UpstreamState:
        return self._states.setdefault(upstream, UpstreamState())
