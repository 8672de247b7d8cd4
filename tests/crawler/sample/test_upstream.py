"""The sample upstream: what tests, examples, demo and benchmarks rely on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from crawler.sample.ledger import Ledger
from crawler.sample.upstream import Upstream

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream(size=400, limit_rate=3) as upstream:
        yield upstream


@pytest.fixture
async def client(upstream: Upstream) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=upstream.url, trust_env=False) as client:
        yield client


# -- endpoints


async def test_an_item_is_the_same_every_time_and_about_as_large_as_its_size(client: httpx.AsyncClient) -> None:
    first, second = await client.get("/item/a"), await client.get("/item/a")
    assert first.status_code == 200
    assert first.headers["content-type"] == "application/json"
    assert first.content == second.content
    assert first.headers["etag"] == second.headers["etag"]
    assert 360 <= len(first.content) <= 440
    assert set(first.json()) == {"id", "title", "n", "words"}
    assert (await client.get("/item/b")).json()["n"] != first.json()["n"]


@pytest.mark.parametrize("key", ["a", "é/ü", 'quo"te\\', "a b", "100%", "a|b", "😀", ""])
async def test_an_item_knows_its_id_whatever_is_in_it(client: httpx.AsyncClient, key: str) -> None:
    quoted = "".join(f"%{byte:02X}" for byte in key.encode())
    assert (await client.get(f"/item/{quoted}")).json()["id"] == key


async def test_an_item_whose_etag_is_sent_is_a_304(client: httpx.AsyncClient) -> None:
    first = await client.get("/item/a")
    second = await client.get("/item/a", headers={"If-None-Match": first.headers["etag"]})
    assert (second.status_code, second.content) == (304, b"")
    assert second.headers["last-modified"] == first.headers["last-modified"]
    assert (await client.get("/item/a", headers={"If-None-Match": '"other"'})).status_code == 200


async def test_an_edited_item_has_another_content_and_another_etag(client: httpx.AsyncClient) -> None:
    before = [await client.get(f"/item/{key}") for key in "ab"]
    assert (await client.post("/~edit", content=b"a\nc")).status_code == 204
    after = [
        await client.get(f"/item/{key}", headers={"If-None-Match": one.headers["etag"]})
        for key, one in zip("ab", before, strict=True)
    ]
    assert [one.status_code for one in after] == [200, 304]
    assert after[0].json() != before[0].json()
    assert after[0].json()["id"] == "a"
    assert (await client.get("/batch?ids=a")).json()["items"] == [after[0].json()]


@pytest.mark.parametrize("separator", ["|", "%7C", "%7c"])
async def test_a_batch_has_every_id_in_order(client: httpx.AsyncClient, separator: str) -> None:
    ids = separator.join(["b", "missing7", "a%20c", "b"])
    items = (await client.get(f"/batch?x=1&ids={ids}")).json()["items"]
    assert [item["id"] for item in items] == ["b", "missing7", "a c", "b"]
    assert items[1] == {"id": "missing7", "missing": True}
    assert items[0] == (await client.get("/item/b")).json()
    assert (await client.get("/batch")).json() == {"items": []}


async def test_other_endpoints_respond_as_their_names_say(client: httpx.AsyncClient) -> None:
    assert (await client.get("/missing/x")).status_code == 404
    assert (await client.get("/nothing")).status_code == 404
    text = await client.get("/text/x")
    assert (text.text, text.headers["content-type"]) == ("Text of x\n", "text/plain; charset=utf-8")
    broken = await client.get("/notjson/x")
    assert broken.headers["content-type"] == "application/json"
    with pytest.raises(json.JSONDecodeError):
        broken.json()
    assert (await client.get("/slow/20/x")).json()["id"] == "x"
    for code in (403, 503):
        assert (await client.get(f"/status/{code}/x")).status_code == code
    for code in (301, 302):
        redirect = await client.get(f"/status/{code}/x")
        assert (redirect.status_code, redirect.headers["location"]) == (code, "/item/x")


async def test_a_flaky_path_fails_its_first_attempts(client: httpx.AsyncClient) -> None:
    assert [(await client.get("/flaky/2/a")).status_code for _ in range(4)] == [503, 503, 200, 200]
    assert (await client.get("/flaky/2/b")).status_code == 503
    assert (await client.get("/flaky/0/a")).json()["id"] == "a"


async def test_a_limited_path_refuses_what_is_over_the_rate(client: httpx.AsyncClient) -> None:
    responses = await asyncio.gather(*(client.get(f"/limited/{number}") for number in range(8)))
    refused = [response for response in responses if response.status_code == 429]
    assert len(refused) == 5
    assert {response.headers["retry-after"] for response in refused} == {"1"}


# -- counting


async def test_stats_count_the_requests_and_reset_clears_them(upstream: Upstream, client: httpx.AsyncClient) -> None:
    for path in ("/item/a", "/item/b", "/item/a", "/missing/x", "/flaky/1/x"):
        await client.get(path)
    stats = (await client.get("/~stats")).json()
    assert stats == upstream.stats()
    assert (stats["requests"], stats["distinct"]) == (5, 4)
    assert stats["by_status"] == {"200": 3, "404": 1, "503": 1}
    assert stats["first"] <= stats["last"]
    log = (await client.get("/~log")).text.splitlines()
    assert [line.split(" ")[1] for line in log] == upstream.paths
    assert upstream.paths == ["/item/a", "/item/b", "/item/a", "/missing/x", "/flaky/1/x"]
    assert [float(line.split(" ")[0]) for line in log] == sorted(float(line.split(" ")[0]) for line in log)
    assert (await client.get("/~reset")).status_code == 404
    assert (await client.post("/~reset")).status_code == 204
    assert (upstream.requests, upstream.paths, upstream.stats()["first"]) == (0, [], None)
    assert (await client.get("/flaky/1/x")).status_code == 503


def test_the_busiest_second_may_begin_at_any_time() -> None:
    ledger = Ledger(log_max=100)
    for now in (10.0, 10.6, 10.9, 11.2, 11.5, 11.6, 13.0):
        ledger.add(b"/x", now)
    assert ledger.stats()["max_in_1s"] == 4  # 10.6 is one second before 11.6, so it no longer counts


def test_the_log_keeps_its_first_requests_and_the_counts_go_on() -> None:
    ledger = Ledger(log_max=2)
    for number in range(5):
        ledger.add(b"/%d" % number, float(number))
    assert ledger.log() == [(0.0, "/0"), (1.0, "/1")]
    assert ledger.stats()["requests"] == ledger.stats()["distinct"] == 5


async def test_an_upstream_that_stops_closes_the_connections_of_waiting_clients(client: httpx.AsyncClient) -> None:
    async with Upstream() as upstream:
        waiting = asyncio.create_task(client.get(f"{upstream.url}/slow/60000/x"))
        while not upstream.requests:
            await client.get(f"{upstream.url}/~stats")
    with pytest.raises(httpx.TransportError):
        await asyncio.wait_for(waiting, 20)


# -- as a process


@contextlib.contextmanager
def process(*arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    command = [sys.executable, "-m", "crawler.sample.upstream", *arguments]
    running = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert running.stdout
        listening = json.loads(running.stdout.readline())
        assert listening["pid"] == running.pid
        yield running, listening["url"]
    finally:
        running.kill()
        running.communicate(timeout=20)


def test_the_process_prints_its_url_and_stops_on_sigterm() -> None:
    with process("--size", "300") as (running, url):
        assert httpx.get(f"{url}/item/a", trust_env=False).json()["id"] == "a"
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=20) == 0


def test_robots_txt_has_the_rule_of_the_command_line() -> None:
    with process("--disallow", "/item/private") as (_, url):
        robots = httpx.get(f"{url}/robots.txt", trust_env=False)
        assert (robots.status_code, robots.text) == (200, "User-agent: *\nDisallow: /item/private\n")
        assert httpx.get(f"{url}/~stats", trust_env=False).json()["requests"] == 0


def test_with_stdin_guard_the_process_ends_with_its_standard_input() -> None:
    with process("--stdin-guard") as (running, url):
        assert httpx.get(f"{url}/item/a", trust_env=False).status_code == 200
        assert running.stdin
        running.stdin.close()
        running.stdin = None
        assert running.wait(timeout=20) == 0
