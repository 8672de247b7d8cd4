"""`python -m ops.bench.faults`: a run during faults, and a worker's memory while Postgres is away.

It is a whole `shardcrawl run` with embedded services. Every 3 seconds one of its processes (worker, coordinator, Redis,
Postgres) is killed or frozen for some seconds, or connections are cut. The counts must be right.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from time import monotonic

import asyncpg
import psutil

from coordinator.redis.connection import connect_redis
from crawler.local.embedded import Embedded, running
from ops.bench.whole_run import Row, as_text, children, corpus, each_key_once, page_counts, report, shardcrawl
from ops.nginx import Nginx

FAULT_EVERY_SECONDS = 3.0
FREEZE_SECONDS = (0.5, 6.0)
OUTAGE_SECONDS = 60.0


async def during_faults(folder: Path, nginx: Nginx, keys: int) -> list[Row]:
    """A run of `keys` keys by 3 workers with a fault every 3 seconds, then an audit with the upstream's log."""
    choice = random.Random(3)
    process = await shardcrawl(folder, "run", corpus(folder, "faults", nginx.url, keys), "--workers", "3", "--json")
    waiting = asyncio.create_task(process.communicate())
    faults: list[str] = []
    resumes: list[asyncio.Task[None]] = []
    began = monotonic()
    while not waiting.done():
        await asyncio.wait([waiting], timeout=FAULT_EVERY_SECONDS)
        victims = [] if waiting.done() else children(process.pid)
        if victims:
            faults.append(await _fault(choice, choice.choice(victims), folder, resumes))
    seconds = monotonic() - began
    await asyncio.gather(*resumes)
    log = folder / "requests.txt"
    log.write_text("".join(f"{path}\n" for _, path in nginx.requests()))
    allowed = keys // 50
    audit = await shardcrawl(folder, "audit", "faults", "--requests", str(log), "--allowed", str(allowed))
    out, _ = await audit.communicate()
    if audit.returncode != 0:
        sys.stderr.write(out.decode())
    counts = await page_counts(folder, "faults")
    extra = len(nginx.requests()) - keys
    kinds = ", ".join(f"{faults.count(kind)} {kind}" for kind in sorted(set(faults)))
    return [
        Row(
            f"{keys:,} keys, a fault every {FAULT_EVERY_SECONDS:.0f} s",
            f"{kinds}; {seconds:.0f} s",
            "ends by itself",
            process.returncode == 0,
        ),
        Row("every key stored once, its own body", as_text(counts), f"4 x {keys:,}", each_key_once(counts, keys)),
        Row("shardcrawl audit", f"exit code {audit.returncode}", "clean", audit.returncode == 0),
        Row("extra requests", f"{extra:,} ({100 * extra / keys:.2f} %)", "2 % at most", extra <= allowed),
    ]


async def _fault(choice: random.Random, victim: psutil.Process, folder: Path, resumes: list[asyncio.Task[None]]) -> str:
    kind = choice.choice(("killed", "frozen", "cut"))
    with contextlib.suppress(psutil.NoSuchProcess, OSError, asyncpg.PostgresError):
        if kind == "killed":
            victim.send_signal(signal.SIGKILL)
        elif kind == "frozen":
            victim.send_signal(signal.SIGSTOP)
            resumes.append(asyncio.create_task(_resume(victim, choice.uniform(*FREEZE_SECONDS))))
        else:
            async with asyncio.timeout(2.0):
                await _cut(folder, redis=choice.random() < 0.5)
    return kind


async def _resume(victim: psutil.Process, seconds: float) -> None:
    await asyncio.sleep(seconds)
    with contextlib.suppress(psutil.NoSuchProcess):
        victim.send_signal(signal.SIGCONT)


async def _cut(folder: Path, *, redis: bool) -> None:
    """Cut all connections to Redis, or to Postgres, but the one that asks for it."""
    services = running(folder / "data")
    if services is None:
        return
    if redis:
        client = connect_redis(str(services.redis_url))
        with contextlib.suppress(Exception):
            await client.client_kill_filter(_type="normal", skipme=True)
        await client.aclose()
    else:
        connection = await asyncpg.connect(services.database_url, timeout=2.0)
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
        await connection.close()


async def outage(folder: Path, nginx: Nginx, keys: int) -> list[Row]:
    """Postgres is stopped for a minute in mid-run: a worker's memory, and how many keys are fetched meanwhile."""
    async with Embedded(folder / "redis", postgres=False) as redis:
        environ = {**os.environ, "SHARDCRAWL_ALLOW_PRIVATE": "127.0.0.0/8", "REDIS_URL": str(redis.services.redis_url)}
        postgres = Embedded(folder / "postgres", redis=False)
        await postgres.__aenter__()
        environ["DATABASE_URL"] = str(postgres.services.database_url)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "crawler", "run", corpus(folder, "outage", nginx.url, keys)),
            *("--workers", "1", "--rate", "2000", "--json"),
            cwd=folder,
            env=environ,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        at_start = len(nginx.requests())
        while len(nginx.requests()) - at_start < keys // 4:
            await asyncio.sleep(0.2)
        worker = next(child for child in children(process.pid) if child.cmdline()[-1] == "worker-1")
        before = worker.memory_info().rss
        await postgres.__aexit__(None, None, None)
        await asyncio.sleep(5.0)
        after_5_s, most = len(nginx.requests()), before
        ends = monotonic() + OUTAGE_SECONDS - 5.0
        while monotonic() < ends:
            most = max(most, worker.memory_info().rss)
            await asyncio.sleep(0.5)
        fetched = len(nginx.requests()) - after_5_s
        async with Embedded(folder / "postgres", redis=False):
            await process.communicate()
    grown = (most - before) / 1_000_000
    return [
        Row(
            f"Postgres away for {OUTAGE_SECONDS:.0f} s: a worker's memory",
            f"{grown:+.1f} MB",
            "below +100 MB",
            grown < 100,
        ),
        Row("requests from 5 s after it stopped until it started", f"{fetched:,}", "0", fetched == 0),
        Row("the run afterwards", f"exit code {process.returncode}", "ends by itself", process.returncode == 0),
    ]


async def measure(keys: int) -> list[Row]:
    """The rows of both parts."""
    folder = Path(tempfile.mkdtemp(prefix="shardcrawl-bench-"))
    try:
        rows: list[Row] = []
        for part, count in ((during_faults, keys), (outage, 40_000)):
            place = folder / part.__name__
            (place / "nginx").mkdir(parents=True)
            with Nginx(place / "nginx", size=4096, log=True) as nginx:
                rows += await part(place, nginx, count)
        return rows
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Print the table; exit 1 when a promise did not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=300_000)
    sys.exit(report(asyncio.run(measure(parser.parse_args().keys))))


if __name__ == "__main__":
    main()
