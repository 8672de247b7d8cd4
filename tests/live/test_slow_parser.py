"""A parser too slow for the event loop moves to a process of its own, and a run stays what it is."""

from __future__ import annotations

import psutil
import pytest

from crawler.sample.upstream import Upstream
from tests.conftest import eventually
from tests.live.shell import Running, Shell
from tests.live.test_run import job

pytestmark = pytest.mark.anyio

KEYS = 1200
PARSER = """
import os, time

def items(response):
    name = response.json()["id"]
    end = time.thread_time() + 0.003
    while time.thread_time() < end:
        pass
    return {"things": [{"name": name, "pid": os.getpid(), "parent": os.getppid()}]}
"""
COUNTS = (
    "select outcome, count(*)::int as keys, count(distinct digest)::int as digests from pages group by 1 order by 1"
)
RECORDS = "select count(*)::int as n, count(distinct name)::int as names from things"


async def begin(shell: Shell, upstream: Upstream, workers: int = 1) -> Running:
    shell.write("keys.txt", [f"k{number}" for number in range(KEYS)])
    shell.write("parse.py", PARSER)
    columns = '[[tables]]\nname = "things"\ncolumns = { name = "text", pid = "integer", parent = "integer" }'
    text = job(upstream, f'\n[store]\nbatch_rows = 200\n[parse]\npython = "parse:items"\n{columns}')
    return await shell.start("run", shell.write("job.toml", text), "--workers", str(workers))


def parsers(worker: psutil.Process) -> list[psutil.Process]:
    try:
        return [child for child in worker.children() if "crawler.pool.child" in child.cmdline()]
    except psutil.Error:
        return []


async def parser(worker: psutil.Process) -> psutil.Process:
    await eventually(lambda: bool(parsers(worker)), "a process for the parser", seconds=60)
    return parsers(worker)[0]


async def test_each_worker_parses_in_one_process_of_its_own_whose_death_costs_nothing(
    shell: Shell, upstream: Upstream
) -> None:
    running = await begin(shell, upstream, workers=2)
    workers = [await running.child("worker-1"), await running.child("worker-2")]
    apart = [await parser(worker) for worker in workers]
    asked = upstream.requests
    await eventually(lambda: upstream.requests > asked + 100, "a hundred requests more", seconds=60)
    apart[0].kill()
    ended = await running.end()
    assert ended.code == 0, ended.err
    assert await shell.sql(COUNTS) == [{"outcome": "stored", "keys": KEYS, "digests": KEYS}]
    assert await shell.sql(RECORDS) == [{"n": KEYS, "names": KEYS}]
    assert upstream.requests == KEYS, "what was fetched is not fetched again"
    rows = await shell.sql("select pid, parent, count(*)::int as n from things group by 1, 2")
    pids = {worker.pid for worker in workers}
    assert {row["parent"] for row in rows if row["pid"] not in pids} == pids
    assert sum(row["n"] for row in rows if row["pid"] in pids) < 20, "only the first few are parsed in the loop"
    assert {one.pid for one in apart} < {row["pid"] for row in rows}
    assert ended.err.count("from now on it runs in a process of its own") == 2
    assert ended.err.count("was ended by SIGKILL; starts again") == 1
    assert not any(one.is_running() for one in apart)


async def test_a_worker_that_is_killed_takes_its_parser_along(shell: Shell, upstream: Upstream) -> None:
    running = await begin(shell, upstream)
    worker = await running.child("worker-1")
    apart = await parser(worker)
    worker.kill()
    await eventually(lambda: not apart.is_running(), "the parser's process is gone")
    ended = await running.end()
    assert ended.code == 0, ended.err
    assert await shell.sql(COUNTS) == [{"outcome": "stored", "keys": KEYS, "digests": KEYS}]
    assert await shell.sql(RECORDS) == [{"n": KEYS, "names": KEYS}]


async def test_a_drain_waits_for_what_is_being_parsed(shell: Shell, upstream: Upstream) -> None:
    running = await begin(shell, upstream)
    apart = await parser(await running.child("worker-1"))
    asked = upstream.requests
    await eventually(lambda: upstream.requests > asked + 100, "a hundred requests more", seconds=60)
    running.interrupt()
    ended = await running.end()
    assert ended.code == 130, ended.err
    assert not apart.is_running()
    fetched = upstream.requests
    assert fetched < KEYS
    await (await begin(shell, upstream)).end()
    assert await shell.sql(COUNTS) == [{"outcome": "stored", "keys": KEYS, "digests": KEYS}]
    assert await shell.sql(RECORDS) == [{"n": KEYS, "names": KEYS}]
    assert upstream.requests == KEYS, "what was fetched before the drain is not fetched again"
