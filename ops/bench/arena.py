"""One Redis, one Postgres and one nginx for all contenders, emptied before each crawl."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import time

import asyncpg
import psutil

from coordinator.errors import ShardcrawlError
from coordinator.queue.registry import Runs
from coordinator.redis.connection import connect_redis
from coordinator.status import read_counts
from crawler.local.embedded import Embedded
from crawler.local.embedded.account import account_of_servers
from crawler.local.embedded.folder import open_folder
from crawler.local.embedded.postgres import PostgresServer
from ops.bench import watch
from ops.nginx import Nginx

DATABASE = "bench"
POLL_SECONDS = 0.02
STORED = """
SELECT count(*) AS keys, count(*) FILTER (WHERE body->>'id' = split_part(url, '/item/', 2)) AS own,
       extract(epoch FROM min(fetched_at))::float8 AS first
FROM pages
"""


@dataclass(frozen=True, slots=True)
class Upstream:
    """An nginx that responds with JSON of `size` bytes. When it serves https, `ca` is the authority to trust."""

    url: str
    size: int
    pid: int
    ca: Path | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """What is in a crawl's table: how many keys, how many of them with their own body, and when the first page came."""

    keys: int
    own: int
    first: float


class OtherPostgres(PostgresServer):
    """Another Postgres than the embedded one, with the same settings: `programs` is the folder of its programs."""

    programs: Path

    async def prepare(self) -> Path:
        """Make the cluster when there is none."""
        if not self.data.has(self.name):
            await self._make_cluster(self.programs / "initdb")
        return self.programs / "postgres"


class Arena:
    """Redis and Postgres for one crawl after another. None of them finds anything of an earlier one.

    With lz4 every table is compressed by it, whoever makes it, unless the table says otherwise.
    """

    def __init__(self, folder: Path, redis: str, postgres: str, pids: Mapping[str, int], *, lz4: bool = False) -> None:
        self.folder = folder
        self.redis = redis
        self.postgres_pid = pids[PostgresServer.name]
        self._postgres = postgres
        self._pids = list(pids.values())
        self._lz4 = lz4

    @property
    def database(self) -> str:
        """The address of the database. `clear` makes it anew for each crawl."""
        return re.sub(r"(?<=@)/[^?]*", f"/{DATABASE}", self._postgres)

    @property
    def environ(self) -> dict[str, str]:
        """The environment of a shardcrawl command that uses these servers."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SHARDCRAWL_")}
        return {**kept, "REDIS_URL": self.redis, "DATABASE_URL": self.database}

    async def clear(self) -> None:
        """Empty Redis, make the database anew, and take a checkpoint, so that none is due during the crawl."""
        client = connect_redis(self.redis)
        await client.flushall()
        await client.aclose()
        connection = await asyncpg.connect(self._postgres)
        try:
            await connection.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")
            await connection.execute(f"CREATE DATABASE {DATABASE}")
            if self._lz4:
                await connection.execute(f"ALTER DATABASE {DATABASE} SET default_toast_compression = 'lz4'")
            await connection.execute("CHECKPOINT")
        finally:
            await connection.close()

    async def stored(self) -> Stored:
        """Look into the table of the crawl."""
        connection = await asyncpg.connect(self.database)
        try:
            row = await connection.fetchrow(STORED)
        finally:
            await connection.close()
        assert row is not None
        return Stored(row["keys"], row["own"], row["first"] or 0.0)

    async def committed(self, name: str, keys: int, poll_seconds: float = POLL_SECONDS) -> float:
        """Wait until Redis has all keys of a shardcrawl run as done; return the time: just after the last commit."""
        client = connect_redis(self.redis)
        try:
            while True:
                found = await Runs(client).find(name)
                if found is not None and (await read_counts(client, name)).done >= keys:
                    return time()
                await asyncio.sleep(poll_seconds)
        finally:
            await client.aclose()

    def servers_cpu(self, upstream: Upstream | None = None) -> float:
        """CPU seconds that Redis, Postgres and the upstream, if there is one, have used so far."""
        return watch.cpu([*self._pids, *([upstream.pid] if upstream else [])])


@asynccontextmanager
async def open_arena(folder: Path, programs: Path | None = None, *, lz4: bool = False) -> AsyncIterator[Arena]:
    """Embedded Redis and Postgres in a folder, which the caller removes; or a Postgres of other `programs`."""
    async with Embedded(folder / "services", postgres=programs is None) as embedded:
        redis = str(embedded.services.redis_url)
        if programs is None:
            yield Arena(folder, redis, str(embedded.services.database_url), embedded.pids, lz4=lz4)
            return
        async with _other_postgres(folder, programs) as server:
            pids = {**embedded.pids, **({server.name: server.pid} if server.pid else {})}
            yield Arena(folder, redis, server.url, pids, lz4=lz4)


@asynccontextmanager
async def _other_postgres(folder: Path, programs: Path) -> AsyncIterator[OtherPostgres]:
    sockets = Path(tempfile.mkdtemp(prefix="shardcrawl-bench-"))
    data = open_folder(folder / "other")
    try:
        server = OtherPostgres(data, sockets, account_of_servers())
        server.programs = programs
        await server.spawn()
        try:
            await server.wait_until_ready()
            yield server
        finally:
            await server.stop()
    finally:
        data.close()
        shutil.rmtree(sockets, ignore_errors=True)


@contextmanager
def serve_upstream(
    folder: Path, size: int, *, tls: bool = False, documents: Sequence[bytes] = ()
) -> Iterator[Upstream]:
    """An nginx with bodies of `size` bytes, and these documents by number. Raises NginxMissing."""
    place = folder / "nginx"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    files = certificate(place) if tls else None
    with Nginx(place, size=size, tls=files and files[1:]) as nginx:
        nginx.documents.mkdir()
        for number, document in enumerate(documents):
            (nginx.documents / str(number)).write_bytes(document)
        yield Upstream(nginx.url, size, nginx.pid, files and files[0])


def certificate(folder: Path) -> tuple[Path, Path, Path]:
    """Files that openssl makes: an authority, a certificate for 127.0.0.1 that it signed, and the certificate's key."""
    ca, certified, key = folder / "ca.pem", folder / "certificate.pem", folder / "key.pem"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    request = ["openssl", "req", "-x509", *curve, "-nodes", "-days", "2"]
    authority = [*request, "-subj", "/CN=authority", "-out", str(ca), "-keyout", str(folder / "ca.key")]
    signed = ["-CA", str(ca), "-CAkey", str(folder / "ca.key"), "-addext", "basicConstraints=critical,CA:FALSE"]
    leaf = [*request, "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", *signed]
    try:
        for command in (authority, [*leaf, "-out", str(certified), "-keyout", str(key)]):
            subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ShardcrawlError(
            "openssl failed to make a certificate for the runs over TLS; install Debian's openssl"
        ) from error
    return ca, certified, key


def machine() -> dict[str, object]:
    """What this machine is: processor, cores, memory, load. It is saved beside the figures."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        "unknown",
    )
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "load_before": round(os.getloadavg()[0], 2),
    }
