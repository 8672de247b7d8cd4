"""Processes of transforms, workers and Postgres are killed: each key once, and each of its rows once."""

from __future__ import annotations

import psutil
import pytest

from crawler.pool import child
from tests.faults.crawl import Crawl
from tests.live.shell import Running
from tests.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

KEYS, ROWS = 1000, 3
PARSER = """
def items(response):
    return {"things": [{"id": response.json()["id"]}]}
"""
FEATURES = """
import time

def batch(records):
    made = []
    for record in records:
        end = time.thread_time() + 0.005
        while time.thread_time() < end:
            pass
        made += [{"_key": record["_key"], "id": record["id"], "n": n} for n in range(3)]
    return made
"""
JOB = """
[store]
batch_rows = 200
[parse]
python = "parse:items"
[transform]
python = "features:batch"
batch = 20
processes = 2
[[tables]]
name = "things"
columns = { id = "text", n = "integer" }
"""
COUNTS = (
    "select count(*)::int as rows, count(distinct (digest, n))::int as each, count(distinct digest)::int as keys, "
    "count(*) filter (where key like '%/item/' || id)::int as own from things join pages using (run_id, digest)"
)


async def transform_process(running: Running) -> psutil.Process:
    """A process of the first worker's transform."""
    found: list[psutil.Process] = []

    async def there() -> bool:
        try:
            worker = await running.child("worker-1")
            found[:] = [one for one in worker.children() if child.__name__ in one.cmdline()]
        except psutil.Error:
            return False
        return bool(found)

    await eventually(there, "a process of the transform", seconds=60)
    return found[0]


async def test_everybody_is_killed_again_and_again(embedded_crawl: Crawl) -> None:
    """A process, then Postgres, then the worker, each while the others work: twice."""
    crawl = embedded_crawl
    crawl.shell.write("parse.py", PARSER)
    crawl.shell.write("features.py", FEATURES)
    keys = [f"{crawl.upstream.url}/item/{number}" for number in range(KEYS)]
    running = await crawl.start_job(keys, rest=JOB)
    await crawl.requested(KEYS // 10)
    for _ in range(2):  # a key that three workers die with fails
        before = await crawl.pages()
        (await transform_process(running)).kill()
        (await running.child("postgres")).kill()
        await crawl.recovered(before)
        (await running.child("worker-1")).kill()
        await crawl.recovered()
    ended = await crawl.complete(running)
    assert "transform features:batch's process was ended by SIGKILL; starts again" in ended.err
    await crawl.agreed("30 transforms, Postgres and workers killed", "SIGKILL, twice each", KEYS)
    reasons = "select outcome, reason, count(*)::int as keys from pages group by 1, 2"
    assert await crawl.shell.sql(reasons, crawl.environ) == [{"outcome": "stored", "reason": None, "keys": KEYS}]
    counts = {"rows": ROWS * KEYS, "each": ROWS * KEYS, "keys": KEYS, "own": ROWS * KEYS}
    assert await crawl.shell.sql(COUNTS, crawl.environ) == [counts]
