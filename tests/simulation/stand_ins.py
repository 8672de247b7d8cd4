"""What stands in for the world around a worker: an upstream that may always be asked, a Postgres of one table."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from coordinator.errors import PostgresUnavailable
from coordinator.model import Outcome, Presence
from coordinator.queue.sharding import digest
from crawler.fetch.fetcher import Defer, Lane, Meter, RetryInPlace
from crawler.fetch.retry import noted
from crawler.model import Page, Request
from crawler.pipeline.batch import Batch, Load
from tests.simulation.client import Client
from tests.simulation.loop import IDLE
from tests.simulation.truth import Truth, pause

FETCH, COMMIT = "fetch", "commit"


class Killed(BaseException):
    """This process died of the key that it fetched."""


class OneLine:
    """Lines of an upstream that may be asked at any time, in which lanes wait turn by turn."""

    def __init__(self, enough: int) -> None:
        self._enough = enough
        self.waiting: deque[Request] = deque()

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

    def finished(self, upstream: str) -> None:
        """Nobody counts."""

    def resize(self, presence: Presence) -> None:
        """Nothing here is shared."""


class PromptBatch(Batch):
    """A batch that is due as soon as it has anything: the schedule decides how long it fills."""

    async def due(self) -> Load | None:
        while not self._is_due():
            if self._closing:
                return None
            await pause(IDLE)
        return await super().due()


class DictWriter:
    """A Postgres of one table: a page that is there stays as it is."""

    def __init__(self, truth: Truth, client: Client, name: str) -> None:
        self._truth = truth
        self._client = client
        self._name = name

    async def write(self, pages: Sequence[Page]) -> None:
        await self._client.send(COMMIT, lambda: self._commit(pages), error=PostgresUnavailable)

    def _commit(self, pages: Sequence[Page]) -> None:
        rows = {page.item.digest: (page.outcome, self._name) for page in pages}
        fresh = {name: row for name, row in rows.items() if name not in self._truth.pages}
        self._truth.pages.update(fresh)
        again = f", {len(rows) - len(fresh)} again" if len(rows) > len(fresh) else ""
        self._truth.say(self._name, f"commits {len(fresh)} pages{again}")


class CountingFetcher:
    """Asks nobody, and counts what it would have asked. Some keys need a second or a third try."""

    def __init__(self, truth: Truth, name: str, meter: Meter) -> None:
        self._truth = truth
        self._name = name
        self._meter = meter

    async def fetch(self, request: Request, lane: Lane) -> str | RetryInPlace | Defer:
        url = request.url
        lane.sending = True
        await pause(FETCH)
        lane.sending = False
        self._meter.requests += 1
        self._truth.fetches[url] += 1
        self._truth.say(self._name, f"fetches {url}")
        if url == self._truth.poison:
            raise Killed
        attempted = request.attempts.failed
        if attempted < digest(url)[14] % 4 - 1:
            request.attempts = noted(request.attempts, "status 503", self._truth.now / 1000)
            self._truth.deferred[url] += 1
            return Defer(float(digest(url)[13] % 8)) if attempted == 0 else RetryInPlace(1.0)
        return url


def outcome_of(key: str) -> Outcome:
    return (Outcome.STORED, Outcome.STORED, Outcome.GONE, Outcome.FAILED)[digest(key)[15] % 4]


class OnePage:
    """What the parser makes of a reply."""

    async def build(self, request: Request, result: str) -> list[Page]:
        return [Page(item, request.url, outcome_of(item.key)) for item in request.items]
