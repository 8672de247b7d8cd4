"""Workers and Postgres die while a refresh carries pages over: each key once, and what is carried equals its base."""

from __future__ import annotations

import json
import signal

import pytest
from redis.asyncio import Redis

from tests.faults.crawl import KEYS, NAME, Crawl
from tests.faults.table import Row
from tests.servers.network import Proxy
from tests.servers.own_servers import NoPgbouncer, pgbouncer
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

EDITED = [f"{number}" for number in range(0, KEYS, 50)]
COMPARED = "key, url, body, etag, last_modified, body_digest, content_digest, final_url, encoding"
PAGES = (
    "select count(*) as keys, count(distinct digest) as digests, count(*) filter (where outcome = 'stored') as stored, "
    "count(*) filter (where outcome = 'unchanged') as unchanged from pages_r2"
)
DIFFERENT = (
    f"select split_part(key, '/item/', 2) as id from (select {COMPARED} from pages_r2 except "
    f"select {COMPARED} from pages_r1) as other"
)


async def begun(crawl: Crawl) -> None:
    """Complete the base, and change some of its pages."""
    await crawl.complete(await crawl.start("--name", NAME, rate=None, workers=1))
    crawl.upstream.edit(EDITED)


async def carried(crawl: Crawl, scenario: str, injected: str) -> None:
    """Check that each key has one page, and that only those that were edited are others than in the base."""
    (counts,) = await crawl.shell.sql(PAGES, environ=crawl.environ)
    crawl.report(Row(scenario, injected, KEYS - counts["digests"], counts["keys"] - counts["digests"], crawl.recovery))
    unchanged = KEYS - len(EDITED)
    assert counts == {"keys": KEYS, "digests": KEYS, "stored": len(EDITED), "unchanged": unchanged}
    assert sorted(row["id"] for row in await crawl.shell.sql(DIFFERENT, environ=crawl.environ)) == sorted(EDITED)
    await crawl.shell.run("audit", "second", environ=crawl.environ)


@pytest.mark.slow
@pytest.mark.parametrize(
    "step",
    [pytest.param("copied", marks=pytest.mark.slow), "committed", pytest.param("completed", marks=pytest.mark.slow)],
)
async def test_a_worker_dies_while_it_carries_pages_over(embedded_crawl: Crawl, step: str) -> None:
    crawl = embedded_crawl
    await begun(crawl)
    failpoint = {"FAILPOINT": f"worker-1:{step}:3"}
    running = await crawl.start("--refresh", "--name", "second", rate=None, environ=failpoint)
    ended = await crawl.complete(running)
    assert "worker-1 was ended by SIGKILL" in ended.err
    await carried(crawl, "1 killed in a refresh", f"worker-1: {step}")


@pytest.mark.slow
async def test_versions_behind_pgbouncer_in_transaction_mode(crawl: Crawl) -> None:
    """A refresh, and all that is done with versions, where each transaction may have another of two sessions."""
    try:
        async with Proxy(crawl.environ["DATABASE_URL"]) as proxy, pgbouncer(proxy) as url:
            pooled = crawl.environ | {"DATABASE_URL": url}
            await crawl.complete(await crawl.start("--name", NAME, rate=None, environ=pooled))
            crawl.upstream.edit(EDITED)
            await crawl.complete(await crawl.start("--refresh", "--name", "second", rate=None, environ=pooled))
            await carried(crawl, "19 a refresh behind pgbouncer, transaction mode", "2 sessions for 2 workers")
            (row,) = await crawl.shell.sql("select corpus from corpora", environ=crawl.environ)
            ended = await crawl.shell.run("diff", row["corpus"], "--json", environ=pooled)
            assert json.loads(ended.out)["changes"]["changed"] == len(EDITED)
            await crawl.shell.run("rollback", row["corpus"], environ=pooled)
            await crawl.shell.run("publish", "second", environ=pooled)
            await crawl.shell.run("prune", row["corpus"], "--keep", "1", environ=pooled)
            assert await crawl.shell.sql("select name from runs", environ=crawl.environ) == [{"name": "second"}]
    except NoPgbouncer as error:
        pytest.skip(str(error))


@pytest.mark.slow
async def test_redis_is_emptied_in_a_refresh_that_goes_on_from_its_base(crawl: Crawl, redis: Redis) -> None:
    """Also when its command is interrupted before it has rebuilt the run, and called again when readers were given
    another run meanwhile.
    """
    await begun(crawl)
    (row,) = await crawl.shell.sql("select corpus from corpora", environ=crawl.environ)
    await crawl.complete(await crawl.start("--name", "whole", rate=None))
    running = await crawl.start("--refresh", "--name", "second", rate=KEYS // 5)
    await crawl.requested(2 * KEYS + 1)

    async def some_committed() -> bool:
        return bool(await crawl.shell.sql("select from pages_r3 limit 1", environ=crawl.environ))

    await eventually(some_committed, "the first commit")
    await redis.flushall()
    running.interrupt()
    interrupted = await running.end()
    assert interrupted.code == 130, interrupted.err
    assert "second is interrupted: 0 of" not in interrupted.out
    await redis.flushall()
    await crawl.shell.run("rollback", row["corpus"], environ=crawl.environ)
    ended = await crawl.complete(await crawl.start("--refresh", "--name", "second", rate=None))
    assert "rebuilt from Postgres" in ended.err
    bases = "select n.base_run, (n.layout ->> 'carried_run')::int as carried from runs n where name = 'second'"
    assert await crawl.shell.sql(bases, environ=crawl.environ) == [{"base_run": 2, "carried": 2}]
    outcomes = "select outcome, count(*) as keys from pages_r3 group by 1"
    assert await crawl.shell.sql(outcomes, environ=crawl.environ) == [{"outcome": "unchanged", "keys": KEYS}]
    await crawl.shell.run("audit", "second", environ=crawl.environ)


@pytest.mark.slow
async def test_postgres_dies_while_pages_are_carried_over(embedded_crawl: Crawl) -> None:
    crawl = embedded_crawl
    await begun(crawl)
    running = await crawl.start("--refresh", "--name", "second")
    await crawl.requested(KEYS + KEYS // 3)
    server = await running.child("postgres")
    server.send_signal(signal.SIGKILL)
    await eventually(lambda: not server.is_running() or server.status() == "zombie", "the death of Postgres")
    await crawl.complete(running)
    await carried(crawl, "5 Postgres killed in a refresh", "kill -9")
