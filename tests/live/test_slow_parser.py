"""A parser that is too slow for the event loop moves to a child process, and the run ends with the same rows."""

from __future__ import annotations

import re

import psutil
import pytest

from crawler.pool import child
from crawler.sample.upstream import Upstream
from tests.live.examples import job
from tests.live.shell import Running, Shell
from tests.waiting import eventually

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


async def start_run(shell: Shell, upstream: Upstream, workers: int = 1) -> Running:
    shell.write("keys.txt", [f"k{number}" for number in range(KEYS)])
    shell.write("parse.py", PARSER)
    columns = '[[tables]]\nname = "things"\ncolumns = { name = "text", pid = "integer", parent = "integer" }'
    text = job(upstream, f'\n[store]\nbatch_rows = 200\n[parse]\npython = "parse:items"\n{columns}')
    return await shell.start("run", shell.write("job.toml", text), "--workers", str(workers))


def parser_processes(worker: psutil.Process) -> list[psutil.Process]:
    try:
        return [process for process in worker.children() if child.__name__ in process.cmdline()]
    except psutil.Error:
        return []


async def parser_process(worker: psutil.Process) -> psutil.Process:
    await eventually(lambda: bool(parser_processes(worker)), "a process for the parser", seconds=60)
    return parser_processes(worker)[0]


@pytest.mark.slow
async def test_each_worker_parses_in_one_process_of_its_own_whose_death_costs_nothing(
    shell: Shell, upstream: Upstream
) -> None:
    running = await start_run(shell, upstream, workers=2)
    workers = [await running.child("worker-1"), await running.child("worker-2")]
    processes = [await parser_process(worker) for worker in workers]
    before = upstream.requests
    await eventually(lambda: upstream.requests > before + 100, "a hundred requests more", seconds=60)
    processes[0].kill()
    ended = await running.end()
    assert ended.code == 0, ended.err
    assert await shell.sql(COUNTS) == [{"outcome": "stored", "keys": KEYS, "digests": KEYS}]
    assert await shell.sql(RECORDS) == [{"n": KEYS, "names": KEYS}]
    assert upstream.requests == KEYS, "what was fetched is not fetched again"
    rows = await shell.sql("select pid, parent, count(*)::int as n from things group by 1, 2")
    pids = {worker.pid for worker in workers}
    assert {row["parent"] for row in rows if row["pid"] not in pids} == pids
    assert sum(row["n"] for row in rows if row["pid"] in pids) < 20, "only the first few are parsed in the loop"
    assert {one.pid for one in processes} < {row["pid"] for row in rows}
    assert ended.err.count("from now on it runs in a process of its own") == 2
    assert ended.err.count("was ended by SIGKILL; starts again") == 1
    assert not any(one.is_running() for one in processes)


HANGS = """
import re
from my_rows import row

def items(response):
    if response.key == "k7":
        while True:
            pass
    if response.key == "k77":
        re.match("(a+)+$", "a" * 60 + "b")
    return {"things": [row(response.json())]}
"""


@pytest.mark.slow
async def test_keys_whose_parser_never_returns_fail_alone_on_two_machines(
    shell: Shell, upstream: Upstream, environ: dict[str, str]
) -> None:
    """No worker dies of them. Files in the working folder that have names of this program's modules change nothing."""
    shell.write("uvloop.py", "raise SystemExit('the file in the working folder')\n")
    for package in ("crawler", "coordinator"):
        (shell.folder / package).mkdir()
        shell.write(f"{package}/__init__.py", "raise SystemExit('the folder in the working folder')\n")
    shell.write("my_rows.py", "def row(item): return {'name': item['id']}\n")
    shell.write("parse.py", HANGS)
    shell.write("keys.txt", [f"k{number}" for number in range(KEYS)])
    parse = '[parse]\npython = "parse:items"\ntimeout = 0.5\n[[tables]]\nname = "things"\ncolumns = { name = "text" }'
    work = ("work", "--workers", "1", "--allow-parser", "parse:items", "--allow-private", "127.0.0.0/8")
    machines = [await shell.start(*work, environ=environ) for _ in range(2)]
    ended = await shell.run("coordinate", shell.write("job.toml", job(upstream, f"\n{parse}")), environ=environ)
    assert f"{KEYS - 2:,}" in ended.out
    for machine in machines:
        machine.interrupt()
        assert "starts again" not in (await machine.end()).err
    failed = await shell.sql("select key, reason from pages where outcome <> 'stored' order by 1", environ=environ)
    assert [row["key"] for row in failed] == ["k7", "k77"]
    words = r"parse: OutOfTime: no result within 0\.5 s \(\[parse\] timeout\) \(parse\.py, line {}\)"
    for row, line in zip(failed, ("[78]", "10"), strict=True):
        assert re.fullmatch(words.format(line), row["reason"])
    assert await shell.sql(RECORDS, environ=environ) == [{"n": KEYS - 2, "names": KEYS - 2}]
    assert upstream.requests == KEYS, "nothing is requested again"


@pytest.mark.slow
async def test_a_worker_that_is_killed_takes_its_parser_along(shell: Shell, upstream: Upstream) -> None:
    running = await start_run(shell, upstream)
    worker = await running.child("worker-1")
    process = await parser_process(worker)
    worker.kill()
    await eventually(lambda: not process.is_running(), "the parser's process is gone")
    ended = await running.end()
    assert ended.code == 0, ended.err
    assert await shell.sql(COUNTS) == [{"outcome": "stored", "keys": KEYS, "digests": KEYS}]
    assert await shell.sql(RECORDS) == [{"n": KEYS, "names": KEYS}]


@pytest.mark.slow
async def test_a_drain_waits_for_what_is_being_parsed(shell: Shell, upstream: Upstream) -> None:
    running = await start_run(shell, upstream)
    process = await parser_process(await running.child("worker-1"))
    before = upstream.requests
    await eventually(lambda: upstream.requests > before + 100, "a hundred requests more", seconds=60)
    running.interrupt()
    ended = await running.end()
    assert ended.code == 130, ended.err
    assert not process.is_running()
    fetched = upstream.requests
    assert fetched < KEYS
    await (await start_run(shell, upstream)).end()
    assert await shell.sql(COUNTS) == [{"outcome": "stored", "keys": KEYS, "digests": KEYS}]
    assert await shell.sql(RECORDS) == [{"n": KEYS, "names": KEYS}]
    assert upstream.requests == KEYS, "what was fetched before the drain is not fetched again"
