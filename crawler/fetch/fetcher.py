"""One attempt of a request: ask robots.txt, send, decide on what came back, and say where the request goes next."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial

from coordinator.errors import FetchError
from coordinator.limits.limiter import Limiter
from coordinator.limits.matcher import UpstreamMatcher
from coordinator.limits.robots_cache import RobotsCache
from coordinator.model import Outcome
from coordinator.redis.retrying import retry_unavailable
from coordinator.url import Target
from crawler.fetch.attempt import Defer, FetchResult, Lane, Meter, RetryInPlace, becomes_whole, unsent_after
from crawler.fetch.engines.protocol import Engine
from crawler.fetch.faults import UPSTREAM_FAULTS, DeadOrigins
from crawler.fetch.network.credentials import NO_CREDENTIALS, Credentials
from crawler.fetch.network.login import Login, LoginRefused, Session
from crawler.fetch.network.redirect import may_carry_credentials
from crawler.fetch.retry import (
    NOT_AGAIN,
    STORED,
    UNKNOWN,
    Decision,
    End,
    Follow,
    Retry,
    after_error,
    after_response,
    without_repeat,
)
from crawler.fetch.retry_budget import RetryBudget
from crawler.fetch.robots.policy import PERMANENT_KINDS, Robots
from crawler.fetch.template import login_request
from crawler.job.job import Job
from crawler.model import GET, HttpResponse, Payload, Request

# A key that was refused while its upstream refuses everything is due again after this time. Then it waits for its turn
# to be a probe, behind the keys that were not: one key must not be the probe for ever.
REFUSED_DEFER_SECONDS = 5.0


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
        credentials: Credentials = NO_CREDENTIALS,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Without `robots_cache` every URL is allowed. `credentials` are the engine's."""
        self._engine, self._limiter, self._matcher = engine, limiter, matcher
        self._retry_settings, self._kinds = job.retry, {one.kind: one for one in job.every_kind}
        self._max_redirects, self._max_body = job.request.redirects, job.request.max_body
        self._meter = meter
        self._credentials = credentials
        self._clock = clock
        self._login: Login | None = None
        if (login := job.request.login) is not None:
            sent = login_request(login, credentials.body_secrets, credentials.login_headers)
            self._login = Login(*sent, login.token, self._send_apart, limiter, matcher.upstream_of(sent[0]))
        self._retry_budget = RetryBudget()
        self._dead = DeadOrigins()
        self._robots = (
            None
            if robots_cache is None
            else Robots(self._fetch_robots_txt, robots_cache, job.request.user_agent, job.retry)
        )

    async def close(self) -> None:
        """Cancel the requests for robots.txt, and to log in, that are under way."""
        for part in (self._robots, self._login):
            if part is not None:
                await part.close()

    async def fetch(self, request: Request, lane: Lane) -> FetchResult | RetryInPlace | Defer:
        """Make one attempt.

        It may be cancelled while `lane.must_finish` is false: before the request is sent, and while a pause is written
        to Redis. In the second case the response is lost, and the block's next worker sends the request again.
        """
        lane.fault, lane.began_at = None, self._clock()
        if self._dead and (stopped := self._check_dead(request, lane)) is not None:
            return stopped
        if self._robots is not None and (stopped := await self._check_robots(request, self._robots, lane)) is not None:
            return stopped
        session: Session | None = None
        if self._login is not None and (session := self._login.session) is None:
            return await self._begin_session(request, self._login)
        lane.must_finish = True
        self._meter.requests += 1
        self._retry_budget.add_request()
        response, started = None, time.monotonic()
        try:
            if request.payload is GET and session is None:
                allowed = self._with_credentials(request)
                received = await self._engine.fetch("GET", request.target, request.conditions, allowed)
            else:
                received = await self._send(request, session)
            lane.release = received.release
            if len(received.body) > self._max_body:
                raise FetchError("too-large", f"the body exceeds {self._max_body} bytes")
            response = received
        except FetchError as error:
            ended_at = time.time()
            decision = self._decide_on_error(request, error, ended_at, time.monotonic() - started)
            lane.fault = error if error.kind in UPSTREAM_FAULTS else None
        else:
            ended_at = time.time()
            if self._has_ended(session, request, response.status) or becomes_whole(request, response):
                self._limiter.report(request.upstream, undecided=1)  # it may be a probe
                lane.must_finish = False
                return RetryInPlace()
            decision = self._decide_on_response(request, response, ended_at, time.monotonic() - started)
        lane.must_finish = not request.payload.is_repeatable  # its result must not be lost
        if decision.unauthorized:
            # That everybody is refused is no outcome of this key; and while it may be so, this lane asks for no other.
            await self._limiter.until_reported(request.upstream)
            if self._limiter.is_unauthorized(request.upstream):
                lane.must_finish = False
                return Defer(REFUSED_DEFER_SECONDS)
        if decision.pause is not None:
            await retry_unavailable(partial(self._limiter.pause, request.upstream, decision.pause), "a pause")
        lane.must_finish = False
        return self._carry_out(decision.step, request, response, ended_at)

    async def _send(self, request: Request, session: Session | None) -> HttpResponse:
        payload, allowed = request.payload, self._with_credentials(request)
        of_session = session.headers if session is not None and allowed else ()
        headers = (*payload.own_headers, *request.conditions, *of_session)
        return await self._engine.fetch(payload.method, request.target, headers, allowed, payload.body)

    def _with_credentials(self, request: Request) -> bool:
        origins, first = self._credentials.origins, request.first_target
        if origins is None and first is request.target:
            return request.payload.with_credentials
        if not request.payload.with_credentials or not may_carry_credentials(first, request.target):
            return False
        return origins is None or first.origin.text in origins

    def keep_fault(self, request: Request, fault: FetchError, since: float, seconds: float | None) -> None:
        """Take the fault of a request as that of every other request to its host, for some seconds or the backoff.

        `since` is when its attempt began: a request of which an attempt was counted after that has had this one. A
        fault that was taken from another request is not prolonged by that.
        """
        seconds = self._retry_settings.backoff if seconds is None else seconds
        self._dead.keep(request.target.origin.text, fault, since, self._clock() + seconds)

    def _check_dead(self, request: Request, lane: Lane) -> FetchResult | RetryInPlace | Defer | None:
        """Return None if the host may be asked now, else where the request goes without being sent."""
        now = self._clock()
        if (found := self._dead.find(request.target.origin.text, now)) is None:
            return None
        fault, since, until = found
        lane.fault, lane.began_at, delay = fault, since, until - now
        if request.counted_at >= since:
            return unsent_after(delay)
        return self.count_fault(request, fault, delay)

    def count_fault(
        self, request: Request, fault: FetchError, delay: float | None = None
    ) -> FetchResult | RetryInPlace | Defer:
        """Count a fault as an attempt of a request that was not sent, because every request there has that fault now.

        The next attempt is after `delay` seconds, or after the backoff of this request.
        """
        now = time.time()
        step = after_error(fault, request.attempts, self._retry_settings, now=now, jitter=random.random())
        if isinstance(step, End):
            return FetchResult(step.outcome, step.reason, request.attempts.total + 1, now, None)
        request.attempts, request.counted_at = step.attempts, self._clock()
        return unsent_after(step.delay if delay is None else delay)

    def _has_ended(self, session: Session | None, request: Request, status: int) -> bool:
        login = self._login
        return bool(session and login and self._with_credentials(request) and login.has_ended(session, request, status))

    async def _begin_session(self, request: Request, login: Login) -> FetchResult | RetryInPlace | Defer:
        """Log in; the request goes back into its queue, because its slot has passed."""
        self._limiter.slot_missed(request.upstream)
        try:
            await login.begin()
        except FetchError as error:
            return self.count_fault(request, error)
        except LoginRefused as refused:
            self._limiter.report(request.upstream, refused=refused.response.status)
            await self._limiter.until_reported(request.upstream)
            if self._limiter.is_unauthorized(request.upstream):
                return Defer(REFUSED_DEFER_SECONDS)
            return FetchResult(Outcome.REFUSED, str(refused), request.attempts.total, time.time(), refused.response)
        return RetryInPlace()

    async def _check_robots(
        self, request: Request, robots: Robots, lane: Lane
    ) -> FetchResult | RetryInPlace | Defer | None:
        """Return None if robots.txt allows the request now, else where the request goes without being sent."""
        if not self._kinds[request.kind].request.obeys_robots:
            return None
        cached = robots.cached_permission(request.target)
        permission = cached or await robots.load_permission(request.target)
        if permission.fault is not None:
            lane.fault = permission.fault if permission.fault.kind not in PERMANENT_KINDS else None
            return self.count_fault(request, permission.fault, permission.retry_after)
        delay = permission.crawl_delay
        if changed := delay is not None and self._matcher.require_interval(request.upstream, delay):
            self._limiter.on_change()
        if changed or cached is None:
            return RetryInPlace()  # its slot has passed, or was by another limit
        if permission.allowed:
            return None
        return FetchResult(Outcome.REFUSED, permission.reason, request.attempts.total, time.time(), None)

    async def _fetch_robots_txt(self, target: Target) -> HttpResponse:
        try:
            return await self._send_apart(target)
        except FetchError as error:
            if not error.again:
                raise
        return await self._send_apart(target)

    async def _send_apart(self, target: Target, payload: Payload = GET) -> HttpResponse:
        """Send one request that is for no key."""
        self._meter.requests += 1
        response = await self._engine.fetch(payload.method, target, payload.own_headers, False, payload.body)
        if response.release is not None:
            response.release()
        return response._replace(release=None)

    def _decide_on_error(self, request: Request, error: FetchError, now: float, seconds: float) -> Decision:
        self._meter.timings.fetch.add(seconds)
        self._limiter.report(request.upstream, failed=error.kind in UPSTREAM_FAULTS, seconds=seconds, undecided=1)
        step = after_error(error, request.attempts, self._retry_settings, now=now, jitter=random.random())
        is_unknown = error.sent and not request.payload.may_go_again
        return without_repeat(Decision(step), str(error), None) if is_unknown else Decision(step)

    def _decide_on_response(self, request: Request, response: HttpResponse, now: float, seconds: float) -> Decision:
        self._meter.add_response(len(response.body), seconds)
        status = response.status
        decision = after_response(
            status,
            response.headers,
            request.target,
            request.attempts,
            self._retry_settings,
            self._max_redirects - request.hops,
            body=response.body,
            reads_accepted=self._kinds[request.kind].reads_accepted,
            payload=request.payload,
            now=now,
            jitter=random.random(),
        )
        if decision is STORED:
            self._limiter.report(request.upstream, seconds=seconds)
            return decision
        if not request.payload.may_go_again:
            decision = without_repeat(decision, f"status {status}", status)
        decided = isinstance(decision.step, End) and decision.step.outcome is not Outcome.FAILED
        self._limiter.report(
            request.upstream,
            throttled=status == 503 or decision.throttled,
            failed=status >= 500,
            seconds=seconds,
            undecided=not decided,
            refused=status if decision.unauthorized else 0,
        )
        return decision

    def _carry_out(
        self, step: End | Retry | Follow, request: Request, response: HttpResponse | None, now: float
    ) -> FetchResult | RetryInPlace | Defer:
        """Update the request for its next attempt, if there is one, and return where it goes."""
        if isinstance(step, End):
            reason = step.reason and self._credentials.hidden(step.reason)  # it may quote a Location
            return FetchResult(step.outcome, reason, request.attempts.total + 1, now, response)
        if isinstance(step, Follow):
            request.payload = step.payload
            request.target = step.target._replace(path=self._credentials.hidden(step.target.path))
            request.upstream = self._matcher.upstream_of(step.target)
            request.hops += 1
            return RetryInPlace(step.delay)
        request.attempts, request.counted_at = step.attempts, self._clock()
        # A throttled request waits for the end of the pause at the front of its queue, and costs no retry budget.
        if not step.delay or self._retry_budget.grant_retry(step.delay):
            return RetryInPlace(step.delay)
        if request.hops and not request.payload.is_repeatable:
            reason = f"{UNKNOWN}: {request.attempts.history[-1]} after a redirect; {NOT_AGAIN}"
            return FetchResult(Outcome.FAILED, reason, request.attempts.total, now, None)
        return Defer(step.delay)
