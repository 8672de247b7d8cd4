"""Limits as users see them: the polite default, and limits that change while a run goes on."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from redis.asyncio import Redis

from coordinator.redis.keys import RunKeys
from crawler.sample.connection import CannedResponse
from crawler.sample.upstream import Upstream
from tests.live.shell import Shell
from tests.servers.disturbed import Disturbed
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

QUIET = {"SHARDCRAWL_LOG_LEVEL": "error"}
ENGINES = ["pyreqwest", pytest.param("httpx", marks=pytest.mark.slow)]
THOUSAND_AND_ONE = [f"https://a.example/{number}" for number in range(1001)]


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
    shown: dict[str, Any] = {}

    async def is_limited_by_the_rate() -> bool:
        nonlocal shown
        shown = json.loads((await shell.run("status", "urls", "--json", environ=QUIET)).out)
        return shown["limited_by"] == {"what": "rate", "name": host, "words": f"the upstream's rate ({host})"}

    await eventually(is_limited_by_the_rate, "the workers to say what holds them up", seconds=60)
    assert (shown["absent"], shown["stages"]["fetch"]["of"], shown["stages"]["wait"]["waiting"] > 0) == ("", 128, True)
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


@pytest.mark.slow
async def test_eight_processes_together_do_not_exceed_a_rate(
    shell: Shell, upstream: Upstream, redis: Redis, environ: dict[str, str]
) -> None:
    """A request may be late on a busy machine, but never early: so the k-th one comes after k slots, to within 1 %."""
    rate, counted, workers = 200, 2000, 8
    host, keys = upstream.url.removeprefix("http://"), RunKeys("urls")
    shell.write("keys.txt", [str(number) for number in range(2 * counted)])
    text = f'[run]\nname = "urls"\n[source]\npath = "keys.txt"\n[request]\nurl = "{upstream.url}/item/{{key}}"\n'
    job = shell.write("job.toml", text)
    running = await shell.start("run", job, "--workers", str(workers), "--rate", "1/h", environ=environ)

    async def all_work() -> bool:
        return await redis.zcard(keys.workers) == workers and upstream.requests == 1

    await eventually(all_work, "all workers, and the one request of this hour", seconds=60)
    await shell.run("limit", "urls", host, "--rate", f"{rate}/s", environ=environ)
    await eventually(lambda: upstream.requests > counted, f"{counted} requests", seconds=60)
    running.interrupt()
    await running.end()
    times = [at for at, _ in upstream.ledger.log()][1 : counted + 1]
    # Each of the first ones says when the first slot was at the latest.
    first_slot = min(at - number / rate for number, at in enumerate(times[:100]))
    assert max(first_slot + number / rate - at for number, at in enumerate(times)) < 0.01 * counted / rate


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
async def test_every_spelling_of_a_host_is_one_budget(shell: Shell, upstream: Upstream, engine: str) -> None:
    port, polite = upstream.url.rpartition(":")[2], {"SHARDCRAWL_RATE": ""}
    keys = [f"http://127.0.0.1:{port}\\item\\{number}" for number in range(60)]
    keys += [
        f"{beginning}:{port}/item/{number}"
        for number, beginning in enumerate(("http://127.1", "http:\\\\2130706433", "HTTP:0x7f.1", "http:///127.0.0.1."))
    ]
    keys += [f"http://127.0.0.1:{port}/item/a b", f"http://127.0.0.1:{port}/item/\tx/../y"]
    text = (
        f'[run]\nname = "urls"\n[source]\npath = "keys.txt"\n[request]\nengine = "{engine}"\nrobots = false\n'
        '[limits."127.1"]\nrate = "1/h"\n[limits."Elsewhere.example"]\n'
    )
    shell.write("keys.txt", keys)
    running = await shell.start("run", shell.write("job.toml", text), "--workers", "2", "--json", environ=polite)
    await eventually(lambda: upstream.requests == 1, "the one request of this hour", seconds=60)
    # Meanwhile a second budget would have sent its first request.
    await shell.run("limit", "urls", f"2130706433:{port}", "--rate", "5", code=2)
    assert upstream.requests == 1
    await shell.run("limit", "urls", "2130706433", "--rate", "none")
    ended = json.loads((await running.end()).out)
    assert ended["outcomes"]["stored"] == len(keys)
    assert ended["unmatched_limits"] == ["elsewhere.example"]
    targets = {target for _, target in upstream.ledger.log()}
    assert {"/item/0", "/item/59", "/item/a%20b", "/item/y"} <= targets


@pytest.mark.parametrize(
    ("request_", "keys", "who", "names"),
    [
        ("", ["https://a.example:8443/x", "https://a.example\\v2\\y"], "no key meets", ["b.example"]),
        ("", THOUSAND_AND_ONE, "none of the first 1,000 keys meets", ["a.example/v2/*", "b.example"]),
        ('url = "https://B.example/{key}"', ["1"], "the template does not meet", ["a.example", "a.example/v2/*"]),
    ],
)
async def test_check_names_the_limits_that_no_key_meets(
    shell: Shell, request_: str, keys: list[str], who: str, names: list[str]
) -> None:
    shell.write("keys.txt", keys)
    limits = "".join(f'[limits."{name}"]\n' for name in ("A.example.", "a.example/v2/*", "b.example"))
    text = f'[run]\nname = "urls"\n[source]\npath = "keys.txt"\n[request]\n{request_}\n{limits}'
    polite = {**QUIET, "SHARDCRAWL_RATE": ""}
    checked = await shell.run("check", shell.write("job.toml", text), "--json", environ=polite)
    warnings = {row["value"] for row in json.loads(checked.out) if row["what"] == "warning"}
    assert {one for one in warnings if "[limits" in one} == {f'{who} [limits."{name}"]' for name in names}


@pytest.mark.slow
async def test_a_limit_that_would_limit_nothing_is_an_error_in_one_line(shell: Shell, environ: dict[str, str]) -> None:
    shell.write("urls.txt", ["https://de.wikipedia.org/"])
    text = '[run]\nname = "urls"\n[source]\npath = "urls.txt"\n[limits."*.wikipedia.org"]\nrate = 1\n'
    coordinator = await shell.start("coordinate", shell.write("job.toml", text), environ=environ)

    async def is_listed() -> bool:
        return "urls" in (await shell.run("runs", environ=environ)).out

    await eventually(is_listed, "the run to be made")
    for *arguments, says in (
        ("nobody", "x.example", "--rate", "5", "no run nobody; known runs: urls"),
        ("urls", "x.example", "nothing to change; give --rate, --concurrency, or both"),
        ("urls", "x.example", "--rate", "fast", "limit: rate: write requests a second"),
        ("urls", "x.example", "--rate", "5", "--ceiling", "9", 'only rate = "auto" has one'),
        ("urls", "x.example", "--concurrency", "-1", "--concurrency is '-1'; write a number"),
        ("urls", "https://x.example", "--rate", "5", "write a host like"),
        ("urls", "de.wikipedia.org", "--rate", "5", "de.wikipedia.org is a part of *.wikipedia.org"),
        ("urls", "*.example", "--rate", "5", "run urls has no upstream *.example; its job names *, *.wikipedia.org"),
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
    assert {
        "what": f"limit of {upstream.url.partition('//')[2]}",
        "value": "10/s, 8 at once",
        "from": "default: polite",
    } in json.loads(checked.out)
    ended = await shell.run("run", urls, "--workers", "2", environ=polite)
    host = upstream.url.partition("//")[2]
    assert f"no limit is named for {host}: 10/s and 8 requests at once, to be polite" in ended.err
    times = [at for at, _ in upstream.ledger.log()]
    assert len(times) == 21
    assert times[-1] - times[0] >= 20 * 0.1 * 0.98


@pytest.mark.parametrize("engine", ENGINES)
async def test_redirects_keep_the_budget_of_where_they_lead_in_every_spelling(
    shell: Shell, upstream: Upstream, engine: str
) -> None:
    port, polite = upstream.url.rpartition(":")[2], {"SHARDCRAWL_RATE": ""}
    spellings = (
        "http://127.0.0.1",
        "http://127.1",
        "http:\\\\2130706433",
        "HTTP://0x7f.1",
        "//127.0.0.1.",
        "http://0177.0.0.1",
    )
    async with Disturbed() as elsewhere:
        elsewhere.redirects = {str(n): f"{spellings[n % 6]}:{port}/item/{n}" for n in range(60)}
        shell.write("keys.txt", [f"{elsewhere.url}/to/{number}" for number in elsewhere.redirects])
        text = (
            f'[run]\nname = "urls"\n[source]\npath = "keys.txt"\n[request]\nengine = "{engine}"\nrobots = false\n'
            f'[limits."127.0.0.1:*"]\nrate = "none"\n[limits."127.0.0.1:{port}"]\nrate = 20\n'
        )
        await shell.run("run", shell.write("job.toml", text), "--workers", "2", environ=polite)
    times = [at for at, _ in upstream.ledger.log()]
    assert len(times) == 60
    assert max(times) - min(times) >= 0.9 * (60 - 1) / 20


class Crawled(Upstream):
    """The sample upstream, with a robots.txt that wants 0.2 s between two requests."""

    def respond(self, method: str, target: bytes, condition: str) -> CannedResponse:
        if target == b"/robots.txt":
            return CannedResponse(200, b"User-agent: *\nCrawl-delay: 0.2\n", "text/plain")
        return super().respond(method, target, condition)


async def test_a_crawl_delay_holds_from_the_first_request_on(shell: Shell) -> None:
    async with Crawled(size=200) as upstream:
        urls = shell.write("urls.txt", [f"{upstream.url}/item/{number}" for number in range(12)])
        await shell.run("run", urls, "--workers", "2")
        moments = [at for at, path in upstream.ledger.log() if path.startswith("/item/")]
    assert len(moments) == 12
    assert min(after - before for before, after in pairwise(moments)) > 0.15
