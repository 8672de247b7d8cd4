"""`/healthz` of a command with children, and the silence of which it tells."""

from __future__ import annotations

import asyncio
import socket

import httpx
import pytest

from coordinator.errors import UsageError
from crawler.telemetry.health import Health
from crawler.telemetry.pulse import BEAT_HOLDS_SECONDS, Pulse, PulseReader

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("head", "silent", "status", "text"),
    [
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", (), "200 OK", "ok\n"),
        (b"HEAD /healthz?x HTTP/1.1\r\n\r\n", (), "200 OK", ""),
        (b"GET /healthz HTTP/1.1\r\n\r\n", ("worker-1", "b"), "503 Service Unavailable", "stands still: worker-1, b\n"),
        (b"GET /healthzx HTTP/1.1\r\n\r\n", (), "404 Not Found", "ask for /healthz\n"),
        (b"POST /healthz HTTP/1.1\r\n\r\n", (), "405 Method Not Allowed", "use GET\n"),
        (b"\x16\x03\x01\xff\r\n\r\n", (), "405 Method Not Allowed", "use GET\n"),
    ],
)
def test_what_it_responds(head: bytes, silent: tuple[str, ...], status: str, text: str) -> None:
    health = Health()
    health.watch(lambda: silent)
    first, _, body = health.respond(head).decode().partition("\r\n\r\n")
    assert (first.splitlines()[0], body) == (f"HTTP/1.1 {status}", text)


async def test_it_responds_while_the_work_goes_on() -> None:
    health = Health()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"--health {port}: .*in use; choose another port"):
            await health.serving(str(port), pytest.fail)

    async def ask() -> list[int]:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            well = (await client.get("/healthz")).status_code
            health.watch(lambda: ["worker-1"])
            ill = (await client.get("/healthz")).status_code
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"x" * 100_000)
        with pytest.raises((asyncio.IncompleteReadError, OSError)):
            await reader.readexactly(1)
        writer.close()
        return [well, ill]

    assert await health.serving(f"127.0.0.1:{port}", ask) == [200, 503]
    assert await Health().serving(None, ask_nobody) == 1


async def ask_nobody() -> int:
    return 1


@pytest.mark.parametrize("where", ["", "x", "127.0.0.1:", "127.0.0.1:99999", "1:2:x", "²", "9" * 5000])
async def test_an_address_that_is_none_is_named(where: str) -> None:
    with pytest.raises(UsageError, match="write PORT, or HOST:PORT"):
        await Health().serving(where, ask_nobody)


def test_a_child_is_silent_half_of_the_time_that_its_beat_holds() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reader, seconds = PulseReader(ours), 0
        for _ in range(100):
            assert reader.tick()
        assert not reader.is_silent, "it may be starting"
        theirs.send(bytes([BEAT_HOLDS_SECONDS]))
        assert reader.tick()
        while not reader.is_silent:
            assert reader.tick()
            seconds += 1
        assert seconds == BEAT_HOLDS_SECONDS // 2 + 1
        reader.grant()
        assert reader.is_silent, "somebody stopped it"
        Pulse(theirs)._send(BEAT_HOLDS_SECONDS)
        assert reader.tick()
        assert not reader.is_silent


async def test_a_name_that_no_host_can_have_is_named() -> None:
    with pytest.raises(UsageError, match="--health a{70}:80: .*choose another port"):
        await Health().serving(f"{'a' * 70}:80", ask_nobody)
