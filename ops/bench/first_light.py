"""`python -m ops.bench.first_light`: what the main job does on this machine, as one table.

Each row is a whole `shardcrawl run` with embedded Redis and Postgres against nginx on the same machine, unless it says
otherwise. Rates are of one run on a machine that may be busy with other things; the counts must always be right.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import psutil
from rich import box
from rich.console import Console
from rich.table import Table

from coordinator.queue.registry import Runs
from coordinator.redis.connection import connect_redis
from coordinator.status import read_counts
from crawler.local.embedded import Embedded
from ops.nginx import Nginx

CONCURRENCY = 64
BATCH_ROWS = 1000
KILL_EVERY = 2.0
ONCE = (
    "select count(*) as keys, count(distinct digest) as digests, count(*) filter (where outcome = 'stored') as stored, "
    "count(*) filter (where body->>'id' = split_part(key, '/item/', 2)) as right_id from pages where run_id = "
    "(select run_id from runs where name = '{name}')"
)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: what was done, what came out, and whether that is what was promised."""

    what: str
    figure: str
    promised: str
    held: bool


async def shardcrawl(folder: Path, *arguments: str) -> asyncio.subprocess.Process:
    """Start a command with its data in `folder`."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "crawler",
        *arguments,
        "--data",
        str(folder / "data"),
        cwd=folder,
        env={"SHARDCRAWL_RATE": "none", **os.environ, "SHARDCRAWL_ALLOW_PRIVATE": "127.0.0.0/8"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )


async def answer(folder: Path, *arguments: str) -> Any:
    """A command's JSON."""
    process = await shardcrawl(folder, *arguments, "--json")
    out, _ = await process.communicate()
    return json.loads(out)


async def speed(folder: Path, nginx: Nginx, keys: int) -> list[Row]:
    """A run of `keys` keys by 2 workers, and the same run again when it is complete."""
    urls = corpus(folder, "speed", nginx.url, keys)
    end = await answer(folder, "run", urls, "--workers", "2")
    rate = keys / end["seconds"]
    once = await rows_of(folder, "speed")
    asked = len(nginx.requests())
    began = monotonic()
    again = await answer(folder, "run", urls, "--workers", "2")
    seconds = monotonic() - began
    return [
        Row(f"{keys:,} keys, 2 workers", f"{rate:,.0f} keys/s, {asked:,} requests", "5,000 keys/s", rate >= 5000),
        Row("every key stored once, its own body", shown(once), f"4 x {keys:,}", right(once, keys)),
        Row(
            "the complete run again",
            f"{len(nginx.requests()) - asked} requests, {seconds:.1f} s",
            "0 requests, 5 s",
            len(nginx.requests()) == asked and seconds < 5 and again["outcomes"]["stored"] == keys,
        ),
    ]


async def killed(folder: Path, nginx: Nginx, keys: int) -> list[Row]:
    """The same while a random process of the run gets SIGKILL every 2 seconds."""
    before = len(nginx.requests())
    choice = random.Random(2)
    running = await shardcrawl(folder, "run", corpus(folder, "killed", nginx.url, keys), "--workers", "2", "--json")
    waiting = asyncio.create_task(running.communicate())
    kills: list[str] = []
    began = monotonic()
    while not waiting.done():
        await asyncio.wait([waiting], timeout=KILL_EVERY)
        victims = [] if waiting.done() else family(running.pid)
        if victims:
            victim = choice.choice(victims)
            kills.append(victim.name())
            victim.send_signal(signal.SIGKILL)
    seconds = monotonic() - began
    extra = len(nginx.requests()) - before - keys
    allowed = len(kills) * (2 * CONCURRENCY + 2 * BATCH_ROWS)
    once = await rows_of(folder, "killed")
    return [
        Row(
            f"{keys:,} keys, kill -9 every {KILL_EVERY:.0f} s",
            f"{len(kills)} kills, {seconds:.0f} s, exit code {running.returncode}",
            "ends by itself",
            running.returncode == 0,
        ),
        Row("every key stored once, its own body", shown(once), f"4 x {keys:,}", right(once, keys)),
        Row("extra requests", f"{extra:,}", f"{allowed:,} at most", extra <= allowed),
    ]


async def several(folder: Path, nginx: Nginx) -> list[Row]:
    """50 keys a request in one shard: as few requests as there can be."""
    keys = 20_000
    before = len(nginx.requests())
    (folder / "ids.txt").write_text("".join(f"id-{number}\n" for number in range(keys)))
    (folder / "batch.toml").write_text(
        f'[run]\nname = "batch"\nworkers = 2\n[source]\npath = "ids.txt"\n[request]\n'
        f'url = "{nginx.url}/batch?ids={{keys}}"\nkeys_per_request = 50\nallow_private = ["127.0.0.0/8"]\n'
    )
    end = await answer(folder, "run", "batch.toml")
    asked = len(nginx.requests()) - before
    blocks = -(-keys // 500)
    return [
        Row(
            f"{keys:,} keys, 50 a request",
            f"{asked:,} requests, {end['outcomes']['stored']:,} stored",
            f"{keys // 50:,} and at most one part-filled a block",
            keys // 50 <= asked <= keys // 50 + 2 * blocks and end["outcomes"]["stored"] == keys,
        )
    ]


async def rate(folder: Path, nginx: Nginx) -> list[Row]:
    """2,000 requests at 200/s by 4 workers, as the upstream's own log counts them."""
    before = len(nginx.requests())
    end = await answer(folder, "run", corpus(folder, "rate", nginx.url, 2000), "--workers", "4", "--rate", "200")
    seen = sorted(at for at, _ in nginx.requests()[before:])
    found = (len(seen) - 1) / (seen[-1] - seen[0])
    worst = max(sum(1 for at in seen if start <= at < start + 1) for start in seen)
    return [
        Row(
            "--rate 200, 4 workers, 2,000 requests",
            f"{found:.2f}/s ({100 * (found / 200 - 1):+.2f} %), worst second {worst}",
            "196 to 200/s",
            196 <= found <= 200 and end["outcomes"]["stored"] == 2000,
        )
    ]


async def memory(folder: Path) -> list[Row]:
    """Peak memory of a coordinator that plans 100,000 and 5,000,000 keys."""
    peaks: dict[int, float] = {}
    seconds: dict[int, float] = {}
    async with Embedded(folder / "plan") as embedded:
        place = embedded.services
        for keys in (100_000, 5_000_000):
            path = folder / f"plan{keys}.txt"
            with path.open("w") as file:
                file.writelines(f"http://127.0.0.1:1/item/{number}\n" for number in range(keys))
            job = folder / f"plan{keys}.toml"
            job.write_text(f'[run]\nname = "plan{keys}"\nhigh_water = 10000000\n[source]\npath = "{path}"\n')
            began = monotonic()
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "crawler", "coordinate", str(job)),
                *("--redis", str(place.redis_url), "--database", str(place.database_url)),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
            peaks[keys] = await _planned(str(place.redis_url), f"plan{keys}", process.pid)
            seconds[keys] = monotonic() - began
            process.send_signal(signal.SIGINT)
            await process.wait()
            path.unlink()
    small, large = peaks[100_000], peaks[5_000_000]
    return [
        Row(
            "coordinator's peak, 100,000 and 5,000,000 keys",
            f"{small:.1f} and {large:.1f} MB ({100 * (large / small - 1):+.1f} %)",
            "within 10 %",
            abs(large / small - 1) <= 0.10,
        ),
        Row("planning 5,000,000 keys", f"{5_000_000 / seconds[5_000_000]:,.0f} keys/s", "", True),
    ]


async def _planned(redis: str, name: str, pid: int) -> float:
    """The peak memory (MB) of the coordinator under `pid` once it has planned everything."""
    client = connect_redis(redis)
    try:
        while True:
            await asyncio.sleep(0.1)
            record = await Runs(client).find(name)
            if record is not None and (await read_counts(client, record)).exhausted:
                break
    finally:
        await client.aclose()
    child = next(child for child in psutil.Process(pid).children() if child.cmdline()[-1] == "coordinator")
    return peak_memory(child.pid)


def peak_memory(pid: int) -> float:
    """The most memory that a process ever had, in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1000


def family(pid: int) -> list[psutil.Process]:
    """A run's workers, coordinator, Redis and Postgres."""
    try:
        return psutil.Process(pid).children()
    except psutil.NoSuchProcess:
        return []


def corpus(folder: Path, name: str, url: str, keys: int) -> str:
    """A file of URLs; its path."""
    path = folder / f"{name}.txt"
    with path.open("w") as file:
        file.writelines(f"{url}/item/{number}\n" for number in range(keys))
    return str(path)


async def rows_of(folder: Path, name: str) -> dict[str, int]:
    """What Postgres has of a run."""
    return dict((await answer(folder, "sql", ONCE.format(name=name)))[0])


def right(once: dict[str, int], keys: int) -> bool:
    """Whether every key is there once with its own body."""
    return set(once.values()) == {keys}


def shown(once: dict[str, int]) -> str:
    """The counts in a row."""
    return ", ".join(f"{name} {count:,}" for name, count in once.items())


async def measure(parts: list[str], keys: int) -> list[Row]:
    """The rows of the parts asked for."""
    folder = Path(tempfile.mkdtemp(prefix="shardcrawl-bench-"))
    rows: list[Row] = []
    try:
        (folder / "nginx").mkdir()
        with Nginx(folder / "nginx", size=4096, log=True) as nginx:
            if "speed" in parts:
                rows += await speed(folder, nginx, keys)
            if "killed" in parts:
                rows += await killed(folder, nginx, keys)
            if "several" in parts:
                rows += await several(folder, nginx)
            if "rate" in parts:
                rows += await rate(folder, nginx)
        if "memory" in parts:
            rows += await memory(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return rows


def main() -> None:
    """Print the table; exit 1 when a promise did not hold."""
    parts = ["speed", "killed", "several", "rate", "memory"]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(parts)}; all without any")
    parser.add_argument("--keys", type=int, default=200_000)
    arguments = parser.parse_args()
    sys.exit(report(asyncio.run(measure(arguments.parts or parts, arguments.keys))))


def report(rows: list[Row]) -> int:
    """Print the rows as a table; 1 when a promise did not hold, else 0."""
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("what", "measured", "promised", "held"):
        table.add_column(column)
    for row in rows:
        table.add_row(row.what, row.figure, row.promised, "yes" if row.held else "NO")
    Console(width=140).print(table)
    return 0 if all(row.held for row in rows) else 1


if __name__ == "__main__":
    main()
