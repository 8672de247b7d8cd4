"""`python -m ops.bench.waiting`: what processes take that wait: many workers at a slow upstream, and an idle `work`.

Prints a table: CPU seconds a second of the workers, of Redis and of Postgres, and keys a second.
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
from time import monotonic

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
from ops.bench.arena import Arena, open_arena, serve_upstream

NAME = "waiting"
RATE = 50
KEYS = 100_000
BODY_BYTES = 300
IDLE_PROCESSES = 4
START_DEADLINE_SECONDS = 300.0
# Connections, the first requests, and the processes' own start are over by then.
STEADY_SECONDS = 5.0


async def measure(workers: Sequence[int], seconds: float, shown: Table) -> None:
    """A row of the table for each number of workers (0: an idle `work`)."""
    folder = Path(tempfile.mkdtemp(prefix="shardcrawl-bench-"))
    try:
        async with open_arena(folder) as arena:
            for count in workers:
                await arena.clear()
                with serve_upstream(folder, BODY_BYTES) as upstream:
                    job = _job(folder, upstream.url)
                    command = ["run", str(job), "--workers", str(count)]
                    command = command if count else ["work", "--workers", str(IDLE_PROCESSES)]
                    shown.add_row(*await _row(arena, command, count, seconds))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _row(arena: Arena, command: Sequence[str], workers: int, seconds: float) -> list[str]:
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
        before, done_before, began = _cpu(arena, root), await _done(client, workers), monotonic()
        await asyncio.sleep(seconds)
        spent, done = monotonic() - began, await _done(client, workers)
        shares = [(after - first) / spent for first, after in zip(before, _cpu(arena, root), strict=True)]
        who = f"{workers} workers" if workers else f"idle work, {IDLE_PROCESSES} processes"
        return [who, *(f"{share:.3f}" for share in shares), f"{(done - done_before) / spent:.2f}"]
    finally:
        watch.end(root)
        root.wait()
        await client.aclose()


async def _has_begun(client: Redis, workers: int, root: psutil.Popen) -> bool:
    if workers:
        return await Runs(client).find(NAME) is not None and (await read_snapshot(client, NAME)).workers == workers
    return len(_children(root, "worker")) == IDLE_PROCESSES


async def _done(client: Redis, workers: int) -> int:
    return (await read_snapshot(client, NAME)).counts.done if workers else 0


def _cpu(arena: Arena, root: psutil.Process) -> list[float]:
    """CPU seconds so far of the workers, the command and its coordinator, Redis, and Postgres."""
    workers = sum(sum(child.cpu_times()[:2]) for child in _children(root, "worker"))
    others = sum(sum(child.cpu_times()[:2]) for child in (root, *_children(root, "coordinator")))
    postgres = watch.cpu([arena.postgres_pid])
    return [workers, others, arena.servers_cpu() - postgres, postgres]


def _children(root: psutil.Process, name: str) -> list[psutil.Process]:
    return [child for child in root.children() if child.cmdline()[-1].startswith(name)]


def _job(folder: Path, url: str) -> Path:
    urls, job = folder / "urls.txt", folder / "job.toml"
    with urls.open("w") as file:
        file.writelines(f"{url}/item/{number}\n" for number in range(KEYS))
    job.write_text(
        f'[run]\nname = "{NAME}"\n[source]\npath = "{urls}"\n'
        f'[request]\nallow_private = ["127.0.0.0/8"]\nrobots = false\n[limits."*"]\nrate = "{RATE}/s"\n'
    )
    return job


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[16, 64, 0], help="0: an idle `work`")
    parser.add_argument("--seconds", type=float, default=20.0)
    arguments = parser.parse_args()
    watch.stop_on_sigterm()
    shown = Table(box=box.SIMPLE_HEAD, title=f"processors in use, of an upstream of {RATE}/s")
    for column in ("", "workers", "command, coordinator", "Redis", "Postgres", "keys/s"):
        shown.add_column(column, justify="right")
    try:
        asyncio.run(measure(arguments.workers, arguments.seconds, shown))
    except ShardcrawlError as error:
        sys.exit(f"error: {error}")
    Console(width=120).print(shown)


if __name__ == "__main__":
    main()
