from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import pytest
from redis.asyncio import Redis

from coordinator.errors import FetchError
from coordinator.keys import RunKeys
from coordinator.limiter import Limiter
from coordinator.model import Outcome
from coordinator.together import cancelled
from crawler.fetch.engine import Answer
from crawler.fetch.fetcher import Drained, Fetcher, Lane, Meter
from tests.conftest import eventually

from .examples import a_job

pytestmark = pytest.mark.anyio

URL = "https://Upstream.example/a"
OTHER = "https://other.example/a"


class Sent(dict[str, str]):
    """Headers of a response."""

    def items(self) -> list[tuple[str, str]]:  # type: ignore[override]
        return list(super().items())


def answer(status: int, body: bytes = b"", **headers: str) -> Answer:
    return Answer(status, Sent({name.replace("_", "-"): value for name, value in headers.items()}), body)


class Script:
    """An engine that follows a script; the last line is repeated. `times` are when each request left."""

    def __init__(self, *lines: Answer | BaseException, hold: asyncio.Event | None = None) -> None:
        self._lines = list(lines)
        self._hold = hold
        self.times: list[float] = []
        self.urls: list[str] = []
        self.inside = 0
        self.most = 0
        self.lane: Lane | None = None
        self.sending: list[bool] = []

    async def fetch(self, method: str, url: str, headers: tuple[tuple[str, str], ...]) -> Answer:
        assert (method, headers) == ("GET", ())
        self.times.append(monotonic())
        self.urls.append(url)
        if self.lane is not None:
            self.sending.append(self.lane.sending)
        line = self._lines.pop(0) if len(self._lines) > 1 else self._lines[0]
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            await (self._hold.wait() if self._hold else asyncio.sleep(0))
        finally:
            self.inside -= 1
        if isinstance(line, BaseException):
            raise line
        return line

    async def close(self) -> None:
        """Nothing is open."""


class Fleet:
    """Workers' fetchers that share one Redis and one run."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._watches: list[asyncio.Task[None]] = []
        self.limiters: list[Limiter] = []

    def fetcher(self, engine: Script, meter: Meter | None = None, **sections: Any) -> Fetcher:
        limiter = Limiter(self._redis, RunKeys("test"))
        self.limiters.append(limiter)
        self._watches.append(asyncio.create_task(limiter.watch()))
        job = a_job(**{"retry": {"attempts": 3, "backoff": 0.001}} | sections)
        return Fetcher(engine, limiter, job, meter or Meter())

    async def end(self) -> None:
        await cancelled(self._watches)


@pytest.fixture
async def fleet(redis: Redis) -> AsyncIterator[Fleet]:
    fleet = Fleet(redis)
    yield fleet
    await fleet.end()


@asynccontextmanager
async def at_work(*calls: Any) -> AsyncIterator[Sequence[asyncio.Task[Any]]]:
    tasks = [asyncio.create_task(call) for call in calls]
    try:
        yield tasks
    finally:
        await cancelled(tasks)


async def test_a_request_is_tried_again_until_it_succeeds(fleet: Fleet) -> None:
    good = answer(200, b"body")
    lines = (FetchError("reset", "peer"), answer(429, retry_after="0"), answer(503), good)
    engine = Script(*lines)
    reply = await fleet.fetcher(engine).fetch(URL, Lane())
    assert (reply.outcome, reply.reason, reply.attempts, reply.answer) == (Outcome.STORED, None, 4, good)
    assert engine.urls == [URL] * 4


async def test_a_request_that_never_succeeds_fails_with_its_last_reason(fleet: Fleet) -> None:
    last = answer(500, b"sorry")
    engine = Script(FetchError("timeout", "total"), last)
    reply = await fleet.fetcher(engine).fetch(URL, Lane())
    assert (reply.outcome, reply.reason, reply.attempts) == (Outcome.FAILED, "status 500 after 3 attempts", 3)
    assert reply.answer is last
    assert len(engine.times) == 3


async def test_an_error_at_the_end_leaves_no_answer_of_an_earlier_try(fleet: Fleet) -> None:
    engine = Script(answer(500), answer(500), FetchError("reset", "peer"))
    reply = await fleet.fetcher(engine).fetch(URL, Lane())
    assert (reply.outcome, reply.reason) == (Outcome.FAILED, "reset: peer after 3 attempts")
    assert reply.answer is None


@pytest.mark.parametrize(
    ("line", "outcome", "reason"),
    [
        (answer(204), Outcome.STORED, None),
        (answer(304), Outcome.UNCHANGED, None),
        (answer(404), Outcome.GONE, "status 404"),
        (answer(403), Outcome.REFUSED, "status 403"),
        (answer(302, location="https://other.example/"), Outcome.REFUSED, "redirect 302"),
        (FetchError("address", "x is at 10.0.0.1"), Outcome.REFUSED, "address: x is at 10.0.0.1"),
        (FetchError("too-large", "body"), Outcome.FAILED, "too-large: body"),
    ],
)
async def test_what_is_decided_at_once_costs_one_request(
    fleet: Fleet, line: Answer | FetchError, outcome: Outcome, reason: str | None
) -> None:
    engine = Script(line)
    reply = await fleet.fetcher(engine).fetch(URL, Lane())
    assert (reply.outcome, reply.reason, reply.attempts) == (outcome, reason, 1)
    assert len(engine.times) == 1


async def test_a_429_at_one_worker_stops_every_worker_at_that_upstream(fleet: Fleet) -> None:
    scolded, second = Script(answer(429, retry_after="1"), answer(200)), Script(answer(200))
    first_worker, second_worker = fleet.fetcher(scolded), fleet.fetcher(second)
    async with at_work(first_worker.fetch(URL, Lane())) as (first,):
        await eventually(lambda: fleet.limiters[1].resumes("upstream.example") > 0, "the second worker hears of it")
        await second_worker.fetch(URL, Lane())
        await first
    assert second.times[0] - scolded.times[0] >= 0.99
    assert scolded.times[1] - scolded.times[0] >= 0.99


async def test_a_pause_at_one_upstream_is_none_at_another(fleet: Fleet) -> None:
    paused, other = Script(answer(429, retry_after="3600")), Script(answer(200))
    first_worker, second_worker = fleet.fetcher(paused), fleet.fetcher(other)
    async with at_work(first_worker.fetch(URL, Lane()), second_worker.fetch(OTHER, Lane())) as (first, _):
        await eventually(lambda: fleet.limiters[1].resumes("upstream.example") > 0, "the second worker hears of it")
        async with at_work(second_worker.fetch(URL, Lane())) as (held,), asyncio.timeout(30):
            await second_worker.fetch(OTHER, Lane())
            assert not held.done()
        assert not first.done()
    assert set(other.urls) == {OTHER}


async def test_a_pause_holds_back_who_waits_for_a_slot_already(fleet: Fleet) -> None:
    limits = {"upstream.example": {"rate": 10}}
    second = Script(answer(200))
    second_worker = fleet.fetcher(second, limits=limits)
    scolded = Script(answer(503, retry_after="1"), answer(200))
    first_worker = fleet.fetcher(scolded, limits=limits)
    async with at_work(first_worker.fetch(URL, Lane()), *(second_worker.fetch(URL, Lane()) for _ in range(8))) as all_:
        await eventually(lambda: fleet.limiters[0].resumes("upstream.example") > 0, "the pause is known")
        before = len(second.times)
        await asyncio.gather(*all_)
    assert before < len(second.times) == 8
    assert second.times[before] - scolded.times[0] >= 0.99


async def test_a_rate_is_one_for_all_workers(fleet: Fleet) -> None:
    limits = {"upstream.example": {"rate": 50}}
    engines = [Script(answer(200)), Script(answer(200))]
    workers = [fleet.fetcher(engine, limits=limits) for engine in engines]
    await asyncio.gather(*(worker.fetch(URL, Lane()) for worker in workers for _ in range(15)))
    times = sorted(engines[0].times + engines[1].times)
    assert len(times) == 30
    assert times[-1] - times[0] >= 29 / 50 * 0.9


async def test_a_draining_worker_gives_a_request_up_between_two_tries(fleet: Fleet) -> None:
    engine = Script(answer(500))
    fetcher = fleet.fetcher(engine)
    fetcher.draining = True
    with pytest.raises(Drained):
        await fetcher.fetch(URL, Lane())
    assert len(engine.times) == 1


async def test_a_draining_worker_still_takes_what_it_gets(fleet: Fleet) -> None:
    fetcher = fleet.fetcher(Script(answer(404)))
    fetcher.draining = True
    assert (await fetcher.fetch(URL, Lane())).outcome is Outcome.GONE


async def test_the_meter_counts_every_try_and_every_body(fleet: Fleet) -> None:
    meter = Meter()
    engine = Script(FetchError("reset", ""), answer(500, b"12345"), answer(200, b"123"))
    await fleet.fetcher(engine, meter).fetch(URL, Lane())
    assert meter.read() == (3, 8)
    assert meter.read() == (0, 0)


async def test_a_lane_is_sending_just_while_the_upstream_may_be_at_work(fleet: Fleet) -> None:
    lane = Lane()
    engine = Script(answer(429, retry_after="60"))
    engine.lane = lane
    fetcher = fleet.fetcher(engine)
    async with at_work(fetcher.fetch(URL, lane)):
        await eventually(lambda: fleet.limiters[0].resumes("upstream.example") > monotonic(), "the pause")
        assert not lane.sending
    assert engine.sending == [True]

    for line in (answer(200), answer(404), FetchError("url", "")):
        lane = Lane()
        engine = Script(line)
        engine.lane = lane
        await fleet.fetcher(engine).fetch(OTHER, lane)
        assert engine.sending == [True]
        assert not lane.sending


@pytest.mark.parametrize("error", [FetchError("decode", "gzip"), RuntimeError("a bug"), asyncio.CancelledError()])
async def test_the_place_at_the_upstream_is_given_back_on_every_error(fleet: Fleet, error: BaseException) -> None:
    fetcher = fleet.fetcher(Script(error, answer(200)), limits={"*": {"concurrency": 1}})
    async with at_work(fetcher.fetch(URL, Lane())) as (failing,):
        await asyncio.wait([failing])
    async with asyncio.timeout(5):
        assert (await fetcher.fetch(URL, Lane())).outcome is Outcome.STORED


async def test_a_request_that_is_cancelled_in_flight_gives_its_place_back(fleet: Fleet) -> None:
    hold = asyncio.Event()
    engine = Script(answer(200), hold=hold)
    fetcher = fleet.fetcher(engine, limits={"*": {"concurrency": 1}})
    async with at_work(fetcher.fetch(URL, Lane())):
        await eventually(lambda: engine.inside == 1, "the request is sent")
    hold.set()
    async with asyncio.timeout(5):
        assert (await fetcher.fetch(URL, Lane())).outcome is Outcome.STORED


async def test_no_place_is_held_while_a_request_waits_to_be_tried_again(fleet: Fleet) -> None:
    engine = Script(answer(500), answer(200))
    slow = {"attempts": 3, "backoff": 3600, "max_delay": 3600}
    fetcher = fleet.fetcher(engine, limits={"*": {"concurrency": 1}}, retry=slow)
    async with at_work(fetcher.fetch(URL, Lane())):
        await eventually(lambda: len(engine.times) == 1, "the first try")
        async with asyncio.timeout(5):
            assert (await fetcher.fetch(URL, Lane())).outcome is Outcome.STORED


async def test_a_worker_keeps_to_its_share_also_at_an_upstream_it_meets_later(fleet: Fleet) -> None:
    hold = asyncio.Event()
    engine = Script(answer(200), hold=hold)
    fetcher = fleet.fetcher(engine, limits={"*": {"concurrency": 4}})
    fetcher.resize(0, 2)
    async with at_work(*(fetcher.fetch(URL, Lane()) for _ in range(8))) as fetches:
        await eventually(lambda: engine.inside == 2, "two are in flight")
        fetcher.resize(1, 4)
        hold.set()
        await asyncio.gather(*fetches)
    assert engine.most == 2
