"""One Redis, one Postgres and one nginx for all contenders, emptied before each crawl."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
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


class Arena:
    """Redis and Postgres for one crawl after another. None of them finds anything of an earlier one."""

    def __init__(self, folder: Path, embedded: Embedded) -> None:
        self.folder = folder
        self.redis = str(embedded.services.redis_url)
        self._postgres = str(embedded.services.database_url)
        self._pids = list(embedded.pids.values())

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

    async def committed(self, name: str, keys: int) -> float:
        """Wait until Redis has all keys of a shardcrawl run as done; return the time: just after the last commit."""
        client = connect_redis(self.redis)
        try:
            while True:
                found = await Runs(client).find(name)
                if found is not None and (await read_counts(client, name)).done >= keys:
                    return time()
                await asyncio.sleep(POLL_SECONDS)
        finally:
            await client.aclose()

    def servers_cpu(self, upstream: Upstream | None = None) -> float:
        """CPU seconds that Redis, Postgres and the upstream, if there is one, have used so far."""
        return watch.cpu([*self._pids, *([upstream.pid] if upstream else [])])


@asynccontextmanager
async def open_arena(folder: Path) -> AsyncIterator[Arena]:
    """Embedded Redis and Postgres in a folder, which the caller removes."""
    async with Embedded(folder / "services") as embedded:
        yield Arena(folder, embedded)


@contextmanager
def serve_upstream(folder: Path, size: int, *, tls: bool = False) -> Iterator[Upstream]:
    """An nginx with bodies of `size` bytes. Raises NginxMissing."""
    place = folder / "nginx"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    files = certificate(place) if tls else None
    with Nginx(place, size=size, tls=files and files[1:]) as nginx:
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
