"""Real Redis and Postgres, started once in a session by the embedded services, and `shardcrawl` as a command."""

from __future__ import annotations

import asyncio
import atexit
import gc
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg
import pytest
from hypothesis import settings
from redis.asyncio import Redis

from coordinator.redis.connection import connect_redis
from crawler.local.embedded import Embedded, Services
from crawler.local.embedded.redis import RedisServer
from tests.live.shell import Shell

# An example may take long on a loaded machine: no test judges by the clock.
settings.register_profile("no_clock", deadline=None)
settings.load_profile("no_clock")

# What is imported and collected stays, and the end of the process frees it: looking for garbage in it takes seconds.
gc.disable()
atexit.register(gc.freeze)


def pytest_runtestloop() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return ("asyncio", {"use_uvloop": True})


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """Both servers. They run in a thread with its own event loop, because each test has another loop."""
    folder = tmp_path_factory.mktemp("services")
    ready = threading.Event()
    started: list[Services] = []
    errors: list[BaseException] = []
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def run_servers() -> None:
        async with AsyncExitStack() as stack:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(RedisServer, "refused_commands", ())  # tests change its settings
                embedded = await stack.enter_async_context(Embedded(folder))
            started.append(embedded.services)
            ready.set()
            await stop.wait()

    def run_loop() -> None:
        try:
            loop.run_until_complete(run_servers())
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            errors.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run_loop, name="services")
    thread.start()
    ready.wait()
    if errors:
        raise errors[0]
    yield started[0]
    loop.call_soon_threadsafe(stop.set)
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
    """The address of a new, empty Postgres database. It is dropped after the test."""
    assert services.database_url is not None
    name = f"test_{secrets.token_hex(6)}"
    admin = await asyncpg.connect(services.database_url)
    await admin.execute(f"CREATE DATABASE {name}")
    yield services.database_url.replace("/shardcrawl?", f"/{name}?")
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.close()


@pytest.fixture
def environ(redis: Redis, redis_url: str, database: str) -> dict[str, str]:
    """Environment of a command that shall use the session's servers: an empty Redis and an empty database."""
    return {"REDIS_URL": redis_url, "DATABASE_URL": database}


@pytest.fixture(scope="session")
def new_data(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], None]:
    """Copies a data folder that a command has made: making one takes a second of the processor."""
    made = tmp_path_factory.mktemp("new") / "data"

    def copy(data: Path) -> None:
        if not made.exists():
            command = [sys.executable, "-P", "-m", "crawler", "runs"]
            environ = {name: value for name, value in os.environ.items() if not name.endswith("_URL")}
            subprocess.run(command, env={**environ, "SHARDCRAWL_DATA": str(made)}, check=True, capture_output=True)
        subprocess.run(["cp", "-a", made, data], check=True)

    return copy


@pytest.fixture
async def shell(tmp_path: Path, new_data: Callable[[Path], None]) -> AsyncIterator[Shell]:
    """Starts `shardcrawl` commands in the test's folder, and kills after the test what still runs."""
    shell = Shell(tmp_path, new_data)
    yield shell
    await shell.kill_rest()


@pytest.fixture(autouse=True)
def own_path() -> Iterator[None]:
    """No test finds the modules of another one's folder: loading a job's code adds its folder to sys.path."""
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder for jobs; modules that are imported meanwhile are removed afterwards."""
    before = set(sys.modules)
    yield tmp_path
    for name in sys.modules.keys() - before:
        del sys.modules[name]


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Name a case of bytes by its argument: pytest-xdist needs the same names in every process."""
    return argname if isinstance(val, bytes) else None
