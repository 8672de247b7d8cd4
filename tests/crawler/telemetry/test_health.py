"""`/healthz` of a command with children, what systemd is told, and the silence of which they tell."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from coordinator.errors import UsageError
from crawler.telemetry.health import Health
from crawler.telemetry.pulse import BEAT_HOLDS_SECONDS, Pulse, PulseReader
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

OWN_PID = str(os.getpid())


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
            await health.serving(str(port), {}, pytest.fail)

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

    assert await health.serving(f"127.0.0.1:{port}", {}, ask) == [200, 503]
    assert await Health().serving(None, {}, ask_nobody) == 1


async def ask_nobody() -> int:
    return 1


@pytest.mark.parametrize("where", ["", "x", "127.0.0.1:", "127.0.0.1:99999", "1:2:x", "²", "9" * 5000])
async def test_an_address_that_is_none_is_named(where: str) -> None:
    with pytest.raises(UsageError, match="write PORT, or HOST:PORT"):
        await Health().serving(where, {}, ask_nobody)


@pytest.mark.parametrize("watchdog", [{"WATCHDOG_USEC": "10000"}, {"WATCHDOG_USEC": "10000", "WATCHDOG_PID": OWN_PID}])
@pytest.mark.parametrize("is_abstract", [False, True])
async def test_systemd_hears_that_it_began_and_then_only_while_all_move(
    tmp_path: Path, is_abstract: bool, watchdog: dict[str, str]
) -> None:
    name = f"@shardcrawl-{secrets.token_hex(8)}" if is_abstract else str(tmp_path / "notify")
    heard: list[bytes] = []
    looks: list[None] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(name.replace("@", "\0"))
        systemd.setblocking(False)

        def hear() -> int:
            with suppress(BlockingIOError):
                while True:
                    heard.append(systemd.recv(100))
            return len(heard)

        def silent() -> list[str]:
            looks.append(None)
            return ["worker-1"]

        async def work() -> None:
            await eventually(lambda: hear() >= 4, "the watchdog to be told")
            health.watch(silent)
            await eventually(lambda: bool(looks), "a look at the children")
            before = hear()
            await eventually(lambda: len(looks) >= 4, "more looks at the children")
            assert hear() == before

        health = Health()
        await health.serving(None, {"NOTIFY_SOCKET": name, **watchdog}, work)
    assert (heard[0], set(heard[1:])) == (b"READY=1", {b"WATCHDOG=1"})


@pytest.mark.parametrize("watchdog", [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}])
async def test_without_a_watchdog_systemd_hears_only_the_beginning(tmp_path: Path, watchdog: dict[str, str]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)

        async def work() -> None:
            for _ in range(10):
                await asyncio.sleep(0)

        for where in ("notify", "nobody"):
            await Health().serving(None, {"NOTIFY_SOCKET": str(tmp_path / where), **watchdog}, work)
        assert systemd.recv(100) == b"READY=1"
        with pytest.raises(BlockingIOError):
            systemd.recv(100)


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
        await Health().serving(f"{'a' * 70}:80", {}, ask_nobody)
