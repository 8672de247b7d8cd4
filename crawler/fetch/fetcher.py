"""One request to its end: wait for a slot, send, decide, again."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from functools import partial

from coordinator.errors import FetchError
from coordinator.limiter import Budget, Limiter
from coordinator.model import Outcome
from coordinator.patience import patiently
from coordinator.settings import Job
from crawler.fetch.engine import Answer, Engine
from crawler.fetch.gate import Gate
from crawler.fetch.retry import Again, Tries, after_error, after_status
from crawler.fetch.template import upstream_of


@dataclass(frozen=True, slots=True)
class Reply:
    """How a request ended. `answer` is there when a response decided it; `at` is seconds since 1970."""

    outcome: Outcome
    reason: str | None
    attempts: int
    at: float
    answer: Answer | None


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


class Drained(Exception):
    """The request was given up between two tries, because the worker leaves."""


class Fetcher:
    """Sends requests within each upstream's budget and follows the retry decisions."""

    def __init__(self, engine: Engine, limiter: Limiter, job: Job, meter: Meter) -> None:
        self._engine = engine
        self._limiter = limiter
        self._job = job
        self._meter = meter
        self._ways: dict[str, tuple[Gate, Budget]] = {}
        self._place: tuple[int, int] | None = None
        self._places: tuple[tuple[int, int], ...] = ((0, 1),)
        self.draining = False

    async def fetch(self, url: str, lane: Lane) -> Reply:
        """The request's end. Cancel it while `lane.sending` is false to give it up.

        Raises Drained when `draining` was set and another try would be needed.
        """
        upstream = upstream_of(url)
        gate, budget = self._way(upstream)
        tries = Tries()
        while True:
            async with gate:
                await budget.acquire()
                lane.sending = True
                self._meter.requests += 1
                answer: Answer | None = None
                try:
                    answer = await self._engine.fetch("GET", url, ())
                except FetchError as error:
                    tries = Tries(tries.failed + 1, tries.throttled)
                    decision = after_error(error, tries, self._job.retry, random.random())
                else:
                    self._meter.received += len(answer.body)
                    status = answer.status
                    if status == 200:
                        lane.sending = False
                        return Reply(Outcome.STORED, None, tries.total + 1, time.time(), answer)
                    tries = (
                        Tries(tries.failed, tries.throttled + 1)
                        if status == 429
                        else Tries(tries.failed + 1, tries.throttled)
                    )
                    decision = after_status(
                        status,
                        answer.headers.get("retry-after"),
                        answer.headers.get("date"),
                        tries,
                        self._job.retry,
                        random.random(),
                    )
                lane.sending = False
            if not isinstance(decision, Again):
                return Reply(decision.outcome, decision.reason, tries.total, time.time(), answer)
            if self.draining:
                raise Drained
            if decision.pause is not None:
                await patiently(partial(self._limiter.pause, upstream, decision.pause), "a pause")
            await asyncio.sleep(decision.delay)

    def resize(self, rank: int, size: int, turn: int = 0) -> None:
        """Take this worker's share of each upstream's concurrency, as `rank` of `size` workers, rotated by `turn`.

        A share grows one call later than it may: by then the worker that had it before has heard of it too.
        """
        before, self._place = self._place, ((rank + turn) % max(size, 1), size)
        self._places = (before or self._place, self._place)
        for gate, _ in self._ways.values():
            gate.settle(*self._places)

    def shut(self, url: str) -> bool:
        """Whether nothing may be sent to this URL's upstream, because this worker has no share of it now."""
        return self._way(upstream_of(url))[0].shut

    def _way(self, upstream: str) -> tuple[Gate, Budget]:
        way = self._ways.get(upstream)
        if way is None:
            limit = self._job.limit(upstream)
            gate = Gate(limit.concurrency)
            gate.settle(*self._places)
            way = self._ways[upstream] = (gate, self._limiter.budget(upstream, limit.rate))
        return way
