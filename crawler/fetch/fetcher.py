"""One attempt of a request: ask robots.txt, send, decide on what came back, and say where the request goes next."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from coordinator.errors import FetchError
from coordinator.limits.limiter import Limiter
from coordinator.limits.matcher import UpstreamMatcher
from coordinator.limits.robots_cache import RobotsCache
from coordinator.model import Outcome
from coordinator.redis.retrying import retry_unavailable
from crawler.fetch.engines.protocol import Engine
from crawler.fetch.redirect import may_carry_credentials
from crawler.fetch.retry import Decision, End, Follow, Retry, after_error, after_response
from crawler.fetch.retry_budget import RetryBudget
from crawler.fetch.robots.policy import Robots
from crawler.job.job import Job
from crawler.model import HttpResponse, Request

# Kinds of FetchError that count as a failure of the upstream, for its breaker and its rate.
UPSTREAM_FAULTS = frozenset({"dns", "connect", "tls", "timeout", "reset"})


class FetchResult(NamedTuple):
    """How a request ended. `response` is there when a response decided it; `fetched_at` is seconds since 1970."""

    outcome: Outcome
    reason: str | None
    attempts: int
    fetched_at: float
    response: HttpResponse | None


@dataclass(frozen=True, slots=True)
class RetryInPlace:
    """The request goes back into its upstream's queue after `delay` seconds: for a retry, or for a redirect's URL."""

    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Defer:
    """The request's keys go to the deferred set and are due after `delay` seconds."""

    delay: float


@dataclass(slots=True)
class Lane:
    """One of the worker's places for a request in flight.

    `must_finish`: the upstream may be working on the request, or the parser on its response. A drain waits for it.
    """

    must_finish: bool = False


@dataclass(slots=True)
class Meter:
    """Requests sent and body bytes received since the last `read`."""

    requests: int = 0
    received: int = 0

    def read(self) -> tuple[int, int]:
        """Return (requests, body bytes) since the last call, and start again from zero."""
        reading = (self.requests, self.received)
        self.requests = self.received = 0
        return reading


class Fetcher:
    """Sends requests and carries out the retry decisions. The scheduler decides when a request may be sent."""

    def __init__(
        self,
        engine: Engine,
        limiter: Limiter,
        matcher: UpstreamMatcher,
        job: Job,
        meter: Meter,
        robots_cache: RobotsCache | None = None,
    ) -> None:
        """Without `robots_cache` no robots.txt is requested, and every URL is allowed."""
        self._engine = engine
        self._limiter = limiter
        self._matcher = matcher
        self._retry_settings = job.retry
        self._max_redirects = job.request.redirects
        self._meter = meter
        self._retry_budget = RetryBudget()
        self._robots = (
            None if robots_cache is None else Robots(self._fetch_robots_txt, robots_cache, job.request.user_agent)
        )

    async def close(self) -> None:
        """Cancel the requests for robots.txt that are under way."""
        if self._robots is not None:
            await self._robots.close()

    async def fetch(self, request: Request, lane: Lane) -> FetchResult | RetryInPlace | Defer:
        """Make one attempt.

        It may be cancelled while `lane.must_finish` is false: before the request is sent, and while a pause is written
        to Redis. In the second case the response is lost, and the block's next worker sends the request again.
        """
        if self._robots is not None and (stopped := await self._check_robots(request, self._robots)) is not None:
            return stopped
        lane.must_finish = True
        self._meter.requests += 1
        self._retry_budget.add_request()
        started = time.monotonic()
        response: HttpResponse | None = None
        try:
            response = await self._engine.fetch(
                "GET", request.url, (), may_carry_credentials(request.first_url, request.url)
            )
        except FetchError as error:
            ended_at = time.time()
            decision = self._decide_on_error(request, error, ended_at, time.monotonic() - started)
        else:
            ended_at = time.time()
            decision = self._decide_on_response(request, response, ended_at, time.monotonic() - started)
        lane.must_finish = False
        if decision.pause is not None:
            await retry_unavailable(partial(self._limiter.pause, request.upstream, decision.pause), "a pause")
        return self._carry_out(decision.step, request, response, ended_at)

    async def _check_robots(self, request: Request, robots: Robots) -> FetchResult | RetryInPlace | Defer | None:
        """Return None if robots.txt allows the request now, else where the request goes without being sent."""
        permission = robots.cached_permission(request.url)
        if permission is None:
            await robots.load_permission(request.url)
            return RetryInPlace()  # its slot has passed meanwhile
        if permission.crawl_delay is not None:
            self._matcher.require_interval(request.upstream, permission.crawl_delay)
        if permission.allowed:
            return None
        now, reason = time.time(), permission.reason or "robots.txt"
        if permission.retry_after is None:
            return FetchResult(Outcome.REFUSED, reason, request.attempts.total, now, None)
        unreadable = FetchError("robots", reason, sent=False)
        step = after_error(unreadable, request.attempts, self._retry_settings, now=now, jitter=random.random())
        if isinstance(step, End):
            return FetchResult(step.outcome, step.reason, request.attempts.total + 1, now, None)
        request.attempts = step.attempts
        return Defer(max(step.delay, permission.retry_after))

    async def _fetch_robots_txt(self, url: str) -> HttpResponse:
        self._meter.requests += 1
        return await self._engine.fetch("GET", url, (), False)

    def _decide_on_error(self, request: Request, error: FetchError, now: float, seconds: float) -> Decision:
        self._limiter.report(request.upstream, failed=error.kind in UPSTREAM_FAULTS, seconds=seconds)
        step = after_error(error, request.attempts, self._retry_settings, now=now, jitter=random.random())
        return Decision(step)

    def _decide_on_response(self, request: Request, response: HttpResponse, now: float, seconds: float) -> Decision:
        self._meter.received += len(response.body)
        status = response.status
        decision = after_response(
            status,
            response.headers,
            request.url,
            request.attempts,
            self._retry_settings,
            self._max_redirects - request.hops,
            now=now,
            jitter=random.random(),
        )
        throttled = status == 503 or decision.throttled
        self._limiter.report(request.upstream, throttled=throttled, failed=status >= 500, seconds=seconds)
        return decision

    def _carry_out(
        self, step: End | Retry | Follow, request: Request, response: HttpResponse | None, now: float
    ) -> FetchResult | RetryInPlace | Defer:
        """Update the request for its next attempt, if there is one, and return where it goes."""
        if isinstance(step, End):
            return FetchResult(step.outcome, step.reason, request.attempts.total + 1, now, response)
        if isinstance(step, Follow):
            request.url = step.url
            request.upstream = self._matcher.upstream_of(step.url)
            request.hops += 1
            return RetryInPlace()
        request.attempts = step.attempts
        # A throttled request waits for the end of the pause at the front of its queue, and costs no retry budget.
        if not step.delay or self._retry_budget.grant_retry(step.delay):
            return RetryInPlace(step.delay)
        return Defer(step.delay)
