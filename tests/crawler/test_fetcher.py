"""One try and what follows from it; then workers together, on a real Redis: lines, fetchers and one limiter each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from time import monotonic
from typing import Any

import pytest
from redis.asyncio import Redis

from coordinator.errors import FetchError, RedisUnavailable
from coordinator.keys import RunKeys
from coordinator.limiter import Limiter
from coordinator.model import UNTRIED, Outcome, Tries
from coordinator.together import cancelled
from coordinator.upstreams import Upstreams
from crawler.fetch.engine import Answer
from crawler.fetch.fetcher import Fetcher, Lane, Later, Meter, Reply, Soon
from crawler.fetch.retry_budget import FLOOR
from crawler.lines import Lines
from crawler.page import Request
from tests.conftest import eventually

from .examples import a_job, a_request
from .scripted import ScriptedEngine, ScriptedLimiter, answer

pytestmark = pytest.mark.anyio

HOST = "upstream.example"


class Setup:
    """A fetcher between an engine and a limiter that do as they are told."""

    def __init__(
        self, *lines: Answer | BaseException, each: Callable[[], None] = lambda: None, **sections: Any
    ) -> None:
        self.engine = ScriptedEngine(*lines, each=each)
        self.limiter = ScriptedLimiter()
        self.meter = Meter()
        self.lane = Lane()
        double: Any = self.limiter
        job = a_job(**{"retry": {"attempts": 3, "backoff": 0.5}} | sections)
        self._fetcher = Fetcher(self.engine, double, Upstreams(job.limits), job, self.meter)

    async def fetch(self, request: Request) -> Reply | Soon | Later:
        return await self._fetcher.fetch(request, self.lane)


# -- one try


@pytest.mark.parametrize(
    ("line", "outcome", "reason"),
    [
        (answer(200, b"body"), Outcome.STORED, None),
        (answer(204), Outcome.STORED, None),
        (answer(304), Outcome.UNCHANGED, None),
        (answer(404), Outcome.GONE, "status 404"),
        (answer(403), Outcome.REFUSED, "status 403"),
        (FetchError("address", "x is at 10.0.0.1"), Outcome.REFUSED, "address: x is at 10.0.0.1"),
        (FetchError("too-large", "body"), Outcome.FAILED, "too-large: body"),
    ],
)
async def test_what_is_decided_at_once_is_a_reply(
    line: Answer | FetchError, outcome: Outcome, reason: str | None
) -> None:
    setup = Setup(line)
    reply = await setup.fetch(a_request("a"))
    assert isinstance(reply, Reply)
    assert (reply.outcome, reply.reason, reply.attempts) == (outcome, reason, 1)
    assert reply.answer is (line if isinstance(line, Answer) else None)
    assert setup.engine.urls == [f"https://{HOST}/a"]


async def test_attempts_count_the_tries_of_workers_before() -> None:
    reply = await Setup(answer(200)).fetch(a_request("a", tries=Tries(1, 7, ("…",))))
    assert isinstance(reply, Reply)
    assert reply.attempts == 9


async def test_a_short_wait_is_made_here_and_a_long_one_in_the_delayed_set() -> None:
    request = a_request("a")
    step = await Setup(answer(500)).fetch(request)
    assert isinstance(step, Soon)
    assert 0 < step.delay <= 0.5
    assert request.tries.failed == 1
    long = Setup(FetchError("reset", "peer"), retry={"attempts": 3, "backoff": 3600, "max_delay": 3600})
    step = await long.fetch(request)
    assert isinstance(step, Later)
    assert step.delay > 2
    assert request.tries.failed == 2
    assert [line[9:] for line in request.tries.history] == ["status 500", "reset: peer"]


async def test_the_last_attempt_is_a_reply_that_tells_every_try() -> None:
    setup = Setup(answer(500), FetchError("timeout", "total"), answer(502, b"sorry"))
    request = a_request("a")
    for _ in range(2):
        assert isinstance(await setup.fetch(request), Soon)
    reply = await setup.fetch(request)
    assert isinstance(reply, Reply)
    assert (reply.outcome, reply.attempts) == (Outcome.FAILED, 3)
    assert reply.reason is not None
    assert reply.reason.startswith("status 502 after 3 attempts: ")
    assert [line[9:] for line in reply.reason.partition(": ")[2].split("; ")] == [
        "status 500",
        "timeout: total",
        "status 502",
    ]
    assert reply.answer is not None
    assert reply.answer.body == b"sorry"


async def test_an_error_at_the_end_leaves_no_answer_of_an_earlier_try() -> None:
    setup = Setup(answer(500), answer(500), FetchError("reset", "peer"))
    request = a_request("a")
    for _ in range(2):
        await setup.fetch(request)
    reply = await setup.fetch(request)
    assert isinstance(reply, Reply)
    assert reply.answer is None


async def test_retries_beyond_the_budget_go_to_the_delayed_set_however_short() -> None:
    setup = Setup(answer(500), retry={"attempts": 2, "backoff": 0.001})
    steps = [await setup.fetch(a_request(str(number))) for number in range(60)]
    kinds = [type(step) for step in steps]
    assert kinds[:FLOOR] == [Soon] * FLOOR
    assert kinds.count(Soon) == 30


async def test_a_throttled_request_waits_for_the_pause_in_its_line_and_costs_no_budget() -> None:
    setup = Setup(answer(429, retry_after="60"))
    for number in range(3 * FLOOR):
        request = a_request(str(number))
        assert await setup.fetch(request) == Soon(0.0)
        assert (request.tries.failed, request.tries.throttled) == (0, 1)
    assert setup.limiter.resumes(HOST) == pytest.approx(setup.limiter.clock() + 60, abs=5)


async def test_a_pause_is_asked_of_the_fleet_until_redis_has_heard_it() -> None:
    setup = Setup(answer(503, retry_after="60"))
    asked: list[tuple[str, float]] = []

    async def pause(upstream: str, seconds: float) -> None:
        asked.append((upstream, seconds))
        if len(asked) < 3:
            raise RedisUnavailable("Redis does not answer")

    setup.limiter.pause = pause  # type: ignore[method-assign]
    await setup.fetch(a_request("a"))
    assert asked == [(HOST, 60.0)] * 3


async def test_a_good_answer_can_pause_the_fleet_too() -> None:
    setup = Setup(answer(200, x_ratelimit_remaining="0", x_ratelimit_reset="30"))
    reply = await setup.fetch(a_request("a"))
    assert isinstance(reply, Reply)
    assert reply.outcome is Outcome.STORED
    assert setup.limiter.resumes(HOST) > setup.limiter.clock() + 25


@pytest.mark.parametrize(
    ("line", "throttled", "failed"),
    [
        (answer(200), False, False),
        (answer(404), False, False),
        (answer(429), True, False),
        (answer(503), True, True),
        (answer(500), False, True),
        (FetchError("timeout", ""), None, True),
        (FetchError("tls", ""), None, True),
        (FetchError("url", ""), None, False),
        (FetchError("decode", ""), None, False),
    ],
)
async def test_the_limiter_learns_what_came_of_it(
    line: Answer | FetchError, throttled: bool | None, failed: bool
) -> None:
    setup = Setup(line)
    await setup.fetch(a_request("a"))
    ((upstream, what),) = setup.limiter.notes
    assert (upstream, what.get("throttled"), what["failed"]) == (HOST, throttled, failed)
    assert 0 <= what["seconds"] < 5


async def test_the_last_429_of_a_key_is_noted_as_throttled_too() -> None:
    setup = Setup(answer(429))
    reply = await setup.fetch(a_request("a", tries=Tries(0, 29)))
    assert isinstance(reply, Reply)
    assert setup.limiter.notes[0][1]["throttled"]


async def test_the_meter_counts_every_try_and_every_body() -> None:
    setup = Setup(FetchError("reset", ""), answer(500, b"12345"), answer(200, b"123"))
    request = a_request("a")
    for _ in range(3):
        await setup.fetch(request)
    assert setup.meter.read() == (3, 8)
    assert setup.meter.read() == (0, 0)


async def test_a_lane_is_sending_just_while_the_upstream_may_be_at_work() -> None:
    sending: list[bool] = []
    setup = Setup(answer(429), answer(200), FetchError("url", ""), each=lambda: sending.append(setup.lane.sending))

    async def pause(upstream: str, seconds: float) -> None:
        sending.append(setup.lane.sending)

    setup.limiter.pause = pause  # type: ignore[method-assign]
    for _ in range(3):
        assert not setup.lane.sending
        await setup.fetch(a_request("a"))
    assert not setup.lane.sending
    assert sending == [True, False, True, True]


async def test_a_bug_in_the_engine_is_not_taken_for_a_failed_try() -> None:
    with pytest.raises(ZeroDivisionError):
        await Setup(ZeroDivisionError()).fetch(a_request("a"))


# -- redirects


async def test_a_redirect_is_followed_through_the_line_of_the_upstream_that_it_leads_to() -> None:
    setup = Setup(
        answer(302, location="https://api.other.example/b"), answer(200), limits={"*.other.example": {"rate": 5}}
    )
    request = a_request("a")
    assert await setup.fetch(request) == Soon(0.0)
    assert (request.url, request.upstream, request.hops) == ("https://api.other.example/b", "*.other.example", 1)
    assert (request.asked, request.tries) == (f"https://{HOST}/a", UNTRIED)
    reply = await setup.fetch(request)
    assert isinstance(reply, Reply)
    assert reply.outcome is Outcome.STORED
    assert setup.engine.urls == [f"https://{HOST}/a", "https://api.other.example/b"]


async def test_credentials_go_along_only_to_the_origin_that_they_are_for() -> None:
    hops = ("https://other.example/b", f"https://{HOST}/c")
    setup = Setup(*(answer(302, location=hop) for hop in hops), answer(200))
    request = a_request("a")
    for _ in range(3):
        await setup.fetch(request)
    assert setup.engine.trusted == [True, False, True]


@pytest.mark.parametrize("redirects", [0, 1, 5])
async def test_a_loop_of_redirects_ends_after_so_many_hops(redirects: int) -> None:
    setup = Setup(answer(302, location="/a"), request={"redirects": redirects})
    request = a_request("a")
    for _ in range(redirects):
        assert await setup.fetch(request) == Soon(0.0)
    reply = await setup.fetch(request)
    assert isinstance(reply, Reply)
    assert (reply.outcome, len(setup.engine.urls)) == (Outcome.REFUSED, redirects + 1)
    assert reply.reason == f"redirect 302 to https://{HOST}/a: no more redirects are followed"


async def test_a_try_that_fails_behind_a_redirect_is_repeated_there() -> None:
    setup = Setup(answer(302, location="https://other.example/b"), answer(500), answer(200))
    request = a_request("a")
    await setup.fetch(request)
    assert isinstance(await setup.fetch(request), Soon)
    assert isinstance(await setup.fetch(request), Reply)
    assert setup.engine.urls[1:] == ["https://other.example/b"] * 2
    assert (request.hops, request.tries.failed) == (1, 1)


# -- workers together


class Crawler:
    """A worker's lanes, lines and fetcher on a limiter of its own; all share one Redis and one run."""

    def __init__(self, redis: Redis, engine: ScriptedEngine, lanes: int, limits: dict[str, Any]) -> None:
        job = a_job(limits={"*": {"rate": "none"}, **limits})
        upstreams = Upstreams(job.limits)
        self.engine = engine
        self.limiter = Limiter(redis, RunKeys("test"), upstreams)
        self.lines = Lines(self.limiter, enough=10)
        self._fetcher = Fetcher(engine, self.limiter, upstreams, job, Meter())
        self.replies: list[Reply] = []
        self.tasks = [asyncio.create_task(self._serve()) for _ in range(lanes)]
        self.tasks.append(asyncio.create_task(self.limiter.watch()))

    async def _serve(self) -> None:
        while True:
            request = await self.lines.next()
            upstream = request.upstream
            try:
                step = await self._fetcher.fetch(request, Lane())
                if isinstance(step, Soon):
                    self.lines.put(request, step.delay)
                else:
                    assert isinstance(step, Reply)
                    self.replies.append(step)
            finally:
                self.lines.arrived(upstream)

    def to(self, upstream: str) -> list[float]:
        pairs = zip(self.engine.times, self.engine.urls, strict=True)
        return [at for at, url in pairs if url.startswith(f"https://{upstream}/")]


Fleet = Callable[..., Crawler]


@pytest.fixture
async def fleet(redis: Redis) -> AsyncIterator[Fleet]:
    crawlers: list[Crawler] = []

    def crawler(*lines: Answer, lanes: int = 5, limits: dict[str, Any] | None = None) -> Crawler:
        crawlers.append(Crawler(redis, ScriptedEngine(*lines), lanes, limits or {}))
        return crawlers[-1]

    yield crawler
    await cancelled([task for crawler in crawlers for task in crawler.tasks])
    for one in crawlers:
        await one.lines.close()


async def test_a_429_at_one_worker_stops_every_worker_at_that_upstream_and_at_no_other(fleet: Fleet) -> None:
    scolded, second = fleet(answer(429, retry_after="1"), answer(200)), fleet(answer(200))
    scolded.lines.put(a_request("a"))
    await eventually(lambda: second.limiter.resumes(HOST) > monotonic(), "the second worker hears of it")
    for number in range(20):
        second.lines.put(a_request(str(number)))
        second.lines.put(a_request(str(number), "other.example"))
    await eventually(lambda: len(second.to("other.example")) == 20, "the other upstream is asked")
    assert second.to(HOST) == []
    await eventually(lambda: len(second.to(HOST)) == 20 and len(scolded.replies) == 1, "the pause is over")
    assert min(second.to(HOST) + scolded.to(HOST)[1:]) - scolded.to(HOST)[0] >= 0.99
    assert scolded.replies[0].attempts == 2


async def test_a_pause_holds_back_who_waits_for_a_slot_already(fleet: Fleet) -> None:
    limits = {HOST: {"rate": 10}}
    second = fleet(answer(200), limits=limits)
    scolded = fleet(answer(503, retry_after="1"), answer(200), limits=limits)
    scolded.lines.put(a_request("a"))
    for number in range(8):
        second.lines.put(a_request(str(number)))
    await eventually(lambda: second.limiter.resumes(HOST) > monotonic(), "the pause is known")
    before = len(second.engine.times)
    await eventually(lambda: len(second.engine.times) == 8, "the pause is over")
    assert before < 8
    assert second.engine.times[before] - scolded.engine.times[0] >= 0.99


async def test_a_rate_is_one_for_all_workers(fleet: Fleet) -> None:
    workers = [fleet(answer(200), limits={HOST: {"rate": 50}}) for _ in range(2)]
    for number in range(15):
        for worker in workers:
            worker.lines.put(a_request(str(number)))
    await eventually(lambda: all(len(worker.replies) == 15 for worker in workers), "every request is answered")
    times = sorted(workers[0].engine.times + workers[1].engine.times)
    assert times[-1] - times[0] >= 29 / 50 * 0.9
