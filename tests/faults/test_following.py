"""A crawl that follows what pages name is disturbed: each page is stored once, lists are whole, little is repeated."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from redis.asyncio import Redis

from coordinator.redis.keys import RunKeys
from tests.faults.crawl import NAME, Crawl
from tests.faults.test_redis import call, streams
from tests.live.shell import Running
from tests.servers.linked import PAGES, Linked, depths
from tests.servers.own_servers import own_redis
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

BATCH_ROWS = 40
# What one worker may fetch again: 32 requests in flight and a batch.
IN_HAND = 32 + BATCH_ROWS
RATE = 250
# Bounds let all found keys go through the frontier; a depth lets each level wait for the one before.
BOUNDED, BY_LEVEL = "most = 1000000", "depth = 20"


@pytest.fixture
async def upstream() -> AsyncIterator[Linked]:
    async with Linked() as upstream:
        yield upstream


async def start(crawl: Crawl, rule: str = "", *, failpoint: str = "", rate: str = "none", workers: int = 1) -> Running:
    rest = f"""
        [[follow]]
        from = "links[]"
        {rule}
        [paginate]
        next = "next?"
        [store]
        batch_rows = {BATCH_ROWS}
    """
    environ = {"FAILPOINT": failpoint, "SHARDCRAWL_RATE": rate, "SHARDCRAWL_WORKERS": str(workers)}
    return await crawl.start_job([f"{crawl.upstream.url}/page/0"], rest=rest, environ=environ)


async def every_page_once(crawl: Crawl, scenario: str, injected: str, *, again: int) -> None:
    """Check that each key of the site has one page, that lists are whole, and what was requested more than once."""
    assert isinstance(crawl.upstream, Linked)
    keys = crawl.upstream.keys()
    assert await crawl.outcomes() == dict.fromkeys(keys, ("stored", None))
    await crawl.agreed(scenario, injected, len(keys))
    assert crawl.upstream.requests <= len(keys) + again, crawl.upstream.requests - len(keys)


@pytest.mark.slow
async def test_a_crawl_in_which_nothing_happens_asks_for_each_page_once(crawl: Crawl) -> None:
    await crawl.complete(await start(crawl))
    await every_page_once(crawl, "26 found keys", "nothing", again=0)


STEPS = [
    pytest.param("worker-1", "committed", "", id="committed", marks=pytest.mark.slow),
    pytest.param("worker-1", "named", "", id="named"),
    pytest.param("worker-1", "named", BOUNDED, id="named-frontier", marks=pytest.mark.slow),
    pytest.param("worker-1", "completed", "", id="completed", marks=pytest.mark.slow),
    pytest.param("worker-1", "copied", "", id="copied", marks=pytest.mark.slow),
    pytest.param("worker-1", "committed", BY_LEVEL, id="committed-level", marks=pytest.mark.slow),
    pytest.param("coordinator", "found", BOUNDED, id="found", marks=pytest.mark.slow),
    pytest.param("coordinator", "followed", BOUNDED, id="followed", marks=pytest.mark.slow),
    pytest.param("coordinator", "followed", BY_LEVEL, id="followed-level", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("who", "step", "rule"), STEPS)
async def test_a_child_that_dies_at_a_step_of_following(crawl: Crawl, who: str, step: str, rule: str) -> None:
    ended = await crawl.complete(await start(crawl, rule, failpoint=f"{who}:{step}:3"))
    assert f"{who} was ended by SIGKILL" in ended.err
    await every_page_once(crawl, "26 found keys, killed at a step", f"{who}: {step} {rule}".strip(), again=IN_HAND)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["named", pytest.param("committed", marks=pytest.mark.slow)])
async def test_a_bounded_rule_finds_exactly_its_most_whoever_dies(crawl: Crawl, step: str) -> None:
    ended = await crawl.complete(await start(crawl, "most = 333", failpoint=f"worker-1:{step}:4"))
    assert "worker-1 was ended by SIGKILL" in ended.err
    found = [key for key in await crawl.outcomes() if "?at=" not in key]
    assert len(found) == 1 + 333
    await crawl.agreed("26 found keys, bounded", f"worker-1: {step}", len(await crawl.outcomes()))


@pytest.mark.slow
async def test_by_level_every_page_has_the_least_depth_although_a_worker_dies(crawl: Crawl) -> None:
    ended = await crawl.complete(await start(crawl, BY_LEVEL, failpoint="worker-1:committed:2", workers=2))
    assert "worker-1 was ended by SIGKILL" in ended.err
    rows = await crawl.shell.sql("select key, depth from pages where list is null", environ=crawl.environ)
    url = crawl.upstream.url
    assert {row["key"].removeprefix(url): row["depth"] or 0 for row in rows} == depths()
    await every_page_once(crawl, "26 found keys, by level", "worker-1: committed", again=IN_HAND)


@pytest.mark.slow
@pytest.mark.parametrize("who", ["redis", "postgres", "coordinator", "worker-1"])
@pytest.mark.parametrize("rule", ["", BOUNDED], ids=["at once", "frontier"])
async def test_a_process_is_killed_in_a_crawl(embedded_crawl: Crawl, who: str, rule: str) -> None:
    crawl = embedded_crawl
    running = await start(crawl, rule, rate=str(RATE), workers=2)
    for third in (1, 2):
        await crawl.requested(third * PAGES // 3)
        killed = await running.child(who)
        killed.kill()
        await eventually(lambda: has_ended(killed), "its end")  # noqa: B023 - of this round
    await crawl.complete(running)
    again = 2 * 2 * IN_HAND
    await every_page_once(crawl, f"27 {who} killed in a crawl", f"SIGKILL, twice {rule}".strip(), again=again)


def has_ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    "rule", ["", pytest.param(BOUNDED, marks=pytest.mark.slow), pytest.param(BY_LEVEL, marks=pytest.mark.slow)]
)
async def test_redis_loses_the_queue_and_the_frontier_of_a_crawl(crawl: Crawl, tmp_path: Path, rule: str) -> None:
    """They are rebuilt from the found keys in Postgres; what is stored is not asked for again."""
    async with own_redis(tmp_path) as server:
        crawl.environ["REDIS_URL"] = server.url
        running = await start(crawl, rule, rate=str(RATE))
        await crawl.requested(PAGES // 2)
        await call(server.url, "FLUSHALL")
        ended = await crawl.complete(running)
        assert "rebuilt from Postgres" in ended.err
        await every_page_once(
            crawl, "28 Redis empty in a crawl", f"FLUSHALL {rule}".strip(), again=2 * IN_HAND + 2 * RATE
        )


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["", BOUNDED])
async def test_a_stream_vanishes_in_a_crawl(crawl: Crawl, redis: Redis, rule: str) -> None:
    """The source does not have these keys: the run is rebuilt from Postgres."""
    running = await start(crawl, rule, rate=str(RATE))
    await crawl.requested(PAGES // 3)

    async def trimmed() -> bool:
        deleted = [await redis.xtrim(stream, maxlen=0, approximate=False) for stream in await streams(redis)]
        return sum(deleted) > 0

    await eventually(trimmed, "entries to delete")
    ended = await crawl.complete(running)
    assert "rebuilt from Postgres" in ended.err
    await every_page_once(crawl, "29 streams vanish in a crawl", f"XTRIM {rule}".strip(), again=2 * IN_HAND + 2 * RATE)


@pytest.mark.slow
async def test_the_frontier_vanishes_in_a_crawl(crawl: Crawl, redis: Redis) -> None:
    running = await start(crawl, BY_LEVEL, rate=str(RATE))
    await crawl.requested(PAGES // 3)
    await eventually(lambda: deleted(redis, RunKeys(NAME).frontier), "a pointer to delete")
    ended = await crawl.complete(running)
    assert "rebuilt from Postgres" in ended.err
    await every_page_once(crawl, "29 the frontier vanishes", "DEL", again=2 * IN_HAND + 2 * RATE)


async def deleted(redis: Redis, key: str) -> bool:
    return bool(await redis.delete(key))


POINTERS = {
    "x": 0.0,
    "1 2": 1.0,
    "0 0 2147483647": 0.0,
    "7 2147483647 1": 2.0**31,
    "8 3 2147483646": float("-inf"),
    "1 -1 1": 0.0,
    "1" * 5000 + " 1 1": 0.0,
    "9 1 1": float("inf"),
    "5 0 0": -1e300,
}


@pytest.mark.slow
@pytest.mark.parametrize("rule", [BOUNDED, BY_LEVEL])
@pytest.mark.parametrize("what", ["pointers", "types", "numbers"])
async def test_another_program_writes_into_the_frontier(crawl: Crawl, redis: Redis, rule: str, what: str) -> None:
    """No process dies of it, and no key is lost: where Redis cannot be believed any more, the run is rebuilt."""
    keys = RunKeys(NAME)
    running = await start(crawl, rule, rate=str(RATE))
    await crawl.requested(PAGES // 4)
    if what == "pointers":
        await redis.zadd(keys.frontier, POINTERS)
    elif what == "numbers":
        await redis.hset(keys.state, mapping={"pending": "9" * 30, "level": "x", "followed:0": "-5e400", "cut": "x"})
    else:
        for name in [name async for name in redis.scan_iter(match=f"{keys.prefix}known:*")]:
            await redis.set(name, "text")
        await redis.set(keys.frontier, "text")
    ended = await crawl.complete(running)
    assert "was ended by" not in ended.err
    await every_page_once(crawl, "29 the frontier is written", f"{what} {rule}", again=2 * IN_HAND + 2 * RATE)
