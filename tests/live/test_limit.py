"""Limits as users see them: the polite default, and limits that change while a run goes on."""

from __future__ import annotations

import json

import pytest

from crawler.sample.upstream import Upstream
from tests.live.shell import Shell
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

QUIET = {"SHARDCRAWL_LOG_LEVEL": "error"}


async def test_an_override_reaches_every_worker_is_in_status_and_outlives_the_workers(
    shell: Shell, upstream: Upstream
) -> None:
    host = upstream.url.removeprefix("http://")
    shell.write("keys.txt", [str(number) for number in range(3000)])
    text = f'[run]\nname = "urls"\n[source]\npath = "keys.txt"\n[request]\nurl = "{upstream.url}/item/{{key}}"\n'
    slow = ("run", shell.write("job.toml", text), "--workers", "2", "--rate", "1/h")
    running = await shell.start(*slow)
    await eventually(lambda: upstream.requests == 1, "the one request of this hour")
    assert (await shell.run("limit", "urls", host, "--rate", "100/s", "--concurrency", "20")).code == 0
    await eventually(lambda: upstream.requests > 50, "workers to take the new rate")
    shown = json.loads((await shell.run("status", "urls", "--json", environ=QUIET)).out)
    assert (shown["upstreams"][host]["live_rate"], shown["upstreams"][host]["live_concurrency"]) == ("100/s", 20)
    running.interrupt()
    assert (await running.end()).code == 130
    before = upstream.requests
    running = await shell.start(*slow)
    await eventually(lambda: upstream.requests > before + 50, "the limit to hold for the workers that come next")
    await shell.run("limit", "urls", host, "--rate", "none")
    ended = await running.end()
    assert ended.code == 0, ended.err
    ended = await shell.run("limit", "urls", host, "--rate", "5", code=2)
    assert "run urls is complete" in ended.err


async def test_a_limit_that_would_limit_nothing_is_an_error_in_one_line(shell: Shell, environ: dict[str, str]) -> None:
    shell.write("urls.txt", ["https://de.wikipedia.org/"])
    text = '[run]\nname = "urls"\n[source]\npath = "urls.txt"\n[limits."*.wikipedia.org"]\nrate = 1\n'
    coordinator = await shell.start("coordinate", shell.write("job.toml", text), environ=environ)

    async def is_listed() -> bool:
        return "urls" in (await shell.run("runs", environ=environ)).out

    await eventually(is_listed, "the run to be made")
    for *arguments, says in (
        ("nobody", "x.example", "--rate", "5", "no run nobody in Redis; known runs: urls"),
        ("urls", "x.example", "nothing to change; give --rate, --concurrency, or both"),
        ("urls", "x.example", "--rate", "fast", "limit: rate: write requests a second"),
        ("urls", "x.example", "--rate", "5", "--ceiling", "9", 'only rate = "auto" has one'),
        ("urls", "x.example", "--concurrency", "-1", "--concurrency is '-1'; write a number"),
        ("urls", "https://x.example", "--rate", "5", "write a host like"),
        ("urls", "de.wikipedia.org", "--rate", "5", "de.wikipedia.org is a part of *.wikipedia.org"),
        ("urls", "*.example", "--rate", "5", "run urls has no upstream *.example; its job names *.wikipedia.org"),
    ):
        ended = await shell.run("limit", *arguments, environ=environ, code=2)
        assert says in ended.err
        assert len(ended.err.splitlines()) == 1, ended.err
    await shell.run("limit", "urls", "*.wikipedia.org", "--rate", "auto", "--ceiling", "9", environ=environ)
    coordinator.interrupt()
    await coordinator.end()


async def test_without_a_limit_a_run_is_polite_and_says_so(shell: Shell, upstream: Upstream) -> None:
    polite = {"SHARDCRAWL_RATE": ""}
    lines = [f"{upstream.url}/item/{number}" for number in range(21)]
    urls = shell.write("urls.txt", lines)
    checked = await shell.run("check", urls, "--json", environ={**polite, **QUIET})
    assert {"what": "limit of each host", "value": "10/s, 8 at once", "from": "default: polite"} in json.loads(
        checked.out
    )
    ended = await shell.run("run", urls, "--workers", "2", environ=polite)
    assert "no limit is named for each host: 10/s and 8 requests at once, to be polite" in ended.err
    times = [at for at, _ in upstream.ledger.log()]
    assert len(times) == 21
    assert times[-1] - times[0] >= 20 * 0.1 * 0.98
