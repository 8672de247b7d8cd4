"""The scheduler in virtual time: which request may leave when, what waits, and that none is lost or taken twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from itertools import pairwise
from random import Random
from typing import Any

import pytest

from coordinator.errors import EpochLost, RedisUnavailable
from coordinator.model import Attempts, Presence, RunState
from crawler.model import Request
from crawler.pipeline.pacer import SLOT_GATHER_SECONDS
from crawler.pipeline.scheduler import (
    MAX_WAITING_REQUESTS,
    OVERFLOW_DEFER_SECONDS,
    OVERFLOW_REQUESTS,
    Scheduler,
)
from tests.crawler.examples import a_request
from tests.servers.scripted import ScriptedLimiter
from tests.simulation.virtual_loop import BACKEND, freeze, now, run_ready_tasks

pytestmark = pytest.mark.anyio

ATTEMPTED = Attempts(1)
NEVER = 1e9


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return BACKEND


def a_scheduler(limiter: ScriptedLimiter | None = None, enough: int = 10) -> Scheduler:
    double: Any = limiter or ScriptedLimiter()
    return Scheduler(double, enough=enough, lanes=1000)


def present(rank: int, size: int, turn: int = 0) -> Presence:
    return Presence(rank, size, RunState.RUNNING, turn=turn)


def fill(scheduler: Scheduler, upstream: str, count: int) -> list[Request]:
    """Put so many requests; the upstream has responded before."""
    scheduler.reached.add(upstream)
    requests = [a_request(f"{upstream}{number}", upstream) for number in range(count)]
    for request in requests:
        scheduler.put(request)
    return requests


def names(requests: Iterable[Request]) -> list[str]:
    return [request.items[0].key for request in requests]


class Crew:
    """Lanes that send requests; each takes as long as `seconds` says, for ever where it says None."""

    def __init__(self, scheduler: Scheduler, lanes: int, seconds: dict[str, float | None] | None = None) -> None:
        self._scheduler = scheduler
        self._seconds = seconds or {}
        self.sent: list[tuple[float, Request]] = []
        self.in_flight: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.tasks = [asyncio.create_task(self._serve()) for _ in range(lanes)]

    async def _serve(self) -> None:
        while True:
            request = await self._scheduler.next()
            upstream = request.upstream
            self.sent.append((now(), request))
            self.in_flight[upstream] += 1
            self.most[upstream] = max(self.most[upstream], self.in_flight[upstream])
            try:
                seconds = self._seconds.get(upstream, 0.0)
                await asyncio.sleep(NEVER if seconds is None else seconds)
            finally:
                self.in_flight[upstream] -= 1
                self._scheduler.finished(upstream)

    def to(self, upstream: str) -> list[float]:
        """When requests were sent to this upstream."""
        return [at for at, request in self.sent if request.upstream == upstream]

    async def until(self, condition: Callable[[], bool], within: float = 1_000.0) -> float:
        """Work until the condition holds; returns how many seconds that took."""
        began = now()
        async with asyncio.timeout(within):
            while not condition():
                if over := next((task for task in self.tasks if task.done()), None):
                    over.result()
                await asyncio.sleep(0.001)
        return now() - began


@asynccontextmanager
async def crew(
    scheduler: Scheduler, lanes: int = 1, seconds: dict[str, float | None] | None = None
) -> AsyncIterator[Crew]:
    group = Crew(scheduler, lanes, seconds)
    try:
        yield group
    finally:
        for task in group.tasks:
            task.cancel()
        await asyncio.gather(*group.tasks, return_exceptions=True)
        await scheduler.close()


# -- no upstream holds up another


async def test_paused_slow_and_full_upstreams_hold_no_lane_and_the_others_go_on_at_full_speed() -> None:
    limiter = ScriptedLimiter(rates={"slow": 2.0}, concurrencies={"full": 1})
    limiter.paused_until["paused"] = now() + NEVER
    scheduler = a_scheduler(limiter)
    for upstream in ("paused", "slow", "full"):
        fill(scheduler, upstream, 200)
    fill(scheduler, "quick", 2_000)
    async with crew(scheduler, 10, {"full": None, "quick": 0.1}) as lanes:
        took = await lanes.until(lambda: len(lanes.to("quick")) == 2_000)
        # One lane is in flight at `full`, and one at most waits for a slot at `slow`, for 200 ms of each 500.
        assert took < 2_000 * 0.1 / 8.5
        assert len(lanes.to("full")) == 1
        assert lanes.to("paused") == []
        assert len(lanes.to("slow")) == pytest.approx(2 * took, abs=2)


async def test_it_is_empty_when_no_request_waits_is_parked_or_in_flight() -> None:
    scheduler = a_scheduler()
    assert scheduler.empty
    (request,) = fill(scheduler, "a", 1)
    assert not scheduler.empty
    assert await scheduler.next() is request
    assert not scheduler.empty
    scheduler.put(request, 5.0)
    scheduler.finished("a")
    assert not scheduler.empty
    assert await scheduler.next() is request
    scheduler.finished("a")
    assert scheduler.empty


async def test_queues_take_turns_whatever_their_lengths() -> None:
    scheduler = a_scheduler()
    for upstream, count in (("a", 50), ("b", 3), ("c", 2)):
        fill(scheduler, upstream, count)
    async with crew(scheduler) as lanes:
        await lanes.until(lambda: len(lanes.sent) == 55)
    order = names(request for _, request in lanes.sent)
    assert order[:9] == ["a0", "b0", "c0", "a1", "b1", "c1", "a2", "b2", "a3"]
    assert order[9:] == [f"a{number}" for number in range(4, 50)]


async def test_many_lanes_take_from_all_queues_evenly() -> None:
    scheduler = a_scheduler()
    for upstream in "abcd":
        fill(scheduler, upstream, 100)
    async with crew(scheduler, 7, dict.fromkeys("abcd", 0.05)) as lanes:
        await lanes.until(lambda: len(lanes.sent) >= 200)
        counts = Counter(request.upstream for _, request in lanes.sent[:200])
    assert max(counts.values()) - min(counts.values()) <= 2


# -- requests that were attempted before


async def test_a_parked_request_comes_first_in_its_queue_and_not_before_its_time() -> None:
    scheduler = a_scheduler()
    began = now()
    scheduler.put(a_request("parked", "a", ATTEMPTED), 1.0)
    fill(scheduler, "a", 300)
    async with crew(scheduler, 1, {"a": 0.01}) as lanes:
        await lanes.until(lambda: len(lanes.sent) == 301)
    (place,) = [index for index, (_, request) in enumerate(lanes.sent) if names([request]) == ["parked"]]
    at = lanes.sent[place][0]
    assert at - began == pytest.approx(1.0, abs=0.02)
    assert len(lanes.sent) - place > 150


async def test_a_request_that_was_attempted_and_need_not_wait_comes_first_at_once() -> None:
    scheduler = a_scheduler()
    fill(scheduler, "a", 3)
    scheduler.put(a_request("throttled", "a", Attempts(0, 1)))
    async with crew(scheduler) as lanes:
        await lanes.until(lambda: len(lanes.sent) == 4)
    assert names(request for _, request in lanes.sent) == ["throttled", "a0", "a1", "a2"]


# -- slots and pauses


async def test_a_rate_is_kept_with_few_reservations() -> None:
    limiter = ScriptedLimiter(rates={"a": 1_000.0})
    scheduler = a_scheduler(limiter)
    fill(scheduler, "a", 2_000)
    async with crew(scheduler, 64, {"a": 0.02}) as lanes:
        took = await lanes.until(lambda: len(lanes.sent) == 1_900)
    assert took == pytest.approx(1.9, rel=0.02)
    assert len(limiter.calls) <= took / SLOT_GATHER_SECONDS


async def test_a_slot_that_has_expired_is_dropped() -> None:
    limiter = ScriptedLimiter(rates={"a": 20.0})
    scheduler = a_scheduler(limiter)
    fill(scheduler, "a", 40)
    async with crew(scheduler, 10) as lanes:
        await lanes.until(lambda: len(lanes.sent) == 8)
        assert any(slot > now() for slot in limiter.reserved["a"])
        stale = [slot for slot in limiter.reserved["a"] if slot > now()]
        freeze(5.0)
        await lanes.until(lambda: len(lanes.sent) == 40)
    times = lanes.to("a")
    after = [at for at in times if at > stale[-1]]
    assert len(after) == 32
    assert after[0] >= stale[0] + 5.0 - 0.2
    assert min(second - first for first, second in pairwise(after)) >= 0.9 / 20, "no burst after the thaw"


async def test_a_pause_voids_the_slots_that_lanes_wait_for_and_frees_the_lanes() -> None:
    limiter = ScriptedLimiter(rates={"a": 10.0})
    scheduler = a_scheduler(limiter)
    fill(scheduler, "a", 20)
    async with crew(scheduler, 2) as lanes:
        await lanes.until(lambda: len(lanes.sent) == 3)
        fill(scheduler, "b", 10)
        began = now()
        await limiter.pause("a", 3.0)
        await lanes.until(lambda: len(lanes.to("b")) == 10)
        assert now() - began <= 0.25
        await lanes.until(lambda: len(lanes.to("a")) == 20)
    assert lanes.to("a")[3] >= began + 3.0
    assert names(request for _, request in lanes.sent if request.upstream == "a") == [f"a{n}" for n in range(20)]


async def test_a_pause_that_is_prolonged_holds_to_its_new_end() -> None:
    limiter = ScriptedLimiter()
    scheduler = a_scheduler(limiter)
    await limiter.pause("a", 1.0)
    began = now()
    fill(scheduler, "a", 2)
    async with crew(scheduler) as lanes:
        await asyncio.sleep(0.5)
        await limiter.pause("a", 10.0)
        await lanes.until(lambda: len(lanes.sent) == 2)
    assert now() - began == pytest.approx(10.5, abs=0.01)


async def test_after_a_breaker_has_closed_early_requests_leave_at_once_and_are_at_hand_again() -> None:
    limiter = ScriptedLimiter()
    scheduler = a_scheduler(limiter, enough=5)
    await limiter.pause("a", 30.0)
    first, *_ = fill(scheduler, "a", 1)
    async with crew(scheduler) as lanes:
        await run_ready_tasks()
        assert lanes.sent == []
        limiter.paused_until.clear()
        limiter.on_change()
        assert await lanes.until(lambda: len(lanes.sent) == 1) < 0.1
        await lanes.until(lambda: not scheduler.queues)
        fill(scheduler, "a", 1)
        assert await lanes.until(lambda: len(lanes.sent) == 2) < 0.1
    assert lanes.sent[0][1] is first
    fill(scheduler, "a", 5)
    assert not scheduler.low


async def test_a_reservation_waits_for_redis_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    limiter = ScriptedLimiter(rates={"a": 100.0})
    limiter.errors = [RedisUnavailable("Redis does not answer")] * 3
    scheduler = a_scheduler(limiter)
    fill(scheduler, "a", 5)
    fill(scheduler, "b", 5)
    async with crew(scheduler, 3) as lanes:
        assert await lanes.until(lambda: len(lanes.to("b")) == 5) < 0.1
        assert await lanes.until(lambda: len(lanes.to("a")) == 5) < 4.0
    assert len(limiter.calls) < 12, "once a second while Redis is away"
    assert caplog.messages == ["rate limit of a waits for Redis: Redis does not answer"] * 3


@pytest.mark.parametrize("lanes_busy", [False, True])
async def test_an_error_in_a_reservation_reaches_the_lanes(lanes_busy: bool) -> None:
    limiter = ScriptedLimiter(rates={"a": 1.0}, errors=[EpochLost("another run")] * 10)
    scheduler = a_scheduler(limiter)
    if lanes_busy:
        fill(scheduler, "b", 2)
        limiter.latency = 0.5
    async with crew(scheduler, 3, {"b": 2.0}) as lanes:
        await run_ready_tasks()
        fill(scheduler, "a", 1)
        done, _ = await asyncio.wait(lanes.tasks, timeout=0.6)
        assert done
        done, pending = await asyncio.wait(lanes.tasks, timeout=10)
        assert len(done) == 3, "also those that were busy when it happened"
        assert {type(task.exception()) for task in done} == {EpochLost}
        assert not pending


# -- shares of an upstream's concurrency


async def test_no_more_are_in_flight_than_the_share() -> None:
    limiter = ScriptedLimiter(concurrencies={"a": 3})
    scheduler = a_scheduler(limiter)
    fill(scheduler, "a", 30)
    fill(scheduler, "b", 30)
    async with crew(scheduler, 20, {"a": 1.0, "b": 1.0}) as lanes:
        assert await lanes.until(lambda: len(lanes.sent) == 60) == pytest.approx(9.0, abs=0.1)
    assert lanes.most["a"] == 3
    assert lanes.most["b"] >= 17


async def test_a_larger_share_comes_a_heartbeat_late_and_wakes_those_who_wait() -> None:
    scheduler = a_scheduler(ScriptedLimiter(concurrencies={"a": 8}))
    scheduler.resize(present(0, 4))
    scheduler.resize(present(0, 4))
    fill(scheduler, "a", 20)
    async with crew(scheduler, 20, {"a": None}) as lanes:
        await run_ready_tasks()
        assert lanes.in_flight["a"] == 2
        scheduler.resize(present(0, 2))
        await run_ready_tasks()
        assert lanes.in_flight["a"] == 2
        scheduler.resize(present(0, 2))
        await run_ready_tasks()
        assert lanes.in_flight["a"] == 4


async def test_a_smaller_share_holds_at_once_until_enough_are_back() -> None:
    scheduler = a_scheduler(ScriptedLimiter(concurrencies={"a": 4}))
    fill(scheduler, "a", 12)
    async with crew(scheduler, 12, {"a": 1.0}) as lanes:
        await run_ready_tasks()
        assert lanes.in_flight["a"] == 4
        scheduler.resize(present(0, 4))
        await lanes.until(lambda: len(lanes.sent) == 6)
        assert lanes.in_flight["a"] == 1
        times = lanes.to("a")
    assert times[5] - times[4] == pytest.approx(1.0, abs=0.01)


async def test_with_a_share_of_zero_no_request_leaves_until_the_turn_comes() -> None:
    scheduler = a_scheduler(ScriptedLimiter(concurrencies={"a": 1}))
    scheduler.resize(present(1, 2))
    fill(scheduler, "a", 3)
    fill(scheduler, "b", 3)
    async with crew(scheduler, 2) as lanes:
        await lanes.until(lambda: len(lanes.to("b")) == 3)
        assert scheduler.would_only_wait("a")
        assert lanes.to("a") == []
        for _ in range(2):
            scheduler.resize(present(1, 2, turn=1))
        await lanes.until(lambda: len(lanes.to("a")) == 3)
        assert not scheduler.would_only_wait("a")


async def test_a_limit_that_is_changed_while_the_run_goes_on_holds_at_once() -> None:
    limiter = ScriptedLimiter(concurrencies={"a": 1})
    scheduler = a_scheduler(limiter)
    fill(scheduler, "a", 10)
    async with crew(scheduler, 10, {"a": None}) as lanes:
        await run_ready_tasks()
        limiter.concurrencies["a"] = 6
        limiter.on_change()
        await run_ready_tasks()
        assert lanes.in_flight["a"] == 6


# -- how much is at hand


@pytest.mark.parametrize(
    ("limits", "waiting", "at_hand"),
    [
        ({}, 500, 500),
        ({"rates": {"a": 20.0}}, 500, 40),
        ({"rates": {"a": 20.0}}, 30, 30),
        ({"rates": {"a": 0.01}}, 500, 1),
        ({"concurrencies": {"a": 7}}, 500, 28),
        ({"concurrencies": {"a": 7}, "rates": {"a": 5.0}}, 500, 10),
        ({"paused_until": {"a": NEVER}}, 500, 0),
    ],
)
async def test_only_what_an_upstream_takes_within_a_moment_is_at_hand(
    limits: dict[str, Any], waiting: int, at_hand: int
) -> None:
    limiter = ScriptedLimiter(**limits)
    scheduler = a_scheduler(limiter, enough=at_hand + 20)
    fill(scheduler, "a", waiting)
    if limiter.paused_until:
        scheduler._pick()  # it meets the pause
    fill(scheduler, "b", 19)
    assert scheduler.low
    fill(scheduler, "c", 1)
    assert not scheduler.low


async def test_a_long_queue_of_one_upstream_does_not_keep_blocks_from_another_that_has_run_dry() -> None:
    """After a pause there is plenty for the one, and nothing for the other."""
    limiter = ScriptedLimiter(rates={"a": 10.0, "b": 10.0})
    scheduler = a_scheduler(limiter, enough=10)
    fill(scheduler, "a", 500)
    fill(scheduler, "b", 12)
    async with crew(scheduler, 4) as lanes:
        assert not scheduler.low
        await lanes.until(lambda: len(lanes.to("b")) == 12)
        await asyncio.wait_for(scheduler.until_low(), 1.0)
        fill(scheduler, "a", 5)  # one block is asked for each time, not block after block: the other may be over
        assert not scheduler.low


async def test_the_intake_is_woken_when_too_little_is_left_or_a_pause_begins() -> None:
    limiter = ScriptedLimiter()
    scheduler = a_scheduler(limiter, enough=10)
    await scheduler.until_low()
    fill(scheduler, "a", 12)
    wanted = asyncio.create_task(scheduler.until_low())
    async with crew(scheduler, 1, {"a": 1.0}):
        await asyncio.sleep(1.5)
        assert not wanted.done()
        await asyncio.sleep(1.0)
        assert wanted.done()
        fill(scheduler, "a", 10)
        wanted = asyncio.create_task(scheduler.until_low())
        await run_ready_tasks()
        assert not wanted.done()
        await limiter.pause("a", 30.0)
        await asyncio.sleep(1.5)
        assert wanted.done()
        await asyncio.sleep(28.0)
        assert scheduler.low
        await asyncio.sleep(2.0)
        assert not scheduler.low, "what waited for the pause's end is at hand again"


async def test_a_request_would_only_wait_while_the_upstream_pauses_or_has_enough_queued() -> None:
    limiter = ScriptedLimiter(rates={"a": 10.0})
    scheduler = a_scheduler(limiter, enough=64)
    assert not scheduler.would_only_wait("a")
    fill(scheduler, "a", 20)
    assert not scheduler.would_only_wait("a")
    fill(scheduler, "a", 1)
    assert scheduler.low
    assert scheduler.would_only_wait("a"), "a slow upstream must not pull a whole corpus into one worker"
    await limiter.pause("b", 1.0)
    assert scheduler.would_only_wait("b")
    await asyncio.sleep(1.1)
    assert not scheduler.would_only_wait("b")


# -- too many requests wait


async def test_when_too_many_wait_half_of_the_longest_queue_is_removed_from_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("crawler.pipeline.scheduler.MAX_WAITING_REQUESTS", 100)
    scheduler = a_scheduler()
    fill(scheduler, "b", 20)
    fill(scheduler, "a", 78)
    scheduler.put(a_request("parked", "c", ATTEMPTED), 5.0)
    assert list(scheduler.overflow()) == []
    fill(scheduler, "c", 1)
    removed = list(scheduler.overflow())
    assert names(request for request, _ in removed) == [f"a{number}" for number in range(77, 38, -1)]
    assert all(OVERFLOW_DEFER_SECONDS <= delay <= 2 * OVERFLOW_DEFER_SECONDS for _, delay in removed)
    assert len({delay for _, delay in removed}) > 30, "they do not all come back at once"
    assert list(scheduler.overflow()) == []
    async with crew(scheduler, 3) as lanes:
        await lanes.until(lambda: len(lanes.sent) == 61)
    assert not set(names(request for _, request in lanes.sent)) & set(names(request for request, _ in removed))


async def test_only_a_thousand_leave_at_once_and_the_next_ones_when_more_come() -> None:
    scheduler = a_scheduler()
    fill(scheduler, "a", MAX_WAITING_REQUESTS)
    assert len(scheduler.overflow()) == OVERFLOW_REQUESTS
    assert scheduler.overflow() == []
    fill(scheduler, "a", OVERFLOW_REQUESTS)
    assert len(scheduler.overflow()) == OVERFLOW_REQUESTS


async def test_the_overflow_of_a_paused_queue_is_deferred_until_after_the_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("crawler.pipeline.scheduler.MAX_WAITING_REQUESTS", 10)
    limiter = ScriptedLimiter()
    scheduler = a_scheduler(limiter)
    await limiter.pause("a", 600.0)
    fill(scheduler, "a", 10)
    assert all(
        600 + OVERFLOW_DEFER_SECONDS <= delay <= 600 + 2 * OVERFLOW_DEFER_SECONDS for _, delay in scheduler.overflow()
    )
    assert len(list(scheduler.overflow())) == 0


async def test_there_is_no_overflow_when_all_that_waits_is_parked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crawler.pipeline.scheduler.MAX_WAITING_REQUESTS", 10)
    scheduler = a_scheduler()
    for number in range(20):
        scheduler.put(a_request(str(number), attempts=ATTEMPTED), 1.0)
    assert list(scheduler.overflow()) == []
    await asyncio.sleep(1.5)
    assert len(list(scheduler.overflow())) == 10


# -- nothing is kept of what is over


@pytest.mark.parametrize("limits", [{}, {"rates": "all"}, {"concurrencies": "all"}, {"paused_until": "all"}])
async def test_thousands_of_hosts_are_forgotten_when_they_are_done(limits: dict[str, Any]) -> None:
    hosts = [f"host-{number}" for number in range(2_000)]
    figure = {"rates": 5.0, "concurrencies": 1, "paused_until": now() + 2.0}
    scheduler = a_scheduler(ScriptedLimiter(**{name: dict.fromkeys(hosts, figure[name]) for name in limits}))
    for host in hosts:
        scheduler.put(a_request("key", host))
    async with crew(scheduler, 50) as lanes:
        await lanes.until(lambda: len(lanes.sent) == 2_000)
        await run_ready_tasks()
        assert len({request.upstream for _, request in lanes.sent}) == 2_000
        assert not scheduler.queues
        assert not scheduler.ready
        assert scheduler._at_hand == scheduler.waiting == 0


async def test_a_queue_that_was_emptied_while_it_paused_is_forgotten_after_the_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("crawler.pipeline.scheduler.MAX_WAITING_REQUESTS", 1)
    limiter = ScriptedLimiter()
    scheduler = a_scheduler(limiter)
    await limiter.pause("a", 5.0)
    fill(scheduler, "a", 1)
    assert scheduler._pick() is None
    assert len(list(scheduler.overflow())) == 1
    assert scheduler.queues
    await asyncio.sleep(6.0)
    assert not scheduler.queues


async def test_a_queue_that_was_emptied_while_slots_are_reserved_is_forgotten_after_that(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("crawler.pipeline.scheduler.MAX_WAITING_REQUESTS", 1)
    limiter = ScriptedLimiter(rates={"a": 5.0})
    scheduler = a_scheduler(limiter)
    fill(scheduler, "a", 1)
    assert scheduler._pick() is None
    await run_ready_tasks()
    assert len(limiter.calls) == 1
    assert len(list(scheduler.overflow())) == 1
    await asyncio.sleep(1.0)
    assert not scheduler.queues
    assert not caplog.messages


async def test_a_new_queue_of_an_upstream_is_served_although_its_forgotten_one_is_still_in_the_ready_list() -> None:
    scheduler = a_scheduler()
    for _ in range(50):
        fill(scheduler, "a", 2)
        async with asyncio.timeout(1):
            first, second = await scheduler.next(), await scheduler.next()
        assert names([first, second]) == ["a0", "a1"]
        scheduler.finished("a")
        scheduler.finished("a")
        assert not scheduler.queues


# -- lanes that are cancelled


async def test_a_lane_that_is_cancelled_after_it_was_woken_passes_its_turn_on() -> None:
    scheduler = a_scheduler()
    lanes = [asyncio.create_task(scheduler.next()) for _ in range(3)]
    await run_ready_tasks()
    (request,) = fill(scheduler, "a", 1)  # wakes the first, which has not run yet
    lanes[0].cancel()
    await run_ready_tasks()
    assert [task.done() for task in lanes] == [True, True, False]
    assert lanes[0].cancelled()
    assert lanes[1].result() is request
    lanes[2].cancel()


async def test_a_lane_that_is_cancelled_while_it_waits_takes_no_turn_from_another() -> None:
    scheduler = a_scheduler()
    lanes = [asyncio.create_task(scheduler.next()) for _ in range(3)]
    await run_ready_tasks()
    lanes[0].cancel()
    lanes[1].cancel()
    await run_ready_tasks()
    (request,) = fill(scheduler, "a", 1)
    await run_ready_tasks()
    assert lanes[2].result() is request


async def test_a_lane_that_is_cancelled_on_its_slot_gives_the_request_to_another() -> None:
    scheduler = a_scheduler(ScriptedLimiter(rates={"a": 5.0}, reserved={"a": [now()]}))
    lanes = [asyncio.create_task(scheduler.next()) for _ in range(2)]
    await run_ready_tasks()
    (request,) = fill(scheduler, "a", 1)
    await asyncio.sleep(0.1)  # the slot is reserved, and one lane waits for it
    (queue,) = scheduler.queues.values()
    assert (queue.in_flight, len(queue.waiting)) == (1, 0)
    lanes[0].cancel()
    lanes[1].cancel()
    await run_ready_tasks()
    assert (queue.in_flight, list(queue.waiting)) == (0, [request])
    async with asyncio.timeout(1):
        assert await scheduler.next() is request
    scheduler.finished("a")
    await scheduler.close()


# -- whatever happens in whatever order


class Turmoil:
    """Everything that can happen to a scheduler, in a random order, with checks of which request is taken when."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self.limiter = ScriptedLimiter(
            rates={"rated": 50.0, "both": 80.0, "slow": 3.0}, concurrencies={"full": 2, "both": 3}
        )
        self.scheduler = a_scheduler(self.limiter, enough=20)
        self.matcher = ["free", "rated", "both", "slow", "full", "other"]
        self.in_scheduler: set[Request] = set()
        self.sent: dict[str, list[float]] = {name: [] for name in self.matcher}
        self.rounds: Counter[Request] = Counter()
        self.wanted: Counter[Request] = Counter()
        self.away: Counter[str] = Counter()
        self.lanes: list[asyncio.Task[None]] = []

    async def lane(self) -> None:
        while True:
            request = await self.scheduler.next()
            assert request in self.in_scheduler, "taken twice"
            self.in_scheduler.remove(request)
            self.rounds[request] += 1
            upstream = request.upstream
            assert self.limiter.resumes_at(upstream) <= now()
            self.sent[upstream].append(now())
            self.away[upstream] += 1
            assert self.away[upstream] <= (self.limiter.concurrency(upstream) or 1_000)
            try:
                await asyncio.sleep(self._random.choice([0, 0, 0.01, 0.3]))
            finally:
                self.away[upstream] -= 1
                if self.rounds[request] < self.wanted[request]:
                    self.again(request)
                self.scheduler.finished(upstream)

    def again(self, request: Request) -> None:
        if self._random.random() < 0.3:  # a redirect
            request.upstream = self._random.choice(self.matcher)
        else:
            request.attempts = Attempts(request.attempts.failed + 1)
        self.in_scheduler.add(request)
        self.scheduler.put(request, self._random.choice([0.0, 0.0, 0.05, 1.0]))

    async def happens(self) -> None:
        match self._random.randrange(12):
            case 0 | 1 | 2 | 3:
                for _ in range(self._random.randrange(1, 6)):
                    request = a_request("key", self._random.choice(self.matcher))
                    self.wanted[request] = self._random.choice([1, 1, 1, 2, 4])
                    self.in_scheduler.add(request)
                    self.scheduler.put(request)
            case 4 | 5:
                if self.lanes:
                    self._random.choice(self.lanes).cancel()
            case 6 | 7:
                self.lanes.append(asyncio.create_task(self.lane()))
            case 8:
                await self.limiter.pause(self._random.choice(self.matcher), self._random.choice([0.01, 0.3, 2.0]))
            case 9:
                self.scheduler.resize(present(self._random.randrange(2), 2, self._random.randrange(3)))
            case 10:
                self.limiter.errors.append(RedisUnavailable("away"))
            case 11:
                freeze(self._random.choice([0.01, 0.1, 1.0]))
        await asyncio.sleep(self._random.choice([0, 0, 0, 0.001, 0.02, 0.2]))

    def check(self) -> None:
        for task in self.lanes:
            if task.done() and not task.cancelled():
                task.result()
        assert self.scheduler.waiting == sum(len(queue.waiting) for queue in self.scheduler.queues.values())
        assert self.scheduler._at_hand == sum(queue.at_hand for queue in self.scheduler.queues.values())


@pytest.mark.parametrize("seed", range(25))
async def test_every_request_is_taken_just_as_often_as_it_was_put(seed: int) -> None:
    turmoil = Turmoil(seed)
    for _ in range(400):
        await turmoil.happens()
        turmoil.check()
    turmoil.limiter.errors.clear()
    for _ in range(2):
        turmoil.scheduler.resize(present(0, 1))
    turmoil.lanes += [asyncio.create_task(turmoil.lane()) for _ in range(4)]
    async with asyncio.timeout(600):
        while any(turmoil.rounds[request] < count for request, count in turmoil.wanted.items()):
            await asyncio.sleep(1.0)
            turmoil.check()
    await asyncio.sleep(5.0)
    turmoil.check()
    assert turmoil.rounds == turmoil.wanted
    assert len(turmoil.wanted) > 200
    assert not turmoil.in_scheduler
    assert not turmoil.scheduler.queues
    assert (turmoil.scheduler._at_hand, turmoil.scheduler.waiting, turmoil.scheduler._parked) == (0, 0, 0)
    for upstream, rate in turmoil.limiter.rates.items():
        times = turmoil.sent[upstream]
        for first, tenth in zip(times, times[10:], strict=False):
            assert tenth - first >= 10 / rate - 0.06, "slots are kept, except for what a late timer costs"
    for task in turmoil.lanes:
        task.cancel()
    await asyncio.gather(*turmoil.lanes, return_exceptions=True)
    await turmoil.scheduler.close()
