"""One try of a request: send, note what came of it, decide what follows."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from coordinator.errors import FetchError
from coordinator.limiter import Limiter
from coordinator.model import Outcome
from coordinator.patience import patiently
from coordinator.robots import RobotsCache
from coordinator.settings import Job
from coordinator.upstreams import Upstreams
from crawler.fetch.engine import Answer, Engine
from crawler.fetch.redirect import trusts
from crawler.fetch.retry import Again, End, Follow, Moment, Verdict, after_answer, after_error
from crawler.fetch.retry_budget import RetryBudget
from crawler.fetch.robots import Robots
from crawler.page import Request


class Reply(NamedTuple):
    """How a request ended. `answer` is there when a response decided it; `at` is seconds since 1970."""

    outcome: Outcome
    reason: str | None
    attempts: int
    at: float
    answer: Answer | None


@dataclass(frozen=True, slots=True)
class Soon:
    """The request goes back into its line after `delay` seconds: tried again, or at the URL of a redirect."""

    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Later:
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
        upstreams: Upstreams,
        job: Job,
        meter: Meter,
        cache: RobotsCache | None = None,
    ) -> None:
        """`cache` is what the fleet knows of robots.txt; without it nobody asks for it."""
        self._engine = engine
        self._limiter = limiter
        self._upstreams = upstreams
        self._retry = job.retry
        self._redirects = job.request.redirects
        self._meter = meter
        self._budget = RetryBudget()
        self._robots = None if cache is None else Robots(self._fetch_robots, cache, job.request.user_agent)

    async def close(self) -> None:
        """Stop asking for robots.txt."""
        if self._robots is not None:
            await self._robots.close()

    async def fetch(self, request: Request, lane: Lane) -> Reply | Soon | Later:
        """Try once. Cancel it while `lane.sending` is false to give the request up."""
        if self._robots is not None and (barred := await self._barred(request, self._robots)) is not None:
            return barred
        upstream = request.upstream
        lane.sending = True
        self._meter.requests += 1
        self._budget.sent()
        began = time.monotonic()
        answer: Answer | None = None
        try:
            answer = await self._engine.fetch("GET", request.url, (), trusts(request.asked, request.url))
        except FetchError as error:
            now = time.time()
            verdict = Verdict(after_error(error, request.tries, self._retry, Moment(now, random.random())))
            self._limiter.note(upstream, failed=_is_upstreams_fault(error), seconds=time.monotonic() - began)
        else:
            now = time.time()
            self._meter.received += len(answer.body)
            status = answer.status
            verdict = after_answer(
                status,
                answer.headers,
                request.url,
                request.tries,
                self._retry,
                Moment(now, random.random()),
                self._redirects - request.hops,
            )
            refused = status == 503 or verdict.throttled
            self._limiter.note(upstream, throttled=refused, failed=status >= 500, seconds=time.monotonic() - began)
        lane.sending = False
        if verdict.pause is not None:
            await patiently(partial(self._limiter.pause, upstream, verdict.pause), "a pause")
        return self._placed(request, verdict.step, answer, now)

    async def _barred(self, request: Request, robots: Robots) -> Reply | Soon | Later | None:
        """What follows when robots.txt does not let the request leave, or not now; None when it may."""
        bars = robots.known(request.url)
        if bars is None:
            await robots.verdict(request.url)
            return Soon()  # the slot is gone: it was for the moment before
        if bars.crawl_delay is not None:
            self._upstreams.space(request.upstream, bars.crawl_delay)
        if bars.allowed:
            return None
        now, reason = time.time(), bars.reason or "robots.txt"
        if bars.again is None:
            return Reply(Outcome.REFUSED, reason, request.tries.total, now, None)
        unread = FetchError("robots", reason, sent=False)
        step = after_error(unread, request.tries, self._retry, Moment(now, random.random()))
        if isinstance(step, End):
            return Reply(step.outcome, step.reason, request.tries.total + 1, now, None)
        request.tries = step.tries
        return Later(max(step.delay, bars.again))

    async def _fetch_robots(self, url: str) -> Answer:
        self._meter.requests += 1
        return await self._engine.fetch("GET", url, (), False)

    def _placed(
        self, request: Request, step: End | Again | Follow, answer: Answer | None, now: float
    ) -> Reply | Soon | Later:
        if isinstance(step, End):
            attempts = request.tries.total + 1
            return Reply(step.outcome, step.reason, attempts, now, answer)
        if isinstance(step, Follow):
            request.url = step.url
            request.upstream = self._upstreams.of(step.url)
            request.hops += 1
            return Soon()
        request.tries = step.tries
        # Throttled requests wait for the pause, first in their line: that is no retry that costs anybody anything.
        if not step.delay or self._budget.grants(step.delay):
            return Soon(step.delay)
        return Later(step.delay)


def _is_upstreams_fault(error: FetchError) -> bool:
    return error.kind in ("dns", "connect", "tls", "timeout", "reset")
