"""Thousands of good and bad responses leave nothing behind: no socket, no task, no memory."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
from contextlib import suppress

import psutil
import pytest

from coordinator.errors import FetchError
from crawler.fetch.engines.httpx_engine import HttpxEngine
from crawler.fetch.engines.protocol import Caps, Engine
from tests.crawler.fetch.conftest import MakeEngine
from tests.servers.misbehaving import Misbehaving
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

PATHS = (
    "/sized",
    "/gzip",
    "/br",
    "/zstd",
    "/gzip-cut",
    "/short",
    "/closed",
    "/large",
    "/malformed",
    "/204",
    "/bomb-zstd",
)
AT_ONCE = 16


async def fetch_many(engine: Engine, server: Misbehaving, requests: int) -> None:
    """Make so many requests over all paths; some fail, and some are cancelled."""
    numbers = iter(range(requests))

    async def lane() -> None:
        for number in numbers:
            fetch = asyncio.create_task(engine.fetch("GET", server.url(PATHS[number % len(PATHS)]), ()))
            if number % 50 == 0:
                await asyncio.sleep(0)
                fetch.cancel()
            server.heads.clear()
            server.connected_to.clear()
            with suppress(FetchError, asyncio.CancelledError):
                await fetch

    await asyncio.gather(*(lane() for _ in range(AT_ONCE)))


async def leaks(engine: Engine, server: Misbehaving, warm_up: int, requests: int) -> int:
    """Return the bytes of memory that the requests after the warm-up took; no task and no socket may be left."""
    process = psutil.Process(os.getpid())
    tasks = len(asyncio.all_tasks())
    await fetch_many(engine, server, warm_up)
    before = _bytes_in_use(process)
    await fetch_many(engine, server, requests)
    grown = _bytes_in_use(process) - before
    await engine.close()
    await eventually(lambda: len(asyncio.all_tasks()) <= tasks, "tasks to end")
    await eventually(lambda: _only_listening(process), "sockets to be closed")
    return grown


def _bytes_in_use(process: psutil.Process) -> int:
    """Its memory without what is free: glibc keeps what many bombs at once have needed, 80 MB of 16, for later use."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return int(process.memory_info().rss)


def _only_listening(process: psutil.Process) -> bool:
    return all(connection.status == psutil.CONN_LISTEN for connection in process.net_connections("tcp"))


async def test_hundreds_of_requests_leave_nothing_behind(make_engine: MakeEngine, server: Misbehaving) -> None:
    assert await leaks(make_engine(Caps(body=400_000)), server, 200, 600) < 12 * 2**20


@pytest.mark.parametrize("path", PATHS)
async def test_an_error_goes_with_its_request(make_engine: MakeEngine, server: Misbehaving, path: str) -> None:
    """What it kept, the frames of its traceback, may have a large body."""
    engine = make_engine(Caps(body=400_000))
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(3):
            with suppress(FetchError):
                await engine.fetch("GET", server.url(path), ())
        gc.collect()
        assert not [one for one in gc.garbage if isinstance(one, FetchError)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.slow
async def test_half_a_million_requests_leave_nothing_behind(make_engine: MakeEngine, server: Misbehaving) -> None:
    engine = make_engine(Caps(body=400_000))
    many = 50_000 if isinstance(engine, HttpxEngine) else 500_000
    assert await leaks(engine, server, 5_000, many) < 16 * 2**20
