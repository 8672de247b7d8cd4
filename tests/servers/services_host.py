"""A host with a Redis, a Postgres and an upstream for all others."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import uvloop

from crawler.local.embedded.account import account_of_servers
from crawler.local.embedded.folder import open_folder
from crawler.local.embedded.postgres import DATABASE_NAME, HBA_FILE, SOCKET_PORT, SUPERUSER, PostgresServer
from crawler.local.embedded.redis import RedisServer
from tests.servers.disturbed import Disturbed
from tests.servers.hosts import NETWORK, Host

REDIS_PORT, POSTGRES_PORT, UPSTREAM_PORT = 6379, SOCKET_PORT, 8080


class _ListeningRedis(RedisServer):
    refused_commands = ()

    def command(self, program: Path, folder: str, sockets: str) -> Sequence[str]:
        words = super().command(program, folder, sockets)
        return [*words, "--port", str(REDIS_PORT), "--bind", "*", "--protected-mode", "no"]


class _ListeningPostgres(PostgresServer):
    def command(self, program: Path, folder: str, sockets: str) -> Sequence[str]:
        return [*super().command(program, folder, sockets), "-c", "listen_addresses=*"]

    def fill_socket_folder(self) -> None:
        super().fill_socket_folder()
        with (self.socket_folder / HBA_FILE).open("a") as file:
            file.write(f"host all all {NETWORK} trust\n")


@dataclass(slots=True)
class ServicesHost:
    """The servers of a host. `environ` has their addresses for other hosts, `local_environ` those for this process."""

    upstream: Disturbed
    environ: dict[str, str]
    local_environ: dict[str, str]


@asynccontextmanager
async def serve_on(host: Host, folder: Path) -> AsyncIterator[ServicesHost]:
    """Start the servers on a host, in a thread that is there; `folder` is a data folder that a command has made."""
    sockets = Path(tempfile.mkdtemp(prefix="faults-"))
    sockets.chmod(0o711)
    upstream = Disturbed(host=host.address, port=UPSTREAM_PORT)
    data = open_folder(folder)
    servers = [kind(data, sockets, account_of_servers()) for kind in (_ListeningRedis, _ListeningPostgres)]
    loop = asyncio.get_running_loop()
    started: asyncio.Future[asyncio.AbstractEventLoop] = loop.create_future()
    stopping = asyncio.Event()

    async def serve() -> None:
        async with upstream:
            try:
                for server in servers:
                    await server.spawn()
                for server in servers:
                    await server.wait_until_ready()
                loop.call_soon_threadsafe(started.set_result, asyncio.get_running_loop())
                await stopping.wait()
            finally:
                for server in servers:
                    await server.stop()

    def run() -> None:
        try:
            host.enter()
            uvloop.run(serve())
        except Exception as error:  # noqa: BLE001 - the test raises it
            failure = error
            loop.call_soon_threadsafe(lambda: started.done() or started.set_exception(failure))

    thread = threading.Thread(target=run, name="services host")
    thread.start()
    try:
        there = await started
        database = f"postgresql://{SUPERUSER}@{host.address}:{POSTGRES_PORT}/{DATABASE_NAME}?sslmode=disable"
        yield ServicesHost(
            upstream,
            {
                "REDIS_URL": f"redis://{host.address}:{REDIS_PORT}/0",
                "DATABASE_URL": database,
                "SHARDCRAWL_ALLOW_PRIVATE": NETWORK,
            },
            {"REDIS_URL": servers[0].url, "DATABASE_URL": servers[1].url},
        )
    finally:
        if not started.exception():
            there.call_soon_threadsafe(stopping.set)
        await asyncio.to_thread(thread.join)
        data.close()
        shutil.rmtree(sockets, ignore_errors=True)
