"""What replaces the rest of the world for a worker: an upstream without limits, a parser, a Postgres of one table."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from coordinator.errors import PostgresUnavailable
from coordinator.model import FoundBatch, FoundKey, Outcome, Presence
from coordinator.queue.sharding import digest
from crawler.fetch.attempt import Defer, FetchResult, Lane, Meter, RetryInPlace
from crawler.fetch.retry import add_attempt
from crawler.model import Page, Request
from crawler.pipeline.batch import Batch, Load
from crawler.pipeline.intake import Intake
from crawler.pipeline.upstream_queue import UpstreamQueue
from tests.simulation.faulty_client import FaultyClient
from tests.simulation.truth import Truth, pause
from tests.simulation.turns import IDLE

FETCH, COMMIT = "fetch", "commit"


class Killed(BaseException):
    """The process dies of the key that it fetches."""


class OneQueueScheduler:
    """In the place of Scheduler: one queue, whose upstream has no limit."""

    def __init__(self, enough: int) -> None:
        self._enough = enough
        self.waiting: deque[Request] = deque()
        self.queues: dict[str, UpstreamQueue] = {}  # without a limit no request is one too many

    def put(self, request: Request, delay: float = 0.0) -> None:
        (self.waiting.appendleft if delay else self.waiting.append)(request)

    async def next(self) -> Request:
        while not self.waiting:
            await pause(IDLE)
        return self.waiting.popleft()

    async def until_low(self) -> None:
        while len(self.waiting) >= self._enough:
            await pause(IDLE)

    @property
    def empty(self) -> bool:
        return not self.waiting

    @property
    def at_hand(self) -> int:
        return len(self.waiting)

    def overflow(self) -> list[tuple[Request, float]]:
        return []

    reached = frozenset({"upstream"})

    def finished(self, upstream: str, reached: bool, slow: bool) -> None:
        """Nothing is counted here."""

    def resize(self, presence: Presence) -> None:
        """Nothing here is shared."""


class PromptBatch(Batch):
    """A batch that is due as soon as it has a page: the schedule decides how many more it gets."""

    async def due(self) -> Load | None:
        while not self._is_due():
            if self._closing:
                return None
            await pause(IDLE)
        return await super().due()


class DictWriter:
    """In the place of Writer: a dict of pages. A page that is there stays as it is."""

    def __init__(self, truth: Truth, client: FaultyClient, name: str) -> None:
        self._truth = truth
        self._client = client
        self._name = name

    async def write(self, pages: Sequence[Page]) -> list[FoundBatch]:
        found: list[FoundBatch] = await self._client.send(
            COMMIT, lambda: self._commit(pages), error=PostgresUnavailable
        )
        return found

    def _commit(self, pages: Sequence[Page]) -> list[FoundBatch]:
        rows = {page.item.digest: (page.outcome, self._name) for page in pages}
        fresh = {name: row for name, row in rows.items() if name not in self._truth.pages}
        self._truth.pages.update(fresh)
        again = f", {len(rows) - len(fresh)} again" if len(rows) > len(fresh) else ""
        self._truth.say(self._name, f"commits {len(fresh)} pages{again}")
        before = {self._truth.batches[name] for name in rows if name in self._truth.batches}
        batch = len(self._truth.trace)
        new: dict[bytes, FoundKey] = {}
        for page in pages:
            if page.item.digest in fresh:
                new |= {one.digest: one for one in page.found if one.digest not in self._truth.found}
                self._truth.batches[page.item.digest] = batch
        stored = [
            replace(found, keys=(), example=found.keys[0].digest)
            for found in found_batches(self._truth, lambda digest, number: number in before)
        ]
        self._truth.found |= {name: (one, batch) for name, one in new.items()}
        return stored + found_batches(self._truth, lambda digest, number: number == batch)


def found_batches(truth: Truth, chosen: Callable[[bytes, int], bool]) -> list[FoundBatch]:
    """The found keys in Postgres that are chosen by their digests and batches, as batches."""
    groups: dict[tuple[int, int], list[FoundKey]] = {}
    for name, (one, batch) in truth.found.items():
        if chosen(name, batch):
            groups.setdefault((batch, one.context.depth), []).append(one)
    return [FoundBatch(batch, depth, len(keys), tuple(keys)) for (batch, depth), keys in groups.items()]


class CountingFetcher:
    """In the place of Fetcher: it sends nothing, and counts requests. Some keys need two or three attempts."""

    def __init__(self, truth: Truth, name: str, meter: Meter) -> None:
        self._truth = truth
        self._name = name
        self._meter = meter

    async def fetch(self, request: Request, lane: Lane) -> FetchResult | RetryInPlace | Defer:
        url = request.items[0].key
        lane.must_finish = True
        await pause(FETCH)
        lane.must_finish = False
        self._meter.requests += 1
        keys = [item.key for item in request.items]
        self._truth.fetches.update(keys)
        self._truth.say(self._name, f"fetches {url}")
        if self._truth.poison in keys:
            raise Killed
        attempted = request.attempts.failed
        if attempted < digest(url)[14] % 4 - 1:
            request.attempts = add_attempt(request.attempts, "status 503", self._truth.now / 1000)
            self._truth.deferred.update(keys)
            return Defer(float(digest(url)[13] % 8)) if attempted == 0 else RetryInPlace(1.0)
        return FetchResult(Outcome.STORED, None, 1, self._truth.now / 1000, None)


def outcome_of(key: str) -> Outcome:
    return (Outcome.STORED, Outcome.STORED, Outcome.GONE, Outcome.FAILED)[digest(key)[15] % 4]


class SimplePageBuilder:
    """In the place of PageBuilder. Its parser fails on the responses for some groups of keys."""

    def __init__(self, truth: Truth, intake: Intake) -> None:
        self._truth = truth
        self._intake = intake

    async def build(self, request: Request, result: FetchResult) -> list[Page]:
        if len(request.items) > 1 and digest(request.target.href)[12] % 4 == 0:
            self._truth.say("parser", f"fails on {request.target.href}")
            self._truth.deferred.update(item.key for item in request.items)
            self._intake.put_alone(request, "parse: ValueError")
            return []
        return [
            Page(item, item.key, outcome_of(item.key), found=list(self._truth.links.get(item.key, ())))
            for item in request.items
        ]
