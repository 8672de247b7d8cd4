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


@pytest.mark.parametrize("limit", [RATED, LimitSettings((Window(100, 1.0),), auto=True)])
async def test_an_upstream_that_is_down_for_a_minute_gets_few_requests_and_then_all_again(
    clock: RedisClock, limit: LimitSettings
) -> None:
    fleet = Fleet(clock, [clock.limiter(KEYS, limit) for _ in range(3)], lambda at: FAILED if 110 <= at < 170 else OK)
    await fleet.run(215.0)
    during = [at for at, _ in fleet.sent if 121 <= at < 170]
    assert 4 <= len(during) <= 6, "it opens within the ten seconds that it looks back over, and then only probes leave"
    back = next(at for at, ended in fleet.sent if at >= 170)
    assert back < 190
    assert fleet.count(FAILED, after=back) == 0
    assert fleet.count(OK, after=205.0) > 0.95 * 10 * 100
