"""The breaker of an upstream: opened and closed by what all workers report, on simulated time."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from coordinator.limits.limiter import Limiter
from coordinator.limits.upstream_health import read_upstream_health
from coordinator.redis.keys import RunKeys
from coordinator.settings import LimitSettings, Window
from tests.simulation.upstream_fleet import FAILED, OK, UPSTREAM, Fleet, RedisClock

pytestmark = pytest.mark.anyio

KEYS = RunKeys("run")
RATED = LimitSettings((Window(100, 1.0),))


@pytest.fixture
async def clock(redis: Redis) -> RedisClock:
    clock = RedisClock(redis)
    await clock.set(100.0)
    return clock


async def reported(limiter: Limiter, sent: int, failed: int, *, throttled: int = 0) -> None:
    limiter.report(UPSTREAM, sent, failed=failed, throttled=throttled)
    await limiter._send_report()
    await limiter._read_changes()


async def broken(clock: RedisClock, count: int = 2) -> list[Limiter]:
    """Workers that know of an open breaker."""
    workers = [clock.limiter(KEYS, LimitSettings()) for _ in range(count)]
    await reported(workers[0], 20, 20)
    for worker in workers:
        await worker._read_changes()
        assert worker.resumes_at(UPSTREAM) == pytest.approx(101)
    return workers


async def probe(clock: RedisClock, limiter: Limiter, failed: bool) -> None:
    await clock.set(limiter.resumes_at(UPSTREAM))
    (slot,) = (await limiter.reserve(UPSTREAM, 50)).slots
    await clock.set(slot)
    assert limiter.resumes_at(UPSTREAM) <= clock()
    await reported(limiter, 1, int(failed))


@pytest.mark.parametrize(
    ("sent", "failed", "opens"),
    [(20, 20, True), (19, 19, False), (100, 91, True), (100, 90, False), (1000, 899, False)],
)
async def test_it_opens_when_most_of_enough_requests_fail(
    clock: RedisClock, sent: int, failed: int, opens: bool
) -> None:
    one, two = (clock.limiter(KEYS, LimitSettings()) for _ in range(2))
    await reported(one, sent - failed, 0)
    await clock.set(104.0)
    await reported(two, failed, failed)
    await one._read_changes()
    assert [worker.resumes_at(UPSTREAM) > clock() for worker in (one, two)] == [opens, opens]
    assert [worker.needs_slots(UPSTREAM) for worker in (one, two)] == [opens, opens]


async def test_failures_of_long_ago_do_not_count(redis: Redis, clock: RedisClock) -> None:
    limiter = clock.limiter(KEYS, LimitSettings())
    await reported(limiter, 19, 19)
    assert 0 < await redis.ttl(KEYS.health(UPSTREAM)) <= 11
    await clock.set(111.0)
    await reported(limiter, 19, 19)
    assert limiter.resumes_at(UPSTREAM) <= clock()


async def test_requests_that_are_throttled_do_not_open_it(clock: RedisClock) -> None:
    limiter = clock.limiter(KEYS, LimitSettings())
    await reported(limiter, 50, 0, throttled=50)
    assert limiter.resumes_at(UPSTREAM) <= clock()


async def test_an_open_one_gives_one_probe_to_the_fleet_at_a_time(redis: Redis, clock: RedisClock) -> None:
    one, two = await broken(clock)
    assert (await two.reserve(UPSTREAM, 5)).slots == ()
    (health,) = await read_upstream_health(redis, KEYS)
    assert health.breaker == "open"
    await clock.set(101.0)
    one._states[UPSTREAM].breaker_open_until += 0.01
    reservation = await one.reserve(UPSTREAM, 50)
    assert reservation.slots == (pytest.approx(101.0),)
    assert one.resumes_at(UPSTREAM) <= 101.0, "what a slow response made one believe does not hold the probe back"
    other = await two.reserve(UPSTREAM, 50)
    assert other.slots == ()
    assert other.again_at > 130, "a probe that was lost with its worker is given again"
    (health,) = await read_upstream_health(redis, KEYS)
    assert health.breaker == "half-open"
    await clock.set(131.0)
    assert len((await two.reserve(UPSTREAM, 50)).slots) == 1


async def test_failed_probes_come_ever_less_often_and_at_least_every_minute(clock: RedisClock) -> None:
    (worker,) = await broken(clock, 1)
    waits = []
    for _ in range(9):
        await probe(clock, worker, failed=True)
        waits.append(worker.resumes_at(UPSTREAM) - clock())
    assert waits == [pytest.approx(wait) for wait in (2, 4, 8, 16, 32, 60, 60, 60, 60)]


async def test_three_good_probes_close_it_and_the_rate_rises_slowly(redis: Redis, clock: RedisClock) -> None:
    one, two = await broken(clock)
    await probe(clock, one, failed=False)
    await probe(clock, one, failed=False)
    assert one.needs_slots(UPSTREAM)
    changes: list[None] = []
    two.on_change = lambda: changes.append(None)
    await probe(clock, one, failed=False)
    await two._read_changes()
    assert changes
    assert await read_upstream_health(redis, KEYS) == ()
    assert len((await two.reserve(UPSTREAM, 50)).slots) <= 3, "no herd"
    await clock.set(clock() + 5.0)
    assert not one.needs_slots(UPSTREAM)
    assert not two.needs_slots(UPSTREAM)
    await reported(one, 19, 19)
    assert one.resumes_at(UPSTREAM) <= clock(), "what opened it is forgotten"


async def test_a_failed_probe_among_good_ones_begins_the_count_anew(clock: RedisClock) -> None:
    (worker,) = await broken(clock, 1)
    for failed in (False, False, True):
        await probe(clock, worker, failed=failed)
    assert worker.resumes_at(UPSTREAM) == pytest.approx(clock() + 2)
    for _ in range(2):
        await probe(clock, worker, failed=False)
    assert not worker._states[UPSTREAM].breaker_closed
    await probe(clock, worker, failed=False)
    assert worker._states[UPSTREAM].breaker_closed


async def test_failures_that_were_under_way_when_it_opened_change_nothing(clock: RedisClock) -> None:
    (worker,) = await broken(clock, 1)
    for _ in range(5):
        await reported(worker, 30, 30)
    assert worker.resumes_at(UPSTREAM) == pytest.approx(101)


# -- an upstream that refuses who asks


def unauthorized_fleet(clock: RedisClock, most: int = 100) -> list[Limiter]:
    """Two workers of a job that pauses an upstream after so many refusals in a row."""
    return [clock.limiter(KEYS, LimitSettings(), most_refused=most) for _ in range(2)]


async def responded(limiter: Limiter, *statuses: int | None) -> None:
    """Report responses: refused with 401, 403 or 407, good with 200, and None for those that say nothing of it."""
    for status in statuses:
        refused = status if status in (401, 403, 407) else 0
        limiter.report(UPSTREAM, undecided=status is None, refused=refused or 0, failed=0)
    await limiter._send_report()
    await limiter._read_changes()


async def paused_by_refusals(clock: RedisClock) -> list[Limiter]:
    workers = unauthorized_fleet(clock)
    await responded(workers[0], *[401] * 100)
    for worker in workers:
        await worker._read_changes()
        assert worker.resumes_at(UPSTREAM) == pytest.approx(101)
        assert worker.is_unauthorized(UPSTREAM)
    return workers


@pytest.mark.parametrize(
    ("reports", "opens"),
    [
        ([[401] * 50, [403] * 50], True),  # two workers, one row
        ([[401] * 50, [401] * 49], False),
        ([[401] * 99, [200] + [401] * 99], False),
        ([[401] * 99, [401] * 98 + [200]], False),
        ([[401] * 50, [200], [401] * 50], False),
        ([[401] * 50, [200] + [401] * 60, [401] * 40], True),  # the row begins after the good one
        ([[401, None] * 50, [None] * 30, [None, 407] * 50], True),  # redirects, 429 and 5xx are not of the row
        ([[200] + [401] * 100], True),
        ([[401] * 100 + [200]], False),
    ],
)
async def test_it_opens_when_enough_responses_in_a_row_are_refused(
    clock: RedisClock, reports: list[list[int | None]], opens: bool
) -> None:
    workers = unauthorized_fleet(clock)
    for number, statuses in enumerate(reports):
        await clock.set(100.0 + 3600 * number)  # a slow crawl has slow rows
        await responded(workers[number % 2], *statuses)
    for worker in workers:
        await worker._read_changes()
        assert worker.is_unauthorized(UPSTREAM) is opens
        assert (worker.resumes_at(UPSTREAM) > clock()) is opens


@pytest.mark.parametrize(("good_at", "opens"), [(100.2, True), (100.4, False)])
async def test_a_report_that_comes_late_begins_no_row_anew(clock: RedisClock, good_at: float, opens: bool) -> None:
    """One worker had its last good response before or after the other one's first refusal, and reports after it."""
    first, late = unauthorized_fleet(clock)
    await clock.set(good_at)
    late.report(UPSTREAM)
    await clock.set(100.3)
    for _ in range(90):
        first.report(UPSTREAM, refused=401)
    await clock.set(100.5)
    for _ in range(5):
        late.report(UPSTREAM, refused=401)
        first.report(UPSTREAM, refused=401)
    await clock.set(100.6)
    await first._send_report()
    await responded(late)
    assert late.is_unauthorized(UPSTREAM) is opens


@pytest.mark.parametrize(("most", "opens"), [(0, False), (3, True), (1000, False)])
async def test_how_many_refusals_open_it_is_the_jobs_choice(clock: RedisClock, most: int, opens: bool) -> None:
    worker, _ = unauthorized_fleet(clock, most)
    await responded(worker, *[403] * 200)
    assert worker.is_unauthorized(UPSTREAM) is opens


async def test_what_was_refused_says_so_and_when_the_next_attempt_is(redis: Redis, clock: RedisClock) -> None:
    workers = await paused_by_refusals(clock)
    (health,) = await read_upstream_health(redis, KEYS)
    assert (health.breaker, health.status, health.refused) == ("open", 401, 100)
    assert health.summary.startswith("paused: its last 100 responses were 401, next attempt in ")
    await clock.set(101.0)
    await workers[0].reserve(UPSTREAM, 50)
    (health,) = await read_upstream_health(redis, KEYS)
    assert health.summary == "paused: its last 100 responses were 401, one attempt at a time"


async def test_only_the_worker_whose_report_opens_or_closes_it_logs_that(
    clock: RedisClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    worker, _ = await paused_by_refusals(clock)
    for _ in range(3):
        await probe_with(clock, worker, 200)
    first, last = (record.getMessage() for record in caplog.records)
    assert first.startswith("example.org is paused: its last 100 responses were 401;")
    assert last == "example.org lets requests through again"


async def probe_with(clock: RedisClock, limiter: Limiter, status: int | None) -> None:
    await clock.set(limiter.resumes_at(UPSTREAM))
    (slot,) = (await limiter.reserve(UPSTREAM, 50)).slots
    await clock.set(slot)
    await responded(limiter, status)


async def test_refused_probes_come_ever_less_often_and_a_good_one_closes_it(redis: Redis, clock: RedisClock) -> None:
    worker, other = await paused_by_refusals(clock)
    waits = []
    for status in (401, 403, 401, 401, 401, 401, 401):
        await probe_with(clock, worker, status)
        waits.append(worker.resumes_at(UPSTREAM) - clock())
    assert waits == [pytest.approx(wait) for wait in (2, 4, 8, 16, 32, 60, 60)]
    assert worker.is_unauthorized(UPSTREAM)
    await probe_with(clock, worker, 200)
    for limiter in (worker, other):
        await limiter._read_changes()
        assert not limiter.is_unauthorized(UPSTREAM)
    assert await read_upstream_health(redis, KEYS) == ()


async def test_refusals_of_some_keys_only_pause_an_upstream_ever_less_often(clock: RedisClock) -> None:
    """As of a store that responds with 403 for each file that is not there."""
    worker, _ = await paused_by_refusals(clock)
    for enough in (400, 1600):
        await probe_with(clock, worker, 200)
        await responded(worker, 200, *[403] * (enough - 1))
        assert not worker.is_unauthorized(UPSTREAM)
        await clock.set(clock() + 3600)
        await responded(worker, 403)
        assert worker.is_unauthorized(UPSTREAM)


async def test_a_probe_that_says_nothing_of_who_asks_is_followed_by_another_one(clock: RedisClock) -> None:
    worker, _ = await paused_by_refusals(clock)
    await probe_with(clock, worker, None)
    assert worker.resumes_at(UPSTREAM) <= clock()
    assert worker.is_unauthorized(UPSTREAM)
    await probe_with(clock, worker, 200)
    assert not worker.is_unauthorized(UPSTREAM)


async def test_a_probe_whose_slot_expired_makes_way_for_another_one(clock: RedisClock) -> None:
    worker, other = await paused_by_refusals(clock)
    await clock.set(101.0)
    assert len((await worker.reserve(UPSTREAM, 50)).slots) == 1
    await worker._read_changes()
    worker.slot_missed(UPSTREAM)
    assert (await other.reserve(UPSTREAM, 50)).slots == ()
    await worker._send_report()
    assert len((await other.reserve(UPSTREAM, 50)).slots) == 1
    worker.slot_missed("closed.example")
    assert not worker._tallies


async def test_a_row_is_kept_for_a_day_and_the_rest_of_the_health_for_seconds(redis: Redis, clock: RedisClock) -> None:
    worker, _ = unauthorized_fleet(clock)
    await responded(worker, 401)
    assert await redis.ttl(KEYS.health(UPSTREAM)) > 80_000
    await responded(worker, 200)
    assert 0 < await redis.ttl(KEYS.health(UPSTREAM)) <= 11


async def test_a_row_of_refusals_is_reported_before_the_next_poll(clock: RedisClock) -> None:
    worker, _ = unauthorized_fleet(clock)
    for number in range(10):
        assert not worker._report_due.is_set()
        worker.report(UPSTREAM, refused=401, undecided=0)
        if number == 4:
            worker.report(UPSTREAM, undecided=1)
    assert worker._report_due.is_set()


@pytest.mark.parametrize("auto", [False, True])
async def test_an_upstream_that_is_down_for_a_minute_gets_few_requests_and_then_all_again(
    clock: RedisClock, auto: bool
) -> None:
    limit = LimitSettings((Window(40, 1.0),), auto=auto)
    fleet = Fleet(clock, [clock.limiter(KEYS, limit) for _ in range(3)], lambda at: FAILED if 110 <= at < 170 else OK)
    await fleet.run(215.0)
    during = [at for at, _ in fleet.sent if 121 <= at < 170]
    assert 4 <= len(during) <= 6, "it opens within the ten seconds that it looks back over, and then only probes leave"
    back = next(at for at, ended in fleet.sent if at >= 170)
    assert back < 190
    assert fleet.count(FAILED, after=back) == 0
    assert fleet.count(OK, after=205.0) > 0.95 * 10 * 40
