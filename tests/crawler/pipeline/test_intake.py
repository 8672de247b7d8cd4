"""What the intake makes of a claimed block, on a real Redis. The scheduler is real too, and no lane takes from it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from redis.asyncio import Redis

from coordinator.limits.matcher import UpstreamMatcher
from coordinator.model import NO_ATTEMPTS, Attempts, Block, Claim, KeyContext, Outcome, ShardId, WorkerId
from coordinator.queue.sharding import digest
from coordinator.queue.streams import Completion
from coordinator.tasks import cancel_and_wait
from crawler.fetch.template import Template
from crawler.job.models import StoreSettings
from crawler.model import Request
from crawler.pipeline.batch import Batch, Load
from crawler.pipeline.intake import (
    FIRST_WAIT_SECONDS,
    LEVEL_WAIT_A_WORKER,
    MAX_BUSY_WAIT_SECONDS,
    MAX_DELIVERIES,
    MAX_IDLE_WAIT_SECONDS,
    MAX_LEVEL_WAIT_SECONDS,
    Intake,
)
from crawler.pipeline.scheduler import Scheduler
from tests.coordinator.parts import COORDINATOR, ONE, TWO, Run, numbered, record_of
from tests.crawler.examples import a_job
from tests.servers.scripted import ScriptedLimiter
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

API = "https://upstream.example/?ids={keys}"


class Feeding:
    """An intake at work for worker ONE."""

    def __init__(self, run: Run, *, enough: int, keys_per_request: int, **request: Any) -> None:
        self.limiter = ScriptedLimiter()
        double: Any = self.limiter
        self.scheduler = Scheduler(double, enough=enough)
        self.batch = Batch(StoreSettings(batch_age=0.01))
        self.would_only_wait = False
        self.claims: list[Claim] = []
        self._intake = Intake(
            streams=run.streams,
            done=run.done,
            worker=ONE,
            batch=self.batch,
            templates={"": Template(a_job(source={"python": "a:b"}, request={"url": API, **request}).request)},
            matcher=UpstreamMatcher({}),
            scheduler=self.scheduler,
            keys_per_request={"": keys_per_request},
            would_only_wait=lambda: self.would_only_wait,
        )
        self._open, self._intake._open = self._intake._open, self._open_and_record  # type: ignore[method-assign]
        self._task: asyncio.Task[None] | None = None

    async def _open_and_record(self, claim: Claim) -> None:
        await self._open(claim)
        self.claims.append(claim)

    def begin(self) -> None:
        self._task = asyncio.create_task(self._intake.feed())

    async def end(self) -> None:
        if self._task is not None:
            await cancel_and_wait([self._task])

    async def claimed(self, blocks: int) -> None:
        await eventually(lambda: len(self.claims) == blocks, f"{blocks} blocks to be claimed and opened")

    async def load(self) -> Load:
        async with asyncio.timeout(5):
            load = await self.batch.due()
        assert load is not None
        self.batch.flushed()
        return load

    def taken(self) -> list[Request]:
        """All requests in the scheduler, in the order in which they would leave."""
        taken = []
        while (found := self.scheduler._pick()) is not None:
            taken.append(found[1])
            self.scheduler.finished(found[1].upstream)
        return taken


@pytest.fixture
async def run(redis: Redis) -> Run:
    run = await Run.create(redis, record_of(shards=1))
    await run.streams.join(ONE)
    return run


Feed = Any


@pytest.fixture
async def feed(run: Run) -> AsyncIterator[Feed]:
    all_: list[Feeding] = []

    def feeding(*, enough: int = 10, keys_per_request: int = 1, **request: Any) -> Feeding:
        all_.append(Feeding(run, enough=enough, keys_per_request=keys_per_request, **request))
        all_[-1].begin()
        return all_[-1]

    yield feeding
    for one in all_:
        await one.end()


def keys_of(requests: Iterable[Request]) -> list[str]:
    return [item.key for request in requests for item in request.items]


def by_digest(keys: Iterable[str]) -> list[str]:
    return sorted(keys, key=digest)


async def publish(run: Run, *blocks: Block) -> None:
    assert await run.streams.publish(COORDINATOR, blocks, skipped=0, cursor="0:0", next_cursor="1:1", exhausted=True)


async def test_a_block_becomes_requests_in_its_order(run: Run, feed: Feed) -> None:
    await run.publish(numbered(25))
    feeding = feed()
    await feeding.claimed(1)
    requests = feeding.taken()
    assert keys_of(requests) == by_digest(numbered(25))
    assert (
        requests[0].target.href
        == requests[0].first_target.href
        == API.format(keys=requests[0].items[0].key.replace(" ", "%20"))
    )
    assert {(request.upstream, request.attempts) for request in requests} == {("upstream.example", NO_ATTEMPTS)}
    (block,) = {id(item.block): item.block for request in requests for item in request.items}.values()
    assert (block.keys, block.left) == (25, 25)


async def test_no_more_is_claimed_than_is_wanted(run: Run, feed: Feed) -> None:
    await run.publish(numbered(2_000))
    feeding = feed(enough=600)
    await feeding.claimed(2)
    feeding.limiter.paused_until["upstream.example"] = feeding.limiter.clock() + 3600
    assert feeding.scheduler._pick() is None
    await eventually(lambda: len(feeding.claims) == 4, "what waits for a pause is not at hand")


async def test_the_drained_shards_of_a_worker_that_left_are_passed_over_without_a_pause(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await Run.create(redis, record_of("wide", shards=16, buckets=16))
    await run.publish(numbered(1_000))
    await run.streams.join(TWO)
    await run.complete(TWO, 1, await run.drain(TWO))
    await run.streams.release(TWO)
    assert await redis.hlen(run.keys.claims) == 16, "it left holding them all"
    await run.publish(["one more"])
    await run.streams.join(ONE)
    monkeypatch.setattr("crawler.pipeline.intake.FIRST_WAIT_SECONDS", 3600.0)
    feeding = Feeding(run, enough=10, keys_per_request=1)
    feeding.begin()
    try:
        await feeding.claimed(1)
    finally:
        await feeding.end()


async def test_nothing_is_claimed_while_the_only_upstream_takes_no_more(run: Run, feed: Feed) -> None:
    feeding = feed()
    feeding.would_only_wait = True
    await run.publish(numbered(25))
    looks: list[None] = []
    feeding._intake._would_only_wait = lambda: looks.append(None) or feeding.would_only_wait
    await eventually(lambda: len(looks) > 3, "the intake to look again")
    assert feeding.claims == []
    feeding.would_only_wait = False
    await feeding.claimed(1)


async def test_keys_that_are_done_are_not_fetched_again(run: Run, feed: Feed) -> None:
    await run.publish(numbered(25))
    done = by_digest(numbered(25))[::2]
    await run.streams.complete(ONE, 1, Completion([(digest(key), Outcome.STORED) for key in done]))
    feeding = feed()
    await feeding.claimed(1)
    requests = feeding.taken()
    assert keys_of(requests) == by_digest(numbered(25))[1::2]
    assert requests[0].items[0].block.left == 12


async def test_a_block_of_which_all_keys_are_done_is_finished(run: Run, feed: Feed) -> None:
    await run.publish(numbered(25))
    await run.streams.complete(ONE, 1, Completion([(digest(key), Outcome.STORED) for key in numbered(25)]))
    feeding = feed()
    load = await feeding.load()
    (block,) = load.done_blocks
    assert (block.keys, block.left, load.pages) == (25, 0, [])
    assert feeding.taken() == []


async def test_a_refused_key_is_a_page_and_never_a_request(run: Run, feed: Feed) -> None:
    keys = by_digest(numbered(6))
    await run.publish(keys, reasons={keys[2]: "line 3: has no host"})
    feeding = feed(keys_per_request=2)
    (page,) = (await feeding.load()).pages
    assert (page.item.key, page.outcome, page.reason) == (keys[2], Outcome.REFUSED, "line 3: has no host")
    requests = feeding.taken()
    assert [keys_of([request]) for request in requests] == [keys[0:2], keys[3:5], keys[5:]]
    assert page.item.block is requests[0].items[0].block
    assert page.item.block.left == 6


async def test_attempts_stay_with_the_keys_and_a_request_has_the_most_of_its_keys(run: Run, feed: Feed) -> None:
    keys = tuple(by_digest(numbered(5)))
    attempts = {0: Attempts(1), 1: Attempts(1, 3, ("the most",)), 4: Attempts(2)}
    await publish(run, Block(ShardId(0), keys, attempts=attempts))
    feeding = feed(keys_per_request=2)
    await feeding.claimed(1)
    found = {request.items[0].key: request.attempts for request in feeding.taken()}
    assert found == {keys[0]: attempts[1], keys[2]: NO_ATTEMPTS, keys[4]: attempts[4]}


async def test_attempts_stay_with_their_keys_when_others_are_done_or_refused(run: Run, feed: Feed) -> None:
    keys = tuple(by_digest(numbered(5)))
    await publish(run, Block(ShardId(0), keys, {1: "why"}, {3: Attempts(1), 4: Attempts(2)}))
    await run.streams.complete(ONE, 1, Completion([(digest(keys[0]), Outcome.STORED)]))
    feeding = feed()
    await feeding.claimed(1)
    assert {request.items[0].key: request.attempts.failed for request in feeding.taken()} == {
        keys[2]: 0,
        keys[3]: 1,
        keys[4]: 2,
    }


async def test_the_overflow_of_the_scheduler_is_deferred(run: Run, feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crawler.pipeline.scheduler.MAX_WAITING_REQUESTS", 300)
    await run.publish(numbered(1_400))
    feeding = feed()
    feeding.limiter.rates["upstream.example"] = 0.1
    load = await feeding.load()
    assert load.deferred
    assert {one.attempts for one in load.deferred} == {NO_ATTEMPTS}
    await feeding.claimed(3)
    await eventually(lambda: run_out(feeding), "what is left to be few")
    keys = keys_of(request for queue in feeding.scheduler.queues.values() for request in queue.waiting)
    keys += [one.item.key for one in [*load.deferred, *feeding.batch._load.deferred]]
    assert sorted(keys) == sorted(numbered(1_400))


def run_out(feeding: Feeding) -> bool:
    return feeding.scheduler.waiting < 300


async def test_the_keys_of_a_request_go_alone_with_its_attempts_and_the_error(run: Run, feed: Feed) -> None:
    await run.publish(numbered(3))
    feeding = feed(keys_per_request=3)
    await feeding.claimed(1)
    (together,) = feeding.taken()
    together.attempts = Attempts(1, 2, ("12:00:00 status 503",))
    feeding._intake.put_alone(together, "parse: KeyError: 'query'")
    alone = feeding.taken()
    assert sorted(keys_of(alone)) == sorted(keys_of([together]))
    assert [len(request.items) for request in alone] == [1, 1, 1]
    for request in alone:
        assert request.target.href == API.format(keys=request.items[0].key.replace(" ", "%20"))
        assert (request.attempts.failed, request.attempts.throttled) == (2, 2)
        assert request.attempts.history[-1].endswith("parse: KeyError: 'query'")
        assert request.items[0].block is together.items[0].block


# -- blocks that workers died of


async def died_of(run: Run, times: int) -> None:
    """So many workers had every block when they died."""
    for number in range(times):
        worker = WorkerId(f"victim {number}")
        await run.streams.join(worker)
        await run.drain(worker)
        await run.died(worker)


async def test_a_block_that_workers_died_of_is_split_and_keeps_reasons_and_attempts(run: Run, feed: Feed) -> None:
    keys: Sequence[str] = by_digest(numbered(40))
    await publish(run, Block(ShardId(0), tuple(keys), {7: "why"}, {9: Attempts(2, 0, ("…",))}))
    await died_of(run, MAX_DELIVERIES)
    feeding = feed(enough=100)
    await feeding.claimed(9)
    requests = feeding.taken()
    assert sorted(keys_of(requests)) == sorted(set(keys) - {keys[7]})
    assert {request.items[0].key: request.attempts for request in requests if request.attempts.total} == {
        keys[9]: Attempts(2, 0, ("…",))
    }
    assert [(page.item.key, page.reason) for page in (await feeding.load()).pages] == [(keys[7], "why")]
    assert len({id(item.block) for request in requests for item in request.items}) == 8


async def test_a_block_that_fewer_workers_died_of_is_not_split(run: Run, feed: Feed) -> None:
    await run.publish(numbered(40))
    await died_of(run, MAX_DELIVERIES - 1)
    feeding = feed()
    await feeding.claimed(1)
    assert len({id(item.block) for request in feeding.taken() for item in request.items}) == 1


async def test_a_key_that_is_alone_in_such_a_block_fails(run: Run, feed: Feed) -> None:
    await run.publish(["killer", "done"])
    await run.streams.complete(ONE, 1, Completion([(digest("done"), Outcome.STORED)]))
    await died_of(run, MAX_DELIVERIES)
    feeding = feed()
    (page,) = (await feeding.load()).pages
    assert (page.item.key, page.outcome) == ("killer", Outcome.FAILED)
    assert page.reason == f"{MAX_DELIVERIES} workers died while they had this key"
    assert page.item.block.left == 1
    assert feeding.taken() == []
    await run.streams.join(TWO)
    assert await run.next(TWO) is None


@pytest.mark.parametrize("deaths", [1, MAX_DELIVERIES])
async def test_keys_that_a_dead_worker_may_have_sent_fail_where_nothing_is_sent_twice(
    run: Run, feed: Feed, deaths: int
) -> None:
    keys: Sequence[str] = by_digest(numbered(3))
    await publish(run, Block(ShardId(0), tuple(keys), {1: "why"}))
    await died_of(run, deaths)
    feeding = feed(json={"id": "{key}"})
    pages = (await feeding.load()).pages
    assert feeding.taken() == []
    assert {page.item.key: page.outcome for page in pages} == {
        **dict.fromkeys(keys, Outcome.FAILED),
        keys[1]: Outcome.REFUSED,
    }
    assert {str(page.reason).partition(":")[0] for page in pages} == {"outcome unknown", "why"}


async def test_a_key_without_a_field_that_the_request_names_is_refused(run: Run, feed: Feed) -> None:
    """One block may have keys of either kind."""
    contexts = {0: KeyContext(fields={"country": "de"})}
    keys: Sequence[str] = by_digest(numbered(2))
    await publish(run, Block(ShardId(0), tuple(keys), contexts=contexts))
    feeding = feed(json={"id": "{key}"}, headers={"X-Market": "{country}"})
    (page,) = (await feeding.load()).pages
    assert (page.item.key, page.outcome) == (keys[1], Outcome.REFUSED)
    assert page.reason == "has no field 'country', which [request] names"
    (request,) = feeding.taken()
    assert (request.payload.body, request.payload.headers) == (f'{{"id":"{keys[0]}"}}'.encode(), (("X-Market", "de"),))


async def test_a_kind_that_the_job_does_not_have_is_refused(run: Run, feed: Feed) -> None:
    """Another program wrote the block, whose job follows nothing."""
    (known, unknown) = by_digest(numbered(2))
    await publish(run, Block(ShardId(0), (known, unknown), contexts={1: KeyContext("product")}))
    feeding = feed(keys_per_request=1)
    (page,) = (await feeding.load()).pages
    assert (page.item.key, page.outcome) == (unknown, Outcome.REFUSED)
    assert page.reason == "it is of kind 'product', which the job does not have"
    assert [request.items[0].key for request in feeding.taken()] == [known]


@pytest.mark.parametrize(
    ("by_level", "depth", "earlier", "looked_up"),
    [
        pytest.param(True, 1, 0, False, id="found at another depth"),
        pytest.param(True, 1, 1, True, id="taken over"),
        pytest.param(True, 0, 0, True, id="of the source"),
        pytest.param(False, 1, 0, True, id="the source may have it too"),
    ],
)
async def test_keys_that_cannot_be_done_are_not_looked_up(
    run: Run, by_level: bool, depth: int, earlier: int, looked_up: bool
) -> None:
    keys = tuple(by_digest(numbered(2)))
    await publish(run, Block(ShardId(0), keys, contexts=dict.fromkeys(range(2), KeyContext(depth=depth))))
    await run.streams.complete(ONE, 1, Completion([(digest(key), Outcome.STORED) for key in keys]))
    await died_of(run, earlier)
    feeding = Feeding(run, enough=1, keys_per_request=1)
    feeding._intake._by_level = by_level
    feeding.begin()
    await feeding.claimed(1)
    await feeding.end()
    assert keys_of(feeding.taken()) == ([] if looked_up else list(keys))


# How many requests wait and how many of them are at hand, of each upstream.
ENOUGH, PAUSED, FEW = (1000, 50), (1000, 0), (50, 50)


@pytest.mark.parametrize(
    ("queues", "fleet", "follows", "most"),
    [
        ((), 64, False, MAX_IDLE_WAIT_SECONDS),
        ((), 1, True, LEVEL_WAIT_A_WORKER),
        ((), 2, True, 2 * LEVEL_WAIT_A_WORKER),
        ((), 64, True, MAX_LEVEL_WAIT_SECONDS),
        ((ENOUGH, ENOUGH), 8, True, MAX_BUSY_WAIT_SECONDS),
        ((ENOUGH,), 64, False, 8 * MAX_BUSY_WAIT_SECONDS),
        ((ENOUGH, FEW), 64, False, MAX_IDLE_WAIT_SECONDS),
        ((PAUSED,), 64, False, MAX_IDLE_WAIT_SECONDS),
    ],
)
async def test_an_idle_intake_claims_less_and_less_often(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    queues: Sequence[tuple[int, int]],
    fleet: int,
    follows: bool,
    most: float,
) -> None:
    waits: list[float] = []

    async def nap(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 12:
            raise asyncio.CancelledError

    feeding = Feeding(run, enough=1, keys_per_request=1)
    for number, (waiting, at_hand) in enumerate(queues):
        queue: Any = SimpleNamespace(waiting=range(waiting), at_hand=at_hand)
        feeding.scheduler.queues[str(number)] = queue
    feeding._intake._follows, feeding._intake.fleet = follows, fleet
    monkeypatch.setattr(asyncio, "sleep", nap)
    with pytest.raises(asyncio.CancelledError):
        await feeding._intake.feed()
    assert waits == [min(FIRST_WAIT_SECONDS * 2**number, most) for number in range(12)]
