"""A run is paused, resumed and given fewer workers, from another terminal and while it goes on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from crawler.sample.upstream import Upstream
from tests.live.shell import Shell
from tests.waiting import eventually

pytestmark = pytest.mark.anyio


async def test_a_paused_run_sends_nothing_until_it_is_resumed_and_workers_come_and_go(
    shell: Shell, upstream: Upstream
) -> None:
    shell.write("keys.txt", [str(number) for number in range(600)])
    text = f'[run]\nname = "urls"\n[source]\npath = "keys.txt"\n[request]\nurl = "{upstream.url}/item/{{key}}"\n'
    text += '[notify]\ncommand = "echo $SHARDCRAWL_EVENT > event"\n'
    running = await shell.start("run", shell.write("job.toml", text), "--workers", "2", "--rate", "20/s")

    async def status() -> dict[str, Any]:
        found: dict[str, Any] = json.loads((await shell.run("status", "urls", "--json")).out)
        return found

    await eventually(lambda: upstream.requests > 20, "requests")
    paused = await shell.run("pause", "urls")
    assert paused.code == 0, paused.err
    await shell.run("workers", "urls", "--max", "1")  # it takes longer than what was in flight
    before = upstream.requests
    assert before < 600

    async def is_alone() -> bool:
        return bool((await status())["workers"] == 1)

    await eventually(is_alone, "one of the workers to leave")
    shown = await status()
    assert (shown["run_paused"], shown["max_workers"], upstream.requests) == (True, 1, before)
    assert "shardcrawl resume urls" in (await shell.run("status", "urls")).out
    await shell.run("workers", "urls", "--max", "none")
    await shell.run("limit", "urls", upstream.url.removeprefix("http://"), "--rate", "none")
    assert upstream.requests == before
    await shell.run("resume", "urls")
    ended = await running.end()
    assert ended.code == 0, ended.err
    assert upstream.requests == 600
    assert (shell.folder / "event").read_text() == "complete\n"
    refused = await shell.run("pause", "urls", code=2)
    assert "run urls is complete" in refused.err
