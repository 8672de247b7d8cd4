"""Lanes at hosts that are dead, slow or good, in virtual time: what each key's attempts cost, and whom they hold up."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import pytest

from coordinator.errors import FetchError
from coordinator.limits.matcher import UpstreamMatcher
from coordinator.limits.unreachable import UnreachableUpstreams
from coordinator.model import Outcome
from coordinator.stages.constraint import Constraint
from coordinator.stages.timing import Timing
from coordinator.url import Target
from crawler.fetch.attempt import FetchResult, Meter
from crawler.fetch.fetcher import Fetcher
from crawler.model import HttpResponse, Request
from crawler.pipeline.fair_share import MAX_LENT_LANES, SLOW_SECONDS
from crawler.pipeline.lanes import Lanes
from crawler.pipeline.scheduler import Scheduler
from crawler.telemetry.stage_watch import StageWatch
from crawler.telemetry.timings import Timings
from tests.crawler.examples import a_job, a_request
from tests.servers.scripted import ScriptedLimiter, response
from tests.simulation.virtual_loop import BACKEND, now

pytestmark = pytest.mark.anyio

REFUSED = FetchError("connect", "Connection refused (os error 111)", sent=False)
NO_HOST = FetchError("dns", "dead.example: Name or service not known", sent=False)
SWALLOWED = FetchError("timeout", "operation timed out", sent=False)
RESET = FetchError("reset", "connection closed before message completed")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return BACKEND


class Hosts:
    """An engine. Each host has the seconds that a request takes, and perhaps the error with which each ends."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(lambda: 0.05)
        self.faults: dict[str, FetchError] = {}
        self.requested: Counter[str] = Counter()
        self.in_flight: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.most_in_flight = 0

    async def fetch(self, _: str, target: Target, *__: Any) -> HttpResponse:
        host = target.origin.upstream
        self.requested[host] += 1
        self.in_flight[host] += 1
        self.most[host] = max(self.most[host], self.in_flight[host])
        self.most_in_flight = max(self.most_in_flight, sum(self.in_flight.values()))
        await asyncio.sleep(self.seconds[host])
        self.in_flight[host] -= 1
        if host in self.faults:
            raise self.faults[host]
        return response(200)

    async def close(self) -> None:
        """Nothing is open."""


class Logged:
    """In the place of LoggedUpstreams, when there is one worker."""

    async def add(self, _: str) -> bool:
        return True

    async def remove(self, _: str) -> bool:
        return True


class Pages:
    """In the place of page builder and batch: `results` of each host, and what was deferred, which comes back."""

    full = False
    parsing = (0, 0)

    def __len__(self) -> int:
        return 0

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.results: defaultdict[str, list[FetchResult]] = defaultdict(list)
        self.ended: dict[str, float] = {}
        self.deferred: list[tuple[Request, float]] = []
        self.error: BaseException | None = None  # raised in the place of the parser

    async def build(self, request: Request, result: FetchResult) -> list[Any]:
        if self.error is not None:
            raise self.error
        self.results[request.upstream].append(result)
        self.ended[request.upstream] = now()
        return []

    def defer(self, request: Request, delay: float) -> None:
        self.deferred.append((request, delay))
        self._scheduler.put(request, delay)

    def make_due(self) -> None:
        """Nothing waits for a commit."""


class Crawl:
    """Lanes of one worker over `keys`, pairs of a host and how many keys it has."""

    def __init__(self, *keys: tuple[str, int], lanes: int = 8, concurrency: int = 8, **retry: Any) -> None:
        self.hosts = Hosts()
        job = a_job(retry={"backoff": 0.5, **retry})
        limiter: Any = ScriptedLimiter(concurrencies={host: concurrency for host, _ in keys})
        self.limiter, self.wait = limiter, Timing()
        self.scheduler = Scheduler(limiter, enough=lanes)
        self.pages = Pages(self.scheduler)
        logged: Any = Logged()
        parts: Any = {"page_builder": self.pages, "batch": self.pages}
        fetcher = Fetcher(self.hosts, limiter, UpstreamMatcher({}), job, Meter(), clock=now)
        self.lanes = Lanes(
            lanes,
            scheduler=self.scheduler,
            fetcher=fetcher,
            unreachable=UnreachableUpstreams(logged, now),
            wait=self.wait,
            clock=now,
            **parts,
        )
        for number in range(max(count for _, count in keys)):
            for host, count in keys:
                if number < count:
                    self.scheduler.put(a_request(str(number), host))

    async def run(self, hosts: Iterable[str] = (), within: float = 10_000.0) -> float:
        """Work until nothing is left, or until these hosts' keys have ended; returns how many seconds that took."""
        began, wanted = now(), set(hosts)
        run = asyncio.create_task(self.lanes.run())
        async with asyncio.timeout(within):
            while not (self.scheduler.empty or (wanted and wanted <= self.pages.ended.keys())):
                if run.done():
                    run.result()
                await asyncio.sleep(0.01)
        run.cancel()
        await self.lanes.close()
        return now() - began

    def failed(self, host: str) -> list[tuple[Outcome, int]]:
        return [(result.outcome, result.attempts) for result in self.pages.results[host]]


@pytest.mark.parametrize(("fault", "seconds"), [(REFUSED, 0.001), (NO_HOST, 0.001), (SWALLOWED, 10.0)])
async def test_one_attempt_at_a_dead_host_is_one_of_all_its_keys(fault: FetchError, seconds: float) -> None:
    crawl = Crawl(("dead", 500), ("live", 50), lanes=16)
    crawl.hosts.faults["dead"], crawl.hosts.seconds["dead"] = fault, seconds
    assert await crawl.run() < 5 * seconds + 5 * (0.5 + 1 + 2 + 4)
    assert crawl.failed("dead") == [(Outcome.FAILED, 5)] * 500
    assert crawl.hosts.requested == {"dead": 5, "live": 50}
    assert crawl.hosts.most == {"dead": 1, "live": 8}
    assert f"{fault} after 5 attempts" in str(crawl.pages.results["dead"][-1].reason)


@pytest.mark.parametrize("keys", [8, 20])
async def test_requests_that_fail_together_are_counted_once_each(keys: int) -> None:
    """At a host that is alone all lanes ask at once: the last one to fail must not count the others' attempts again."""
    crawl = Crawl(("dead", keys))
    crawl.hosts.faults["dead"], crawl.hosts.seconds["dead"] = SWALLOWED, 2.0
    assert await crawl.run() >= 5 * 2.0
    assert crawl.failed("dead") == [(Outcome.FAILED, 5)] * keys


async def test_a_lane_that_is_cancelled_from_within_ends_the_worker() -> None:
    """A parser that raised CancelledError took its lane and its request away, and the run waited for ever."""
    crawl = Crawl(("live", 50))

    crawl.pages.error = asyncio.CancelledError()
    with pytest.raises(RuntimeError, match="cancelled from within"):
        await crawl.run(within=10.0)


async def test_many_dead_hosts_hold_up_a_good_one_for_moments() -> None:
    dead = [f"dead{number}" for number in range(100)]
    crawl = Crawl(*((host, 5) for host in dead), ("live", 3_000), lanes=16)
    for host in dead:
        crawl.hosts.faults[host], crawl.hosts.seconds[host] = SWALLOWED, 10.0
    alone = 3_000 * 0.05 / 8
    lent_at_once = 100 / 16 * SLOW_SECONDS
    assert await crawl.run() < 5 * 10 + 5 * 7.5
    assert crawl.pages.ended["live"] - 1_000.0 < alone + lent_at_once + 2.0
    assert crawl.hosts.requested == {**dict.fromkeys(dead, 5), "live": 3_000}


async def test_more_dead_hosts_than_lanes_that_may_be_lent_still_end() -> None:
    dead = [f"dead{number}" for number in range(2 * MAX_LENT_LANES)]
    crawl = Crawl(*((host, 1) for host in dead), ("live", 100), attempts=2)
    for host in dead:
        crawl.hosts.faults[host], crawl.hosts.seconds[host] = SWALLOWED, 10.0
    await crawl.run()
    assert crawl.failed("dead7") == [(Outcome.FAILED, 2)]
    assert len(crawl.pages.results["live"]) == 100


@pytest.mark.parametrize(("hosts", "keys"), [(10, 100), (100, 10), (500, 2)])
@pytest.mark.parametrize("seconds", [3.0, 30.0])
async def test_slow_hosts_leave_a_quick_one_four_fifths_of_what_it_gets_alone(
    hosts: int, keys: int, seconds: float
) -> None:
    """Their responses drip until the attempt ends, as one that fails or as one that succeeds."""
    pairs = [(f"slow{number}", keys) for number in range(hosts)]
    crawl = Crawl(*pairs[:30], ("live", 10_000), *pairs[30:], lanes=64)
    for slow, _ in pairs:
        crawl.hosts.seconds[slow] = seconds
        if seconds == 30.0:
            crawl.hosts.faults[slow] = FetchError("timeout", "operation timed out")
    with contextlib.suppress(TimeoutError):
        await crawl.run(within=40.0)
    alone = 40.0 * 8 / 0.05  # see test_a_host_that_is_alone_is_used_whole_from_the_first_moment
    assert len(crawl.pages.results["live"]) >= 0.8 * alone
    assert crawl.hosts.most_in_flight <= 64 + MAX_LENT_LANES


async def test_slow_hosts_that_are_alone_get_no_more_than_the_lanes() -> None:
    crawl = Crawl(("a", 200), ("b", 200), lanes=16, concurrency=100)
    crawl.hosts.seconds["a"] = crawl.hosts.seconds["b"] = 3.0
    await crawl.run()
    assert crawl.hosts.most_in_flight <= 16 + 1


async def test_a_slow_host_without_a_limit_gets_no_more_than_the_lanes_beside_a_quick_one() -> None:
    crawl = Crawl(("slow", 500), ("live", 5_000), lanes=16, concurrency=100)
    crawl.hosts.seconds["slow"] = 3.0
    with contextlib.suppress(TimeoutError):
        await crawl.run(within=60.0)
    assert crawl.hosts.most == {"slow": 16, "live": 16}


async def test_a_host_that_is_alone_is_used_whole_from_the_first_moment() -> None:
    crawl = Crawl(("live", 80))
    assert await crawl.run() == pytest.approx(80 * 0.05 / 8, abs=0.02)


async def test_beside_others_a_new_host_gets_one_request_and_all_of_its_room_once_it_has_responded() -> None:
    crawl = Crawl(("one", 81), ("two", 81), lanes=20)
    assert await crawl.run() == pytest.approx(0.05 + 80 * 0.05 / 8, abs=0.02)
    assert crawl.hosts.most == {"one": 8, "two": 8}


async def test_a_connection_that_breaks_is_the_attempt_of_its_own_key() -> None:
    crawl = Crawl(("broken", 10), ("live", 1), attempts=2, backoff=0.001)
    crawl.hosts.faults["broken"] = RESET
    await crawl.run()
    assert crawl.failed("broken") == [(Outcome.FAILED, 2)] * 10
    assert crawl.hosts.requested["broken"] == 20
    assert crawl.hosts.most["broken"] == 8


async def test_a_key_that_comes_while_a_host_is_known_to_be_dead_counts_that_as_its_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("random.random", lambda: 0.5)  # a pause of less than 2 s would be waited for in the lane
    crawl = Crawl(("dead", 3), ("live", 1), attempts=2, backoff=30.0, max_delay=30.0)
    crawl.hosts.faults["dead"] = REFUSED
    working = asyncio.create_task(crawl.run())
    while not crawl.pages.deferred:
        await asyncio.sleep(0.01)
    for number in range(10):
        crawl.scheduler.put(a_request(f"late {number}", "dead"))
    await working
    assert crawl.failed("dead") == [(Outcome.FAILED, 2)] * 13
    assert crawl.hosts.requested["dead"] == 2


async def test_keys_whose_next_attempt_is_long_away_are_deferred_together() -> None:
    crawl = Crawl(("dead", 50), ("live", 1), attempts=2, backoff=3600.0, max_delay=3600.0)
    crawl.hosts.faults["dead"] = REFUSED
    await crawl.run()
    assert len(crawl.pages.deferred) == 50
    assert len({delay for _, delay in crawl.pages.deferred}) == 1
    assert crawl.hosts.requested["dead"] == 2


async def test_a_host_becomes_dead_and_is_back_with_one_line_each(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    crawl = Crawl(("dead", 30), ("live", 1), attempts=20)
    crawl.hosts.faults["dead"] = NO_HOST
    working = asyncio.create_task(crawl.run())
    while crawl.hosts.requested["dead"] < 4:
        await asyncio.sleep(0.01)
    (wait,) = await crawl.lanes.waits()
    assert (wait.upstream, wait.keys, wait.fault) == ("dead", 30, "no such host")
    assert "30 keys wait for dead: no such host, next attempt " in wait.summary
    del crawl.hosts.faults["dead"]
    await working
    assert await crawl.lanes.waits() == []
    assert {result.outcome for result in crawl.pages.results["dead"]} == {Outcome.STORED}
    assert caplog.messages == ["dead cannot be reached: no such host", "dead is reached again"]


@pytest.mark.parametrize(
    ("constraint", "name", "seconds", "concurrency", "rate", "pause"),
    [
        (Constraint.FETCH, "", 5.0, 100, None, 0.0),
        (Constraint.CONCURRENCY, "host", 0.5, 2, None, 0.0),
        (Constraint.CONCURRENCY, "host", 0.5, 2, 1000.0, 0.0),
        (Constraint.RATE, "host", 0.05, 2, 10.0, 0.0),
        (Constraint.RATE, "host", 0.05, 100, 10.0, 0.0),
        (Constraint.PAUSE, "host", 0.05, 100, None, 100.0),
    ],
)
async def test_what_holds_the_lanes_up_is_seen(
    constraint: Constraint, name: str, seconds: float, concurrency: int, rate: float | None, pause: float
) -> None:
    crawl = Crawl(("host", 2_000), concurrency=concurrency)
    crawl.hosts.seconds["host"] = seconds
    if rate is not None:
        crawl.limiter.rates["host"] = rate
    await crawl.limiter.pause("host", pause)
    watch = StageWatch(lambda: crawl.lanes.look(""), Timings(), clock=now)
    working = asyncio.create_task(crawl.lanes.run())
    for _ in range(100):
        await asyncio.sleep(0.2)
        watch.sample(0.0)
    working.cancel()
    await crawl.lanes.close()
    figures = watch.figures()
    most = max(figures.held, key=lambda one: one.weight)
    assert (most.constraint, most.name) == (constraint, name)
    assert most.weight > 0.8
    stages = {one.name: one for one in figures.stages}
    assert (stages["fetch"].size, stages["wait"].waiting > 0) == (8, True)


async def test_a_pause_of_the_run_is_none_of_its_upstreams() -> None:
    crawl = Crawl(("host", 10))
    await crawl.limiter.pause("host", 100.0)
    working = asyncio.create_task(crawl.lanes.run())
    await asyncio.sleep(1.0)
    assert crawl.lanes.look("").held == (Constraint.PAUSE, "host")
    crawl.limiter.run_is_paused = True
    assert crawl.lanes.look("").held is None
    working.cancel()
    await crawl.lanes.close()


async def test_how_long_a_request_waits_is_counted_once_however_many_attempts_it_takes() -> None:
    crawl = Crawl(("down", 3), lanes=1, attempts=3, backoff=600)  # no second attempt comes before a first one
    crawl.hosts.faults["down"] = RESET
    (queue,) = crawl.scheduler.queues.values()
    await asyncio.sleep(1.0)
    for request in queue.waiting:
        request.waits_since = now()
    await crawl.run()
    assert crawl.hosts.requested["down"] == 9
    counts = dict(crawl.wait.take("wait"))
    assert (counts.pop("wait us"), sum(counts.values())) == (150_000, 3)
