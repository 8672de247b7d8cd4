"""One attempt and what follows it; then several workers on a real Redis, each with a limiter of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from time import monotonic
from typing import Any

import pytest
from redis.asyncio import Redis

from coordinator.errors import FetchError, RedisUnavailable
from coordinator.limits.limiter import Limiter
from coordinator.limits.matcher import UpstreamMatcher
from coordinator.model import NO_ATTEMPTS, Attempts, Outcome
from coordinator.redis.keys import RunKeys
from coordinator.tasks import cancel_and_wait
from crawler.fetch.attempt import Defer, FetchResult, Lane, Meter, RetryInPlace
from crawler.fetch.fetcher import Fetcher
from crawler.fetch.network.credentials import NO_CREDENTIALS, Credentials
from crawler.fetch.retry_budget import MIN_RETRIES
from crawler.model import HttpResponse, Request
from crawler.pipeline.scheduler import Scheduler
from tests.crawler.examples import a_job, a_request
from tests.servers.scripted import ScriptedEngine, ScriptedLimiter, response
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

HOST = "upstream.example"


class Setup:
    """A fetcher with a scripted engine and a scripted limiter."""

    def __init__(
        self,
        *script: HttpResponse | BaseException,
        on_fetch: Callable[[], None] = lambda: None,
        credentials: Credentials = NO_CREDENTIALS,
        **sections: Any,
    ) -> None:
        self.engine = ScriptedEngine(*script, on_fetch=on_fetch)
        self.limiter = ScriptedLimiter()
        self.meter = Meter()
        self.lane = Lane()
        double: Any = self.limiter
        job = a_job(**{"retry": {"attempts": 3, "backoff": 0.5}} | sections)
        matcher = UpstreamMatcher(job.limits)
        self._fetcher = Fetcher(self.engine, double, matcher, job, self.meter, credentials=credentials)

    async def fetch(self, request: Request) -> FetchResult | RetryInPlace | Defer:
        return await self._fetcher.fetch(request, self.lane)


# -- one attempt


@pytest.mark.parametrize(
    ("scripted", "outcome", "reason"),
    [
        (response(200, b"body"), Outcome.STORED, None),
        (response(204), Outcome.STORED, None),
        (response(304), Outcome.UNCHANGED, None),
        (response(404), Outcome.GONE, "status 404"),
        (response(403), Outcome.REFUSED, "status 403"),
        (FetchError("address", "x is at 10.0.0.1"), Outcome.REFUSED, "address: x is at 10.0.0.1"),
        (FetchError("too-large", "body"), Outcome.FAILED, "too-large: body"),
    ],
)
async def test_a_final_response_or_error_is_a_result(
    scripted: HttpResponse | FetchError, outcome: Outcome, reason: str | None
) -> None:
    setup = Setup(scripted)
    result = await setup.fetch(a_request("a"))
    assert isinstance(result, FetchResult)
    assert (result.outcome, result.reason, result.attempts) == (outcome, reason, 1)
    assert result.response is (scripted if isinstance(scripted, HttpResponse) else None)
    assert setup.engine.urls == [f"https://{HOST}/a"]


async def test_a_body_beyond_max_body_fails_its_key_though_the_engine_may_read_more_for_robots_txt() -> None:
    setup = Setup(response(200, b"12345"), request={"max_body": 4})
    result = await setup.fetch(a_request("a"))
    assert isinstance(result, FetchResult)
    assert (result.outcome, result.reason) == (Outcome.FAILED, "too-large: the body exceeds 4 bytes")


async def test_a_response_that_needs_another_reader_is_requested_again_by_an_attempt_that_did_not_fail() -> None:
    setup = Setup(
        FetchError("protocol", "invalid HTTP header parsed", again=True), response(200), retry={"attempts": 1}
    )
    request = a_request("a")
    assert await setup.fetch(request) == RetryInPlace(0.0)
    result = await setup.fetch(request)
    assert isinstance(result, FetchResult)
    assert (result.outcome, result.attempts, setup.meter.read()[0]) == (Outcome.STORED, 2, 2)
    assert [what.get("failed", False) for _, what in setup.limiter.reports] == [False, False]


async def test_an_engine_that_never_finds_the_right_reader_is_stopped() -> None:
    setup = Setup(FetchError("protocol", "invalid HTTP header parsed", again=True), retry={"attempts": 1})
    request, sent = a_request("a"), 1
    while isinstance(result := await setup.fetch(request), RetryInPlace):
        sent += 1
    assert isinstance(result, FetchResult)
    assert (result.outcome, sent) == (Outcome.FAILED, 11)


async def test_the_attempts_of_other_workers_are_counted() -> None:
    result = await Setup(response(200)).fetch(a_request("a", attempts=Attempts(1, 7, ("…",))))
    assert isinstance(result, FetchResult)
    assert result.attempts == 9


async def test_a_short_delay_is_a_retry_in_place_and_a_long_one_is_deferred() -> None:
    request = a_request("a")
    step = await Setup(response(500)).fetch(request)
    assert isinstance(step, RetryInPlace)
    assert 0 < step.delay <= 0.5
    assert request.attempts.failed == 1
    setup = Setup(FetchError("reset", "peer"), retry={"attempts": 3, "backoff": 3600, "max_delay": 3600})
    step = await setup.fetch(request)
    assert isinstance(step, Defer)
    assert step.delay > 2
    assert request.attempts.failed == 2
    assert [line[9:] for line in request.attempts.history] == ["status 500", "reset: peer"]


async def test_the_result_of_the_last_attempt_lists_every_attempt() -> None:
    setup = Setup(response(500), FetchError("timeout", "total"), response(502, b"sorry"))
    request = a_request("a")
    for _ in range(2):
        assert isinstance(await setup.fetch(request), RetryInPlace)
    result = await setup.fetch(request)
    assert isinstance(result, FetchResult)
    assert (result.outcome, result.attempts) == (Outcome.FAILED, 3)
    assert result.reason is not None
    assert result.reason.startswith("status 502 after 3 attempts: ")
    assert [line[9:] for line in result.reason.partition(": ")[2].split("; ")] == [
        "status 500",
        "timeout: total",
        "status 502",
    ]
    assert result.response is not None
    assert result.response.body == b"sorry"


async def test_an_error_in_the_last_attempt_leaves_no_response_of_an_earlier_one() -> None:
    setup = Setup(response(500), response(500), FetchError("reset", "peer"))
    request = a_request("a")
    for _ in range(2):
        await setup.fetch(request)
    result = await setup.fetch(request)
    assert isinstance(result, FetchResult)
    assert result.response is None


async def test_retries_beyond_the_retry_budget_are_deferred_however_short_their_delay() -> None:
    setup = Setup(response(500), retry={"attempts": 2, "backoff": 0.001})
    steps = [await setup.fetch(a_request(str(number))) for number in range(60)]
    kinds = [type(step) for step in steps]
    assert kinds[:MIN_RETRIES] == [RetryInPlace] * MIN_RETRIES
    assert kinds.count(RetryInPlace) == 30


async def test_a_throttled_request_waits_in_its_queue_and_costs_no_retry_budget() -> None:
    setup = Setup(response(429, retry_after="60"))
    for number in range(3 * MIN_RETRIES):
        request = a_request(str(number))
        assert await setup.fetch(request) == RetryInPlace(0.0)
        assert (request.attempts.failed, request.attempts.throttled) == (0, 1)
    assert setup.limiter.resumes_at(HOST) == pytest.approx(setup.limiter.clock() + 60, abs=5)


async def test_a_pause_is_sent_to_redis_until_redis_has_it() -> None:
    setup = Setup(response(503, retry_after="60"))
    pauses: list[tuple[str, float]] = []

    async def pause(upstream: str, seconds: float) -> None:
        pauses.append((upstream, seconds))
        if len(pauses) < 3:
            raise RedisUnavailable("Redis does not answer")

    setup.limiter.pause = pause  # type: ignore[method-assign]
    await setup.fetch(a_request("a"))
    assert pauses == [(HOST, 60.0)] * 3


async def test_a_403_whose_body_speaks_of_a_limit_pauses_the_fleet() -> None:
    setup = Setup(response(403, b'{"message": "You have exceeded a secondary rate limit."}'), response(200))
    request = a_request("a")
    assert await setup.fetch(request) == RetryInPlace(0.0)
    assert setup.limiter.resumes_at(HOST) > setup.limiter.clock()
    assert setup.limiter.reports[0][1]["throttled"]
    result = await setup.fetch(request)
    assert isinstance(result, FetchResult)
    assert (result.outcome, result.attempts) == (Outcome.STORED, 2)


async def test_a_redirect_that_names_a_time_waits_for_it() -> None:
    assert await Setup(response(302, location="/b", retry_after="2")).fetch(a_request("a")) == RetryInPlace(2.0)


async def test_a_good_response_can_pause_the_fleet_too() -> None:
    setup = Setup(response(200, x_ratelimit_remaining="0", x_ratelimit_reset="30"))
    result = await setup.fetch(a_request("a"))
    assert isinstance(result, FetchResult)
    assert result.outcome is Outcome.STORED
    assert setup.limiter.resumes_at(HOST) > setup.limiter.clock() + 25


@pytest.mark.parametrize(
    ("scripted", "throttled", "failed"),
    [
        (response(200), None, False),
        (response(404), False, False),
        (response(429), True, False),
        (response(503), True, True),
        (response(500), False, True),
        (FetchError("timeout", ""), None, True),
        (FetchError("tls", ""), None, True),
        (FetchError("url", ""), None, False),
        (FetchError("decode", ""), None, False),
    ],
)
async def test_the_result_of_an_attempt_is_reported_to_the_limiter(
    scripted: HttpResponse | FetchError, throttled: bool | None, failed: bool
) -> None:
    setup = Setup(scripted)
    await setup.fetch(a_request("a"))
    ((upstream, what),) = setup.limiter.reports
    assert (upstream, what.get("throttled"), what.get("failed", False)) == (HOST, throttled, failed)
    assert 0 <= what["seconds"] < 5


@pytest.mark.parametrize(
    ("scripted", "undecided", "refused"),
    [
        (response(200), 0, 0),
        (response(401), 0, 401),
        (response(403), 0, 403),
        (response(407), 0, 407),
        # Refused because of what was asked for, not because of who asks.
        (response(400), 0, 0),
        (response(404), 0, 0),
        (response(451), 0, 0),
        # These say neither that the upstream lets the crawl in nor that it does not.
        (response(202), 1, 0),
        (response(206), 1, 0),
        (response(301, location="/b"), 1, 0),
        (response(403, retry_after="9"), 1, 0),
        (response(429), 1, 0),
        (response(500), 1, 0),
        (FetchError("timeout", ""), 1, 0),
        (FetchError("decode", ""), 1, 0),
    ],
)
async def test_what_an_attempt_says_of_who_asks_is_reported_to_the_limiter(
    scripted: HttpResponse | FetchError, undecided: int, refused: int
) -> None:
    setup = Setup(scripted, retry={"attempts": 1})
    await setup.fetch(a_request("a"))
    ((_, what),) = setup.limiter.reports
    assert (what.get("undecided", 0), what.get("refused", 0)) == (undecided, refused)


@pytest.mark.parametrize("status", [401, 403, 407])
async def test_while_an_upstream_refuses_everything_a_refusal_is_no_outcome_and_no_attempt(status: int) -> None:
    setup = Setup(response(status), response(404), response(200))
    setup.limiter.unauthorized.add(HOST)
    request = a_request("a")
    step = await setup.fetch(request)
    assert isinstance(step, Defer)
    assert request.attempts == NO_ATTEMPTS
    assert [await outcome_of(setup) for _ in range(2)] == [Outcome.GONE, Outcome.STORED]


async def outcome_of(setup: Setup) -> Outcome:
    result = await setup.fetch(a_request("a"))
    assert isinstance(result, FetchResult)
    return result.outcome


async def test_the_last_429_of_a_key_is_reported_as_throttled_too() -> None:
    setup = Setup(response(429))
    result = await setup.fetch(a_request("a", attempts=Attempts(0, 29)))
    assert isinstance(result, FetchResult)
    assert setup.limiter.reports[0][1]["throttled"]


async def test_the_meter_counts_every_attempt_and_every_body() -> None:
    setup = Setup(FetchError("reset", ""), response(500, b"12345"), response(200, b"123"))
    request = a_request("a")
    for _ in range(3):
        await setup.fetch(request)
    requests, received, timings = setup.meter.read()
    assert (requests, received) == (3, 8)
    assert sum(count for field, count in timings.items() if field != "fetch us") == 3
    assert setup.meter.read() == (0, 0, {})


async def test_a_lane_must_finish_only_while_the_upstream_may_be_working() -> None:
    must_finish: list[bool] = []
    setup = Setup(
        response(429), response(200), FetchError("url", ""), on_fetch=lambda: must_finish.append(setup.lane.must_finish)
    )

    async def pause(upstream: str, seconds: float) -> None:
        must_finish.append(setup.lane.must_finish)

    setup.limiter.pause = pause  # type: ignore[method-assign]
    for _ in range(3):
        assert not setup.lane.must_finish
        await setup.fetch(a_request("a"))
    assert not setup.lane.must_finish
    assert must_finish == [True, False, True, True]


async def test_a_bug_in_the_engine_is_no_failed_attempt() -> None:
    with pytest.raises(ZeroDivisionError):
        await Setup(ZeroDivisionError()).fetch(a_request("a"))


# -- redirects


async def test_a_redirect_goes_into_the_queue_of_the_upstream_that_it_leads_to() -> None:
    setup = Setup(
        response(302, location="https://api.other.example/b"), response(200), limits={"*.other.example": {"rate": 5}}
    )
    request = a_request("a")
    assert await setup.fetch(request) == RetryInPlace(0.0)
    assert (request.target.href, request.upstream, request.hops) == (
        "https://api.other.example/b",
        "*.other.example",
        1,
    )
    assert (request.first_target.href, request.attempts) == (f"https://{HOST}/a", NO_ATTEMPTS)
    result = await setup.fetch(request)
    assert isinstance(result, FetchResult)
    assert result.outcome is Outcome.STORED
    assert setup.engine.urls == [f"https://{HOST}/a", "https://api.other.example/b"]


async def test_credentials_are_sent_only_to_the_origin_that_they_are_for() -> None:
    hops = ("https://other.example/b", f"https://{HOST}/c")
    setup = Setup(*(response(302, location=hop) for hop in hops), response(200))
    request = a_request("a")
    for _ in range(3):
        await setup.fetch(request)
    assert setup.engine.with_credentials == [True, False, True]


@pytest.mark.parametrize(
    ("host", "hop", "sent"),
    [
        (HOST, "/b", [True, True]),
        (HOST, "https://other.example/b", [True, False]),
        ("other.example", "/b", [False, False]),
        ("other.example", f"https://{HOST}/b", [False, False]),  # who is not trusted sends nobody's token anywhere
    ],
)
async def test_where_keys_are_urls_credentials_are_for_the_hosts_of_the_job(
    host: str, hop: str, sent: list[bool]
) -> None:
    credentials = Credentials(origins=frozenset({f"https://{HOST}"}))
    setup = Setup(response(302, location=hop), response(200), credentials=credentials)
    request = a_request("a", host)
    for _ in sent:
        await setup.fetch(request)
    assert setup.engine.with_credentials == sent


async def test_a_redirect_that_quotes_a_secret_of_the_url_does_not_show_it() -> None:
    credentials = Credentials(url_secrets={"KEY": "s3cret%2F"})
    setup = Setup(response(302, location="/b?key=s3cret%2F&s3cret/"), credentials=credentials, request={"redirects": 1})
    request = a_request("a")
    assert await setup.fetch(request) == RetryInPlace(0.0)
    assert request.target.path == "/b?key=${KEY}&${KEY}"
    result = await setup.fetch(request)
    assert isinstance(result, FetchResult)
    assert "/b?key=${KEY}&${KEY}: no more redirects" in (result.reason or "")


@pytest.mark.parametrize("redirects", [0, 1, 5])
async def test_a_loop_of_redirects_ends_after_the_hops_of_the_job(redirects: int) -> None:
    setup = Setup(response(302, location="/a"), request={"redirects": redirects})
    request = a_request("a")
    for _ in range(redirects):
        assert await setup.fetch(request) == RetryInPlace(0.0)
    result = await setup.fetch(request)
    assert isinstance(result, FetchResult)
    assert (result.outcome, len(setup.engine.urls)) == (Outcome.REFUSED, redirects + 1)
    assert result.reason == f"redirect 302 to https://{HOST}/a: no more redirects are followed"


async def test_an_attempt_that_fails_behind_a_redirect_is_repeated_there() -> None:
    setup = Setup(response(302, location="https://other.example/b"), response(500), response(200))
    request = a_request("a")
    await setup.fetch(request)
    assert isinstance(await setup.fetch(request), RetryInPlace)
    assert isinstance(await setup.fetch(request), FetchResult)
    assert setup.engine.urls[1:] == ["https://other.example/b"] * 2
    assert (request.hops, request.attempts.failed) == (1, 1)


# -- several workers


class LimitedWorker:
    """A worker's lanes, scheduler and fetcher, with a limiter of its own; all workers share one Redis and one run."""

    def __init__(self, redis: Redis, engine: ScriptedEngine, lanes: int, limits: dict[str, Any]) -> None:
        job = a_job(limits={"*": {"rate": "none"}, **limits})
        matcher = UpstreamMatcher(job.limits)
        self.engine = engine
        self.limiter = Limiter(redis, RunKeys("test"), matcher)
        self.scheduler = Scheduler(self.limiter, enough=10)
        self._fetcher = Fetcher(engine, self.limiter, matcher, job, Meter())
        self.results: list[FetchResult] = []
        self.tasks = [asyncio.create_task(self._serve()) for _ in range(lanes)]
        self.tasks.append(asyncio.create_task(self.limiter.watch()))

    async def _serve(self) -> None:
        while True:
            request = await self.scheduler.next()
            upstream = request.upstream
            try:
                step = await self._fetcher.fetch(request, Lane())
                if isinstance(step, RetryInPlace):
                    self.scheduler.put(request, step.delay)
                else:
                    assert isinstance(step, FetchResult)
                    self.results.append(step)
            finally:
                self.scheduler.finished(upstream)

    def to(self, upstream: str) -> list[float]:
        pairs = zip(self.engine.times, self.engine.urls, strict=True)
        return [at for at, url in pairs if url.startswith(f"https://{upstream}/")]


Fleet = Callable[..., LimitedWorker]


@pytest.fixture
async def fleet(redis: Redis) -> AsyncIterator[Fleet]:
    workers: list[LimitedWorker] = []

    def start_worker(*script: HttpResponse, lanes: int = 5, limits: dict[str, Any] | None = None) -> LimitedWorker:
        workers.append(LimitedWorker(redis, ScriptedEngine(*script), lanes, limits or {}))
        return workers[-1]

    yield start_worker
    await cancel_and_wait([task for worker in workers for task in worker.tasks])
    for worker in workers:
        await worker.scheduler.close()


async def test_a_429_at_one_worker_stops_every_worker_at_that_upstream_and_at_no_other(fleet: Fleet) -> None:
    first, second = fleet(response(429, retry_after="1"), response(200)), fleet(response(200))
    first.scheduler.put(a_request("a"))
    await eventually(lambda: second.limiter.resumes_at(HOST) > monotonic(), "the second worker knows the pause")
    for number in range(20):
        second.scheduler.put(a_request(str(number)))
        second.scheduler.put(a_request(str(number), "other.example"))
    await eventually(lambda: len(second.to("other.example")) == 20, "all requests to the other upstream")
    assert second.to(HOST) == []
    await eventually(lambda: len(second.to(HOST)) == 20 and len(first.results) == 1, "the pause is over")
    assert min(second.to(HOST) + first.to(HOST)[1:]) - first.to(HOST)[0] >= 0.99
    assert first.results[0].attempts == 2


async def test_a_pause_stops_requests_that_already_wait_for_their_slot(fleet: Fleet) -> None:
    limits = {HOST: {"rate": 10}}
    second = fleet(response(200), limits=limits)
    first = fleet(response(503, retry_after="1"), response(200), limits=limits)
    first.scheduler.put(a_request("a"))
    for number in range(8):
        second.scheduler.put(a_request(str(number)))
    await eventually(lambda: second.limiter.resumes_at(HOST) > monotonic(), "the pause is known")
    before = len(second.engine.times)
    await eventually(lambda: len(second.engine.times) == 8, "the pause is over")
    assert before < 8
    assert second.engine.times[before] - first.engine.times[0] >= 0.99


async def test_a_rate_is_one_for_all_workers(fleet: Fleet) -> None:
    workers = [fleet(response(200), limits={HOST: {"rate": 50}}) for _ in range(2)]
    for number in range(15):
        for worker in workers:
            worker.scheduler.put(a_request(str(number)))
    await eventually(lambda: all(len(worker.results) == 15 for worker in workers), "every response")
    times = sorted(workers[0].engine.times + workers[1].engine.times)
    assert times[-1] - times[0] >= 29 / 50 * 0.9
