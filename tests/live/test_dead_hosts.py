"""Dead hosts as users see them: a key there fails soon, and while it waits the command says for what."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from crawler.sample.upstream import Upstream
from tests.live.shell import Running, Shell
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

QUIET = {"SHARDCRAWL_LOG_LEVEL": "error"}
DEAD = "127.0.0.77:1"
PROGRESS_DEADLINE_SECONDS = 60.0


async def line_with(running: Running, words: str) -> str:
    """The next line of the command that has these words."""
    assert running.process.stderr is not None
    async with asyncio.timeout(PROGRESS_DEADLINE_SECONDS):
        async for line in running.process.stderr:
            if words in line.decode():
                return line.decode()
    raise AssertionError(f"the command has ended without: {words}")


async def test_a_list_with_a_dead_host_ends_with_the_reason_for_its_keys(shell: Shell, upstream: Upstream) -> None:
    lines = [f"{upstream.url}/item/1", "http://no-such-host.invalid/x", f"http://{DEAD}/a", f"http://{DEAD}/b"]
    ended = await shell.run("run", shell.write("urls.txt", lines), code=3)
    assert ended.err.count(f"{DEAD} cannot be reached: connection refused") == 1, ended.err
    assert ended.err.count("no-such-host.invalid cannot be reached: no such host") == 1, ended.err
    rows = await shell.sql("select key, outcome, attempts, reason from pages where outcome = 'failed' order by key")
    assert [(row["key"], row["attempts"]) for row in rows] == [(line, 5) for line in [*lines[2:], lines[1]]]
    assert rows[0]["reason"].startswith("connect: Connection refused")
    assert rows[2]["reason"].startswith("dns: no-such-host.invalid: ")


@pytest.mark.parametrize("robots", ["true", pytest.param("false", marks=pytest.mark.slow)])
async def test_the_screen_and_status_say_what_keys_wait_for(shell: Shell, upstream: Upstream, robots: str) -> None:
    shell.write("urls.txt", [f"{upstream.url}/item/1", *(f"http://{DEAD}/{number}" for number in range(3))])
    job = f"""
        [run]
        name = "urls"
        workers = 1
        [source]
        path = "urls.txt"
        [request]
        robots = {robots}
        [retry]
        backoff = 3000
        max_delay = 3000
    """
    running = await shell.start("run", shell.write("job.toml", job))
    words = f"3 keys wait for {DEAD}: connection refused, next attempt in "
    line = await line_with(running, words)
    assert "upstream ok" not in line

    async def snapshot() -> dict[str, Any]:
        found: dict[str, Any] = json.loads((await shell.run("status", "urls", "--json", environ=QUIET)).out)
        return found

    async def is_deferred() -> bool:
        return bool((await snapshot())["deferred"] == 3)

    await eventually(is_deferred, "the keys to be deferred")
    shown = (await snapshot())["unreachable"][DEAD]
    assert (shown["keys"], shown["fault"]) == (3, "connection refused")
    assert 0 < shown["next_attempt_in"] <= 3000
    assert words in (await shell.run("status", "urls", environ=QUIET)).out
    running.interrupt()
    assert (await running.end()).code == 130
