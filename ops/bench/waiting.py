"""`python -m ops.bench.waiting`: what processes take that wait for a shared rate, and whether all together keep it.

Prints a table: CPU seconds a second of the workers, of Redis and of Postgres, scripts in Redis, and what the upstream
logged in the same seconds: requests as a share of rate x seconds, and the most in any one second. And an idle `work`.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import monotonic, time

import psutil
from redis.asyncio import Redis
from rich import box
from rich.console import Console
from rich.table import Table

from coordinator.errors import ShardcrawlError
from coordinator.queue.registry import Runs
from coordinator.redis.connection import connect_redis
from coordinator.status import read_snapshot
from ops.bench import watch
from ops.bench.arena import Arena, open_arena
from ops.bench.polite.budget import busiest
from ops.nginx import Nginx

NAME = "waiting"
KEYS = 200_000
BODY_BYTES = 300
IDLE_PROCESSES = 4
START_DEADLINE_SECONDS = 300.0
# Connections, the first requests, and the processes' own start are over by then.
STEADY_SECONDS = 5.0


async def measure(workers: Sequence[int], rates: Sequence[int], seconds: float, shown: Table) -> None:
    """A row of the table for each rate and number of workers (0: an idle `work`, once)."""
    folder = Path(tempfile.mkdtemp(prefix="shardcrawl-bench-"))
    try:
        async with open_arena(folder) as arena:
            for count, rate in ((one, rate) for one in workers for rate in (rates if one else rates[:1])):
                await arena.clear()
                place = Path(tempfile.mkdtemp(dir=folder))
                with Nginx(place, size=BODY_BYTES, log=True) as upstream:
                    job = _job(folder, upstream.url, rate)
                    command = ["run", str(job), "--workers", str(count)]
                    command = command if count else ["work", "--workers", str(IDLE_PROCESSES)]
                    shown.add_row(*await _row(arena, upstream, command, count, rate, seconds))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _row(
    arena: Arena, upstream: Nginx, command: Sequence[str], workers: int, rate: int, seconds: float
) -> list[str]:
    client = connect_redis(arena.redis)
    with (arena.folder / "output.txt").open("w") as output:
        root = psutil.Popen(
            [sys.executable, "-m", "crawler", *command],
            env=arena.environ,
            cwd=arena.folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        deadline = monotonic() + START_DEADLINE_SECONDS
        while not await _has_begun(client, workers, root):
            if monotonic() > deadline or root.poll() is not None:
                last = " ".join((arena.folder / "output.txt").read_text().split())[-300:]
                raise ShardcrawlError(f"shardcrawl {command[0]} did not begin; it said: {last}")
            await asyncio.sleep(0.5)
        await asyncio.sleep(STEADY_SECONDS)
        before, calls_before, began = _cpu(arena, root), await _calls(client), time()
        await asyncio.sleep(seconds)
        after, calls, ended = _cpu(arena, root), await _calls(client), time()
        await asyncio.sleep(1.0)  # nginx writes its log at each request, but may be late on a busy machine
        spent = ended - began
        shares = [f"{(now - first) / spent:.3f}" for first, now in zip(before, after, strict=True)]
        shares.append(f"{(calls - calls_before) / spent:.0f}")
        if not workers:
            return [f"idle work, {IDLE_PROCESSES} processes", *shares, "", ""]
        times = [at for at, _ in upstream.requests() if began <= at < ended]
        kept = f"{len(times) / (rate * spent):.1%} of {rate}/s"
        return [f"{workers} workers", *shares, kept, str(busiest(times))]
    finally:
        watch.end(root)
        root.wait()
        await client.aclose()


async def _has_begun(client: Redis, workers: int, root: psutil.Popen) -> bool:
    if workers:
        return await Runs(client).find(NAME) is not None and (await read_snapshot(client, NAME)).workers == workers
    return len(_children(root, "worker")) == IDLE_PROCESSES


async def _calls(client: Redis) -> int:
    """How many scripts Redis has carried out."""
    return int((await client.info("commandstats")).get("cmdstat_evalsha", {}).get("calls", 0))


def _cpu(arena: Arena, root: psutil.Process) -> list[float]:
    """CPU seconds so far of the workers, the command and its coordinator, Redis, and Postgres."""
    workers = sum(sum(child.cpu_times()[:2]) for child in _children(root, "worker"))
    others = sum(sum(child.cpu_times()[:2]) for child in (root, *_children(root, "coordinator")))
    postgres = watch.cpu([arena.postgres_pid])
    return [workers, others, arena.servers_cpu() - postgres, postgres]


def _children(root: psutil.Process, name: str) -> list[psutil.Process]:
    return [child for child in root.children() if child.cmdline()[-1].startswith(name)]


def _job(folder: Path, url: str, rate: int) -> Path:
    urls, job = folder / "urls.txt", folder / "job.toml"
    with urls.open("w") as file:
        file.writelines(f"{url}/item/{number}\n" for number in range(KEYS))
    job.write_text(
        f'[run]\nname = "{NAME}"\n[source]\npath = "{urls}"\n'
        f'[request]\nallow_private = ["127.0.0.0/8"]\nrobots = false\n[limits."*"]\nrate = "{rate}/s"\n'
    )
    return job


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 64, 0], help="0: an idle `work`")
    parser.add_argument("--rates", type=int, nargs="+", default=[50, 400], help="requests a second")
    parser.add_argument("--seconds", type=float, default=30.0)
    arguments = parser.parse_args()
    watch.stop_on_sigterm()
    shown = Table(box=box.SIMPLE_HEAD, title="processors in use, and the share of a rate that the upstream got")
    columns = ("workers", "command, coordinator", "Redis", "Postgres", "scripts/s", "requests", "most in a second")
    for column in ("", *columns):
        shown.add_column(column, justify="right")
    try:
        asyncio.run(measure(arguments.workers, arguments.rates, arguments.seconds, shown))
    except ShardcrawlError as error:
        sys.exit(f"error: {error}")
    Console(width=120).print(shown)


if __name__ == "__main__":
    main()
