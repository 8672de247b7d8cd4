"""Workers and Postgres die while a refresh carries pages over: each key once, and what is carried equals its base."""

from __future__ import annotations

import signal

import pytest

from tests.faults.crawl import KEYS, NAME, Crawl
from tests.faults.table import Row
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
