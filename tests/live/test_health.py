"""What supervisors and log collectors see of `work`."""

from __future__ import annotations

import signal
import socket

import httpx
import orjson
import pytest
from redis.asyncio import Redis

from tests.live.shell import Shell
from tests.waiting import eventually

pytestmark = pytest.mark.anyio


@pytest.mark.slow
async def test_a_worker_that_stands_still_makes_work_ill_and_lines_are_json(
    shell: Shell, redis: Redis, environ: dict[str, str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    running = await shell.start("work", "--health", str(port), "--log-format", "json", environ=environ)
    worker = await running.child("worker-1")

    async def status() -> tuple[int, str]:
        async with httpx.AsyncClient() as client:
            try:
                response = await client.get(f"http://127.0.0.1:{port}/healthz")
            except httpx.TransportError:
                return 0, ""
        return response.status_code, response.text

    async def becomes(wanted: tuple[int, str]) -> None:
        async def does() -> bool:
            return await status() == wanted

        await eventually(does, f"{wanted}", seconds=60)

    async def looks_for_runs() -> bool:
        return "smembers" in {client["cmd"] for client in await redis.client_list()}

    await becomes((200, "ok\n"))
    await eventually(looks_for_runs, "a worker that looks for runs")
    worker.send_signal(signal.SIGSTOP)
    await becomes((503, "stands still: worker-1\n"))
    worker.send_signal(signal.SIGCONT)
    await becomes((200, "ok\n"))
    running.process.send_signal(signal.SIGTERM)
    ended = await running.end()
    lines = [orjson.loads(line) for line in ended.err.splitlines()]
    assert all({"time", "level", "process", "event", "text"} <= line.keys() for line in lines), ended.err
    assert {(line["process"], line["event"]) for line in lines} >= {
        ("shardcrawl", "progress"),
        ("worker-1", "drain_begins"),
    }
