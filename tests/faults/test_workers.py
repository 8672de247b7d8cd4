"""Workers die, are frozen and go on, leave, and have wrong clocks."""

from __future__ import annotations

from pathlib import Path

import asyncpg
import psutil
import pytest
from redis.asyncio import Redis

from coordinator.queue.streams import WORKER_LEASE_SECONDS
from coordinator.redis.keys import RunKeys
from tests.faults.crawl import CONCURRENCY, IN_HAND, KEYS, NAME, Crawl, lasting
from tests.live.examples import UPSTREAM_KEYS
from tests.live.shell import kill_tree
from tests.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

FAKETIME = sorted(map(str, Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")))


async def test_a_worker_frozen_for_three_leases(crawl: Crawl, redis: Redis) -> None:
    """Another worker finishes its blocks. When it goes on, its lease has ended: it joins again. No row is doubled."""
    running = await crawl.start(rate=35)
    await crawl.requested(KEYS // 10)
    worker = await running.child("worker-1")
    worker.suspend()
    await lasting(3 * WORKER_LEASE_SECONDS)
    assert crawl.upstream.requests > KEYS // 10 + CONCURRENCY, "the other worker went on alone"
    worker.resume()
    await crawl.recovered()
    ended = await crawl.complete(running)
    assert "lease on run urls has ended; joining again" in ended.err
    await crawl.audited("3 a worker frozen for 3 leases", "SIGSTOP, SIGCONT after 30 s", again=IN_HAND)


@pytest.mark.parametrize(
    ("scenario", "step"),
    [("3 frozen between COMMIT and ack", "committed"), ("4 frozen inside an open transaction", "copied")],
)
async def test_a_worker_that_goes_on_too_late_changes_nothing(
    crawl: Crawl, redis: Redis, scenario: str, step: str
) -> None:
    """The run is complete without it. When it goes on, it changes nothing in Redis and nothing in Postgres."""
    running = await crawl.start(environ={"FAILPOINT": f"worker-1:{step}:2:stop"})
    worker = await running.child("worker-1")
    await eventually(lambda: worker.status() == psutil.STATUS_STOPPED, "the worker to freeze itself")

    async def complete() -> bool:
        return await redis.hget(RunKeys(NAME).state, "state") == b"complete"

    await eventually(complete, "the run to be complete without it", seconds=60)
    before = await _fingerprint(crawl, redis)
    worker.resume()
    await crawl.complete(running)
    assert await _fingerprint(crawl, redis) == before
    await crawl.audited(scenario, "SIGSTOP at a failpoint", again=IN_HAND)


async def _fingerprint(crawl: Crawl, redis: Redis) -> tuple[dict[bytes, bytes | None], str]:
    """The keys of the run in Redis that do not expire, and every version of every page in Postgres."""
    expiring = {"leader", *UPSTREAM_KEYS}
    keys = [key async for key in redis.scan_iter() if key.decode().partition("}:")[2].split(":")[0] not in expiring]
    connection = await asyncpg.connect(crawl.environ["DATABASE_URL"])
    pages = await connection.fetchval(
        "SELECT md5(string_agg(p.xmin::text || p::text, ',' ORDER BY digest)) FROM pages_r1 p"
    )
    await connection.close()
    return {key: await redis.dump(key) for key in keys}, pages


async def test_sigterm_under_load_returns_the_leases(crawl: Crawl, redis: Redis) -> None:
    """Requests in flight are finished and committed, no lease is left, and the next workers repeat no request."""
    run = await crawl.start(command="coordinate")
    work = ("work", "--workers", "2")
    first = await crawl.shell.start(*work, environ=crawl.environ)
    await crawl.requested(KEYS // 3)
    first.process.terminate()
    assert (await first.end()).code == 0
    time = (await redis.time())[0] * 1000
    assert await redis.zcount(RunKeys(NAME).workers, time, "+inf") == 0
    assert await crawl.pages() == crawl.upstream.requests
    second = await crawl.shell.start(*work, environ=crawl.environ)
    await crawl.recovered()
    await crawl.complete(run)
    second.process.terminate()
    assert (await second.end()).code == 0
    await crawl.audited("20 SIGTERM under load", "SIGTERM to `work`, others take over")


@pytest.mark.parametrize("killed", [False, True], ids=["its grace is over", "SIGKILL"])
async def test_a_drain_that_cannot_end(crawl: Crawl, redis: Redis, killed: bool) -> None:
    """Requests in flight are given up. When the leases have ended, other workers repeat these, and no more."""
    run = await crawl.start(command="coordinate")
    work = ("work", "--workers", "2", "--grace", "2")
    first = await crawl.shell.start(*work, environ=crawl.environ)
    await crawl.requested(KEYS // 3)
    crawl.upstream.hold()
    await crawl.requested(crawl.upstream.requests + CONCURRENCY)
    first.process.terminate()
    if killed:
        await lasting(1.0)
        assert first.process.returncode is None
        kill_tree(first.process.pid)
    await first.end()
    crawl.upstream.release()
    second = await crawl.shell.start(*work, environ=crawl.environ)
    await crawl.recovered()
    await crawl.complete(run)
    second.process.terminate()
    assert (await second.end()).code == 0
    how = "SIGTERM, then SIGKILL to all of `work`" if killed else "SIGTERM, grace of 2 s"
    await crawl.audited("20 a drain that cannot end", how, again=2 * IN_HAND)


async def test_a_second_signal_leaves_at_once(crawl: Crawl) -> None:
    """The second SIGTERM does not wait for requests in flight. The next command repeats these, and no more."""
    running = await crawl.start(rate=300)
    await crawl.requested(KEYS // 3)
    children = running.children("crawler.local.child")
    crawl.upstream.hold()
    await crawl.requested(KEYS // 3 + CONCURRENCY)
    running.process.terminate()
    await eventually(lambda: not running.children("coordinator"), "the drain to begin")
    running.process.terminate()
    assert (await running.end()).code == 130
    await eventually(lambda: not any(psutil.pid_exists(child.pid) for child in children), "the children to be gone")
    crawl.upstream.release()
    ended = await crawl.complete(await crawl.start())
    assert "goes on" in ended.err
    await crawl.audited("20 two signals", "SIGTERM twice to `run`", again=2 * IN_HAND)


@pytest.mark.parametrize("offset", ["+1h", "-1h"])
@pytest.mark.skipif(not FAKETIME, reason="there is no libfaketime; install Debian's faketime")
async def test_a_worker_whose_clock_is_an_hour_off(crawl: Crawl, offset: str) -> None:
    """Leases, slots and pauses count on the clock of Redis: the run keeps its rate and the upstream's pause."""
    environ = {**crawl.environ, "LD_PRELOAD": FAKETIME[0], "FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    wrong = await crawl.shell.start("work", "--workers", "1", environ=environ)
    right = await crawl.shell.start("work", "--workers", "1", environ=crawl.environ)
    run = await crawl.start(command="coordinate", rate=400)
    await crawl.requested(KEYS // 3)
    crawl.upstream.throttle("Retry-After: 2\r\n")
    await crawl.complete(run)
    for work in (wrong, right):
        work.process.terminate()
        await work.end()
    rows = await crawl.shell.sql(
        "select count(distinct date_trunc('hour', fetched_at + interval '30 minutes')) as clocks, "
        "extract(epoch from max(fetched_at) - min(fetched_at)) > 3500 as apart from pages",
        environ=crawl.environ,
    )
    assert rows[0]["apart"], "both clocks wrote pages"
    times = crawl.upstream.times
    assert (KEYS - 1) / (times[-1] - times[0] - 2.0) <= 400
    assert crawl.upstream.silence_after(crawl.upstream.throttled[0]) >= 1.95
    await crawl.audited(f"22 a worker's clock at {offset}", "libfaketime", again=1)
