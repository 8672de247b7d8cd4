"""Several machines, and a parser that is not the same on all of them, or that is edited between two commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from crawler.sample.upstream import Upstream
from tests.live.examples import job
from tests.live.shell import Shell
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

KEYS = 300
PARSER = 'def items(response):\n    return {"items": [{"item_id": response.key, "version": VERSION}]}\n'
PARSED = """
[parse]
python = "parse:items"
[[tables]]
name = "items"
columns = { item_id = "text", version = "bigint" }
"""
VERSIONS = "select version, count(*) as rows from items_r1 group by 1 order by 1"


def parser(folder: Path, version: int) -> str:
    """Write a parser of this version into the folder; returns the folder."""
    folder.mkdir(exist_ok=True)
    (folder / "parse.py").write_text(f"VERSION = {version}\n{PARSER}")
    return str(folder)


async def test_only_workers_with_the_parser_of_the_run_join(
    shell: Shell, upstream: Upstream, environ: dict[str, str], tmp_path: Path
) -> None:
    """Each machine has its modules in a folder of its own. A worker that does not join says which file is why."""
    shell.write("keys.txt", [str(number) for number in range(KEYS)])
    path = shell.write("job.toml", job(upstream, PARSED))
    first, second = parser(tmp_path / "first", 1), parser(tmp_path / "second", 2)
    work = ("work", "--workers", "1", "--allow-parser", "parse:items")
    coordinator = await shell.start("coordinate", path, environ={**environ, "PYTHONPATH": first})
    others = [
        (await shell.start(*work, environ={**environ, "PYTHONPATH": second}), "parse.py is not the one with which"),
        (
            await shell.start(*work, environ=environ),
            f"this machine has no {shell.folder}/parse.py; ",
        ),
    ]
    for other, says in others:
        assert other.process.stderr is not None
        while says not in (line := (await other.process.stderr.readline()).decode()):
            assert line, f"the command has ended and has not said {says!r}"
        assert "run test: [parse] python: " in line
    assert upstream.requests == 0
    joins = await shell.start(*work, environ={**environ, "PYTHONPATH": first})
    ended = await coordinator.end()
    assert f"run test is complete: {KEYS} keys" in ended.out, ended.err
    for machine in (joins, *(other for other, _ in others)):
        machine.interrupt()
        assert (await machine.end()).code == 0
    assert await shell.sql(VERSIONS, environ=environ) == [{"version": 1, "rows": KEYS}]


async def test_a_run_that_goes_on_takes_the_edited_parser_and_says_so(
    shell: Shell, upstream: Upstream, environ: dict[str, str]
) -> None:
    shell.write("keys.txt", [str(number) for number in range(KEYS)])
    path = shell.write("job.toml", job(upstream, PARSED))
    parser(shell.folder, 1)
    running = await shell.start("run", path, "--rate", "50", environ=environ)
    await eventually(lambda: upstream.requests > 20, "20 requests")
    running.interrupt()
    assert (await running.end()).code == 130
    (before,) = await shell.sql(VERSIONS, environ=environ)
    parser(shell.folder, 2)
    ended = await shell.run("run", path, environ=environ)
    assert ended.err.count("the parser has changed since the run was opened last (parse.py)") == 1
    rest = {"version": 2, "rows": KEYS - before["rows"]}
    assert await shell.sql(VERSIONS, environ=environ) == [before, rest]


async def test_a_worker_that_would_start_with_an_edited_parser_ends_the_command(
    shell: Shell, upstream: Upstream, environ: dict[str, str]
) -> None:
    """Until then the worker keeps what it has loaded. The same command then takes the edited parser."""
    shell.write("keys.txt", [str(number) for number in range(KEYS)])
    path = shell.write("job.toml", job(upstream, PARSED))
    parser(shell.folder, 1)
    running = await shell.start("run", path, "--rate", "50", environ=environ)
    worker = await running.child("worker-1")
    await eventually(lambda: upstream.requests > 20, "20 requests")
    parser(shell.folder, 2)
    await eventually(lambda: upstream.requests > 80, "60 requests after the edit")
    worker.kill()
    ended = await running.end()
    assert ended.code == 2
    assert f"error: [parse] python: {shell.folder}/parse.py is not the one with which the run was opened" in ended.err
    (before,) = await shell.sql(VERSIONS, environ=environ)
    assert before["version"] == 1
    await shell.run("run", path, environ=environ)
    assert await shell.sql(VERSIONS, environ=environ) == [before, {"version": 2, "rows": KEYS - before["rows"]}]
