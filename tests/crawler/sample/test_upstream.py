"""The local upstreams: what they answer, how they count, and how they stop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from crawler.sample.ledger import Ledger
from crawler.sample.upstream import Upstream
from ops.nginx import Nginx, NginxFailed, NginxMissing, configuration

HAS_NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
needs_nginx = pytest.mark.skipif(not HAS_NGINX, reason="nginx is not on this machine")


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


async def exchange(upstream: Upstream, sent: bytes) -> bytes:
    """Send raw bytes on one connection and read until the upstream closes it."""
    host, port = upstream.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(sent)
    got = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    await writer.wait_closed()
    return got


def stats_of(upstream: Upstream) -> dict[str, Any]:
    return upstream.stats()


# -- endpoints

pytestmark = pytest.mark.anyio


async def test_an_item_is_the_same_every_time_and_about_as_large_as_asked(client: httpx.AsyncClient) -> None:
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


async def test_an_item_that_is_known_is_not_sent_again(client: httpx.AsyncClient) -> None:
    first = await client.get("/item/a")
    second = await client.get("/item/a", headers={"If-None-Match": first.headers["etag"]})
    assert (second.status_code, second.content) == (304, b"")
    assert second.headers["last-modified"] == first.headers["last-modified"]
    assert (await client.get("/item/a", headers={"If-None-Match": '"other"'})).status_code == 200


@pytest.mark.parametrize("separator", ["|", "%7C", "%7c"])
async def test_a_batch_answers_every_id_in_order(client: httpx.AsyncClient, separator: str) -> None:
    ids = separator.join(["b", "missing7", "a%20c", "b"])
    items = (await client.get(f"/batch?x=1&ids={ids}")).json()["items"]
    assert [item["id"] for item in items] == ["b", "missing7", "a c", "b"]
    assert items[1] == {"id": "missing7", "missing": True}
    assert items[0] == (await client.get("/item/b")).json()
    assert (await client.get("/batch")).json() == {"items": []}


async def test_other_endpoints_answer_what_they_are_named_for(client: httpx.AsyncClient) -> None:
    assert (await client.get("/missing/x")).status_code == 404
    assert (await client.get("/nothing")).status_code == 404
    assert (await client.post("/item/a")).status_code == 405
    text = await client.get("/text/x")
    assert (text.text, text.headers["content-type"]) == ("Text of x\n", "text/plain; charset=utf-8")
    broken = await client.get("/notjson/x")
    assert broken.headers["content-type"] == "application/json"
    with pytest.raises(json.JSONDecodeError):
        broken.json()
    assert (await client.get("/slow/20/x")).json()["id"] == "x"
    for code in (204, 301, 418, 503, 599):
        assert (await client.get(f"/status/{code}/x")).status_code == code
    assert (await client.get("/status/302/x")).headers["location"] == "/item/x"
    assert (await client.get("/status/900/x")).status_code == 404
    head = await client.head("/item/a")
    assert (head.content, int(head.headers["content-length"]) > 300) == (b"", True)


async def test_a_flaky_path_fails_its_first_tries(client: httpx.AsyncClient) -> None:
    assert [(await client.get("/flaky/2/a")).status_code for _ in range(4)] == [503, 503, 200, 200]
    assert (await client.get("/flaky/2/b")).status_code == 503
    assert (await client.get("/flaky/0/a")).json()["id"] == "a"


async def test_a_limited_path_refuses_what_is_over_the_rate(client: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(*(client.get(f"/limited/{number}") for number in range(8)))
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(refused) == 5
    assert {answer.headers["retry-after"] for answer in refused} == {"1"}


# -- counting


async def test_stats_count_what_was_asked_and_reset_clears_them(upstream: Upstream, client: httpx.AsyncClient) -> None:
    for path in ("/item/a", "/item/b", "/item/a", "/missing/x", "/flaky/1/x"):
        await client.get(path)
    stats = (await client.get("/~stats")).json()
    assert stats == stats_of(upstream)
    assert (stats["requests"], stats["distinct"]) == (5, 4)
    assert stats["by_status"] == {"200": 3, "404": 1, "503": 1}
    assert stats["first"] <= stats["last"]
    log = (await client.get("/~log")).text.splitlines()
    assert [line.split(" ")[1] for line in log] == upstream.paths
    assert upstream.paths == ["/item/a", "/item/b", "/item/a", "/missing/x", "/flaky/1/x"]
    assert [float(line.split(" ")[0]) for line in log] == sorted(float(line.split(" ")[0]) for line in log)
    assert (await client.get("/~reset")).status_code == 404
    assert (await client.post("/~reset")).status_code == 204
    assert (upstream.requests, upstream.paths, stats_of(upstream)["first"]) == (0, [], None)
    assert (await client.get("/flaky/1/x")).status_code == 503


def test_the_busiest_second_is_a_sliding_one() -> None:
    ledger = Ledger(log_max=100)
    for now in (10.0, 10.6, 10.9, 11.2, 11.5, 11.6, 13.0):
        ledger.enter(b"/x", now)
    assert ledger.stats()["max_in_1s"] == 4  # 10.6 is one second before 11.6, and out of its window


def test_the_log_keeps_its_first_requests_and_the_counts_go_on() -> None:
    ledger = Ledger(log_max=2)
    for number in range(5):
        ledger.enter(b"/%d" % number, float(number))
    assert ledger.log() == [(0.0, "/0"), (1.0, "/1")]
    assert ledger.stats()["requests"] == ledger.stats()["distinct"] == 5


# -- HTTP/1.1


async def test_requests_sent_at_once_are_answered_in_order_also_behind_a_slow_one(upstream: Upstream) -> None:
    paths = ["/item/1", "/slow/50/2", "/item/3", "/status/204/4", "/slow/0/5", "/item/6"]
    sent = "".join(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n" for path in paths[:-1])
    got = await exchange(upstream, f"{sent}GET {paths[-1]} HTTP/1.1\r\nConnection: close\r\n\r\n".encode())
    answers = got.split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == [b"200", b"200", b"200", b"204", b"200", b"200"]
    assert [f'"id": "{number}"'.encode() in answers[number - 1] for number in (1, 2, 3, 5, 6)] == [True] * 5
    assert upstream.paths == paths


async def test_thousands_of_requests_at_once_to_a_client_that_reads_late_all_come(upstream: Upstream) -> None:
    sent = b"".join(b"GET /item/%d HTTP/1.1\r\n\r\n" % number for number in range(20_000))
    got = await exchange(upstream, sent + b"GET /item/last HTTP/1.1\r\nConnection: close\r\n\r\n")
    bodies = [line.split(b'"')[3] for line in got.split(b"\r\n") if line.startswith(b'{"id"')]
    assert bodies == [b"%d" % number for number in range(20_000)] + [b"last"]


async def test_a_request_may_come_byte_by_byte_and_have_a_body(upstream: Upstream) -> None:
    host, port = upstream.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    sent = b"POST /~reset HTTP/1.1\r\nContent-Length: 5\r\n\r\nhelloGET /item/a HTTP/1.0\r\n\r\n"
    for at in range(len(sent)):
        writer.write(sent[at : at + 1])
        await writer.drain()
        await asyncio.sleep(0)
    got = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    assert got.startswith(b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET item HTTP/1.1\r\n\r\n", b"400"),
        (b"POST /~reset HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
        (b"POST /~reset HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"POST /~reset HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n", b"413"),
        (b"GET /" + b"a" * 70_000, b"431"),
    ],
)
async def test_what_is_no_request_is_refused_and_the_connection_closed(
    upstream: Upstream, sent: bytes, status: bytes
) -> None:
    assert (await exchange(upstream, sent)).startswith(b"HTTP/1.1 " + status)


async def test_leaving_drops_clients_that_wait(client: httpx.AsyncClient) -> None:
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
        told = json.loads(running.stdout.readline())
        assert told["pid"] == running.pid
        yield running, told["url"]
    finally:
        running.kill()
        running.communicate(timeout=20)


def test_the_process_tells_its_url_and_stops_on_sigterm() -> None:
    with process("--size", "300") as (running, url):
        assert httpx.get(f"{url}/item/a", trust_env=False).json()["id"] == "a"
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=20) == 0


def test_robots_txt_forbids_what_the_process_is_told() -> None:
    with process("--disallow", "/item/private") as (_, url):
        robots = httpx.get(f"{url}/robots.txt", trust_env=False)
        assert (robots.status_code, robots.text) == (200, "User-agent: *\nDisallow: /item/private\n")
        assert httpx.get(f"{url}/~stats", trust_env=False).json()["requests"] == 0


def test_with_the_guard_the_process_ends_with_its_standard_input() -> None:
    with process("--stdin-guard") as (running, url):
        assert httpx.get(f"{url}/item/a", trust_env=False).status_code == 200
        assert running.stdin
        running.stdin.close()
        running.stdin = None
        assert running.wait(timeout=20) == 0


# -- nginx


@needs_nginx
def test_nginx_answers_items_with_their_id_and_logs_requests(tmp_path: Path) -> None:
    with Nginx(tmp_path / "a folder", size=2_000, log=True) as nginx, httpx.Client(base_url=nginx.url) as client:
        for key, quoted in (("a", "a"), ("a b/c//é", "a%20b%2Fc//%C3%A9")):
            answer = client.get(f"/item/{quoted}")
            assert answer.headers["content-type"] == "application/json"
            assert answer.json()["id"] == key
            assert 1_900 <= len(answer.content) <= 2_100
        assert client.get("/batch?ids=a%7Cb").json() == {"query": "ids=a%7Cb"}
        assert client.get("/nothing").status_code == 404
        assert [path for _, path in nginx.requests()] == [
            "/item/a",
            "/item/a%20b%2Fc//%C3%A9",
            "/batch?ids=a%7Cb",
            "/nothing",
        ]
        pid = nginx.pid
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@needs_nginx
def test_nginx_limits_with_429_and_retry_after(tmp_path: Path) -> None:
    with Nginx(tmp_path, limit=(1, 2)) as nginx, httpx.Client(base_url=nginx.url) as client:
        answers = [client.get(f"/limited/{number}") for number in range(12)]
        assert [answer.status_code for answer in answers[:3]] == [200, 200, 200]
        assert answers[0].json()["id"] == "0"
        refused = [answer for answer in answers if answer.status_code == 429]
        assert refused
        assert {answer.headers["retry-after"] for answer in refused} == {"1"}
        assert client.get("/item/free").status_code == 200
        assert nginx.requests() == []


@needs_nginx
def test_nginx_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(NginxFailed, match=r"stopped at once: .*worker_processes"), Nginx(tmp_path, workers=-1):
        pass


def test_a_missing_nginx_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ops.nginx.shutil.which", lambda *_, **__: None)
    with pytest.raises(NginxMissing, match="install Debian's nginx-light"), Nginx(tmp_path):
        pass


def test_nginx_gets_no_folder_that_its_configuration_cannot_name(tmp_path: Path) -> None:
    with pytest.raises(NginxFailed, match="without quotes and dollar signs"):
        configuration(tmp_path / 'a"b', 80, 100, 1, log=False)
