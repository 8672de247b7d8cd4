"""One try of a request: send, note what came of it, decide what follows."""

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
from crawler.fetch.retry import Again, Decision, End, Follow, Moment, after_answer, after_error
from crawler.fetch.retry_budget import RetryBudget
from crawler.fetch.robots.policy import Robots
from crawler.job.job import Job
from crawler.model import HttpResponse, Request


class FetchResult(NamedTuple):
    """How a request ended. `response` is there when a response decided it; `at` is seconds since 1970."""

    outcome: Outcome
    reason: str | None
    attempts: int
    at: float
    response: HttpResponse | None


@dataclass(frozen=True, slots=True)
class RetryInPlace:
    """The request goes back into its line after `delay` seconds: tried again, or at the URL of a redirect."""

    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Defer:
    """The request's keys go to the delayed set for `delay` seconds."""

    delay: float


@dataclass(slots=True)
class Lane:
    """One of the worker's requests in flight; `sending` while the upstream may be at work for it."""

    sending: bool = False


@dataclass(slots=True)
class Meter:
    """What this worker sent and received since it was last read."""

    requests: int = 0
    received: int = 0

    def read(self) -> tuple[int, int]:
        """Requests and body bytes since the last reading."""
        reading = (self.requests, self.received)
        self.requests = self.received = 0
        return reading


class Fetcher:
    """Sends requests and carries out the retry decisions; who may leave when is not its business."""

    def __init__(
        self,
        engine: Engine,
        limiter: Limiter,
        matcher: UpstreamMatcher,
        job: Job,
        meter: Meter,
        cache: RobotsCache | None = None,
    ) -> None:
        """`cache` is what the fleet knows of robots.txt; without it nobody asks for it."""
        self._engine = engine
        self._limiter = limiter
        self._matcher = matcher
        self._retry = job.retry
        self._redirects = job.request.redirects
        self._meter = meter
        self._budget = RetryBudget()
        self._robots = None if cache is None else Robots(self._fetch_robots, cache, job.request.user_agent)

    async def close(self) -> None:
        """Stop asking for robots.txt."""
        if self._robots is not None:
            await self._robots.close()

    async def fetch(self, request: Request, lane: Lane) -> FetchResult | RetryInPlace | Defer:
        """Try once. Cancel it while `lane.sending` is false to give the request up."""
        if self._robots is not None and (barred := await self._barred(request, self._robots)) is not None:
            return barred
        upstream = request.upstream
        lane.sending = True
        self._meter.requests += 1
        self._budget.sent()
        began = time.monotonic()
        response: HttpResponse | None = None
        try:
            response = await self._engine.fetch(
                "GET", request.url, (), may_carry_credentials(request.first_url, request.url)
            )
        except FetchError as error:
            now = time.time()
            decision = Decision(after_error(error, request.attempts, self._retry, Moment(now, random.random())))
            self._limiter.report(upstream, failed=_is_upstreams_fault(error), seconds=time.monotonic() - began)
        else:
            now = time.time()
            self._meter.received += len(response.body)
            status = response.status
            decision = after_answer(
                status,
                response.headers,
                request.url,
                request.attempts,
                self._retry,
                Moment(now, random.random()),
                self._redirects - request.hops,
            )
            refused = status == 503 or decision.throttled
            self._limiter.report(upstream, throttled=refused, failed=status >= 500, seconds=time.monotonic() - began)
        lane.sending = False
        if decision.pause is not None:
            await retry_unavailable(partial(self._limiter.pause, upstream, decision.pause), "a pause")
        return self._placed(request, decision.step, response, now)

    async def _barred(self, request: Request, robots: Robots) -> FetchResult | RetryInPlace | Defer | None:
        """What follows when robots.txt does not let the request leave, or not now; None when it may."""
        bars = robots.known(request.url)
        if bars is None:
            await robots.permission(request.url)
            return RetryInPlace()  # the slot is gone: it was for the moment before
        if bars.crawl_delay is not None:
            self._matcher.require_interval(request.upstream, bars.crawl_delay)
        if bars.allowed:
            return None
        now, reason = time.time(), bars.reason or "robots.txt"
        if bars.again is None:
            return FetchResult(Outcome.REFUSED, reason, request.attempts.total, now, None)
        unread = FetchError("robots", reason, sent=False)
        step = after_error(unread, request.attempts, self._retry, Moment(now, random.random()))
        if isinstance(step, End):
            return FetchResult(step.outcome, step.reason, request.attempts.total + 1, now, None)
        request.attempts = step.attempts
        return Defer(max(step.delay, bars.again))

    async def _fetch_robots(self, url: str) -> HttpResponse:
        self._meter.requests += 1
        return await self._engine.fetch("GET", url, (), False)

    def _placed(
        self, request: Request, step: End | Again | Follow, response: HttpResponse | None, now: float
    ) -> FetchResult | RetryInPlace | Defer:
        if isinstance(step, End):
            attempts = request.attempts.total + 1
            return FetchResult(step.outcome, step.reason, attempts, now, response)
        if isinstance(step, Follow):
            request.url = step.url
            request.upstream = self._matcher.upstream_of(step.url)
            request.hops += 1
            return RetryInPlace()
        request.attempts = step.attempts
        # Throttled requests wait for the pause, first in their line: that is no retry that costs anybody anything.
        if not step.delay or self._budget.grants(step.delay):
            return RetryInPlace(step.delay)
        return Defer(step.delay)


def _is_upstreams_fault(error: FetchError) -> bool:
    return error.kind in ("dns", "connect", "tls", "timeout", "reset")
