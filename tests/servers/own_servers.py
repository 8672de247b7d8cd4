"""A Redis, a pgbouncer and a small disk of one test, which may kill, restart or fill them."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg

from crawler.local.embedded.account import account_of_servers
from crawler.local.embedded.folder import open_folder
from crawler.local.embedded.redis import RedisServer
from tests.servers.http2 import make_certificate
from tests.servers.network import Proxy
from tests.waiting import eventually

BOUNCER = """
[databases]
* = host=127.0.0.1 port={behind} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 2
max_client_conn = 50
ignore_startup_parameters = extra_float_digits
client_tls_sslmode = require
client_tls_key_file = {pem}
client_tls_cert_file = {pem}
"""


class NoPgbouncer(Exception):
    """There is no pgbouncer on this machine."""


class OwnRedis(RedisServer):
    """A Redis in a folder, with the settings of the embedded one, that a test can kill and start again."""

    async def kill(self) -> None:
        """End it by SIGKILL, and wait until it has ended."""
        assert self.pid is not None
        os.kill(self.pid, signal.SIGKILL)
        await eventually(lambda: self.ending is not None, "redis to be dead")

    async def start(self) -> None:
        """Start it with the content of its folder, and wait until it is ready."""
        await self.spawn()
        await self.wait_until_ready()


@asynccontextmanager
async def own_redis(folder: Path) -> AsyncIterator[OwnRedis]:
    """A Redis that keeps its data in `folder`/redis; its socket has a short path elsewhere."""
    sockets = Path(tempfile.mkdtemp(prefix="faults-"))
    data = open_folder(folder)
    server = OwnRedis(data, sockets, account_of_servers())
    try:
        await server.start()
        yield server
    finally:
        await server.stop()
        data.close()
        shutil.rmtree(sockets, ignore_errors=True)


class SmallDisk:
    """A file system of a few megabytes in memory, mounted at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"
        self._databases: list[tuple[str, str]] = []

    def fill(self) -> None:
        """Fill the disk."""
        with self._ballast.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))

    def empty(self) -> None:
        """Free the space again."""
        self._ballast.unlink(missing_ok=True)

    async def database(self, url: str) -> str:
        """Make a database in the server at `url` with all its tables on this disk; returns its address."""
        place = self.path / "tablespace"
        place.mkdir()
        admin = await asyncpg.connect(url)
        try:
            account = Path(parse_qs(urlsplit(url).query)["host"][0]).stat()
            os.chown(place, account.st_uid, account.st_gid)
            name = f"small_{os.getpid()}_{self.path.name}".replace("-", "_")
            await admin.execute(f"CREATE TABLESPACE {name} LOCATION '{place}'")
            await admin.execute(f"CREATE DATABASE {name} TABLESPACE {name}")
        finally:
            await admin.close()
        self._databases.append((url, name))
        return re.sub(r"/[^/?]*\?", f"/{name}?", url, count=1)

    async def drop(self) -> None:
        """Remove the databases that were made on it."""
        self.empty()
        for url, name in self._databases:
            admin = await asyncpg.connect(url)
            await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
            await admin.execute(f"DROP TABLESPACE {name}")
            await admin.close()


@asynccontextmanager
async def pgbouncer(proxy: Proxy) -> AsyncIterator[str]:
    """Debian's pgbouncer in transaction mode and with TLS in front of the proxy's Postgres; yields its address."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        raise NoPgbouncer("there is no pgbouncer; install Debian's pgbouncer")
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    folder.chmod(0o755)
    port, pem = free_port(), make_certificate(folder, "localhost")
    pem.chmod(0o644)
    (folder / "pgbouncer.ini").write_text(BOUNCER.format(behind=proxy.port, port=port, pem=pem))
    # It refuses to run as root.
    account = "nobody" if os.geteuid() == 0 else None
    process = subprocess.Popen(
        [program, str(folder / "pgbouncer.ini")], user=account, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    url = proxy.url.replace(f"127.0.0.1:{proxy.port}", f"localhost:{port}")
    url = url.replace("sslmode=disable", f"sslmode=verify-full&sslrootcert={pem}")

    async def is_ready() -> bool:
        assert process.poll() is None, f"pgbouncer ended with exit code {process.returncode}"
        try:
            await (await asyncpg.connect(url, statement_cache_size=0)).close()
        except OSError:
            return False
        return True

    try:
        await eventually(is_ready, "pgbouncer to be ready")
        yield url
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait)
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    """A port on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
