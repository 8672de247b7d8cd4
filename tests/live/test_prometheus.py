"""Debian's Prometheus scrapes a run that goes on, with the rules of ops/deploy."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

from crawler.sample.upstream import Upstream
from crawler.store.catalogue import Catalogue, open_catalogue
from crawler.web.metrics import Metrics
from tests.live.shell import Shell
from tests.waiting import eventually

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="there is no prometheus"),
]
DEPLOYED = Path(__file__).parents[2] / "ops" / "deploy" / "prometheus"


class Both:
    def __init__(self, redis: Redis, database: str) -> None:
        self.client = redis
        self._database = database

    @asynccontextmanager
    async def catalogue(self) -> AsyncIterator[Catalogue]:
        async with open_catalogue(self._database) as catalogue:
            yield catalogue


@asynccontextmanager
async def served(metrics: Metrics) -> AsyncIterator[int]:
    """The port at which `/metrics` is answered; `serve` has routes of its own for it."""

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].decode()
        status, kind, body = await metrics.respond(path)
        head = (
            f"HTTP/1.1 {status} x\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(respond, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


@asynccontextmanager
async def prometheus(folder: Path, target: int) -> AsyncIterator[httpx.AsyncClient]:
    """Prometheus with our configuration, which asks this port four times a second."""
    for file in DEPLOYED.glob("*.yaml"):
        shutil.copy(file, folder)
    configuration = (DEPLOYED / "prometheus.yaml").read_text()
    configuration = configuration.replace("serve:8765", f"127.0.0.1:{target}").replace(": 15s", ": 250ms")
    (folder / "prometheus.yaml").write_text(configuration)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        "prometheus",
        *(f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/tsdb"),
        f"--web.listen-address=127.0.0.1:{port}",
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            yield client
    finally:
        process.terminate()
        await process.wait()


async def test_it_sees_a_run_and_no_series_of_who_left(
    shell: Shell, upstream: Upstream, redis: Redis, database: str, environ: dict[str, str], tmp_path: Path
) -> None:
    host = upstream.url.removeprefix("http://")
    shell.write("urls.txt", [f"{upstream.url}/item/{number}" for number in range(2000)])
    job = f'[run]\nname = "urls"\n[source]\npath = "urls.txt"\n[limits."{host}"]\nrate = 20\n'
    running = await shell.start(
        "run", shell.write("job.toml", job), environ=environ | {"SHARDCRAWL_WORKERS": "2", "SHARDCRAWL_RATE": "20"}
    )
    (tmp_path / "prometheus").mkdir()
    metrics = Metrics(Both(redis, database))
    async with served(metrics) as port, prometheus(tmp_path / "prometheus", port) as client:

        async def becomes(query: str, wanted: str) -> None:
            found: list[str] = []

            async def does() -> bool:
                try:
                    response = await client.get("/api/v1/query", params={"query": query})
                except httpx.TransportError:
                    return False
                found[:] = [one["value"][1] for one in response.json().get("data", {}).get("result", ())]
                return found == [wanted]

            await eventually(does, f"{query} is {wanted}, not {found}", seconds=60)

        await becomes('up{job="shardcrawl"}', "1")
        await becomes('sum(shardcrawl_keys_total{outcome="stored"}) > bool 20', "1")
        await becomes('shardcrawl_workers{run="urls"}', "2")
        await becomes(f'shardcrawl_upstream_rate_limit{{upstream="{host}"}}', "20")
        await becomes(f'shardcrawl_upstream_requests_total{{upstream="{host}",result="accepted"}} > bool 20', "1")
        await becomes('shardcrawl_limited_by{constraint="rate"}', "1")
        await becomes("shardcrawl_wanted_workers", "1")
        await becomes('histogram_quantile(0.5, shardcrawl_stage_seconds_bucket{stage="fetch"}) < bool 10', "1")
        await becomes("sum(shardcrawl_service_up)", "2")
        (await running.child("worker-1")).kill()
        await becomes("shardcrawl_workers", "2")
        running.interrupt()
        assert (await running.end()).code == 130
        await becomes("shardcrawl_workers", "0")
        await becomes('count({__name__=~"shardcrawl_stage_busy"} or vector(0))', "1")
        rules = (await client.get("/api/v1/rules")).json()["data"]["groups"][0]["rules"]
        assert all(rule["health"] == "ok" for rule in rules)
