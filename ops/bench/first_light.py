"""`python -m ops.bench.first_light`: speed, kills, rate and memory of whole runs on this machine, as one table.

Unless it says otherwise, a row is one `shardcrawl run` with embedded Redis and Postgres and nginx on the same machine.
Rates may be lower when the machine does other things; the counts must always be right.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from time import monotonic

import psutil

from coordinator.queue.registry import Runs
from coordinator.redis.connection import connect_redis
from coordinator.status import read_counts
from crawler.local.embedded import Embedded
from ops.bench.whole_run import (
    Row,
    as_text,
    children,
    corpus,
    each_key_once,
    page_counts,
    peak_memory,
    report,
    result,
    shardcrawl,
)
from ops.nginx import Nginx

CONCURRENCY = 64
BATCH_ROWS = 1000
KILL_EVERY_SECONDS = 2.0


async def speed(folder: Path, nginx: Nginx, keys: int) -> list[Row]:
    """A run of `keys` keys by 2 workers, and the same run again when it is complete."""
    urls = corpus(folder, "speed", nginx.url, keys)
    end = await result(folder, "run", urls, "--workers", "2")
    rate = keys / end["seconds"]
    counts = await page_counts(folder, "speed")
    requests = len(nginx.requests())
    began = monotonic()
    again = await result(folder, "run", urls, "--workers", "2")
    seconds = monotonic() - began
    return [
        Row(f"{keys:,} keys, 2 workers", f"{rate:,.0f} keys/s, {requests:,} requests", "5,000 keys/s", rate >= 5000),
        Row("every key stored once, its own body", as_text(counts), f"4 x {keys:,}", each_key_once(counts, keys)),
        Row(
            "the complete run again",
            f"{len(nginx.requests()) - requests} requests, {seconds:.1f} s",
            "0 requests, 5 s",
            len(nginx.requests()) == requests and seconds < 5 and again["outcomes"]["stored"] == keys,
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
        await asyncio.wait([waiting], timeout=KILL_EVERY_SECONDS)
        victims = [] if waiting.done() else children(running.pid)
        if victims:
            victim = choice.choice(victims)
            kills.append(victim.name())
            victim.send_signal(signal.SIGKILL)
    seconds = monotonic() - began
    extra = len(nginx.requests()) - before - keys
    allowed = len(kills) * (2 * CONCURRENCY + 2 * BATCH_ROWS)
    counts = await page_counts(folder, "killed")
    return [
        Row(
            f"{keys:,} keys, kill -9 every {KILL_EVERY_SECONDS:.0f} s",
            f"{len(kills)} kills, {seconds:.0f} s, exit code {running.returncode}",
            "ends by itself",
            running.returncode == 0,
        ),
        Row("every key stored once, its own body", as_text(counts), f"4 x {keys:,}", each_key_once(counts, keys)),
        Row("extra requests", f"{extra:,}", f"{allowed:,} at most", extra <= allowed),
    ]


async def several(folder: Path, nginx: Nginx) -> list[Row]:
    """50 keys a request: nearly as few requests as possible."""
    keys = 20_000
    before = len(nginx.requests())
    (folder / "ids.txt").write_text("".join(f"id-{number}\n" for number in range(keys)))
    (folder / "batch.toml").write_text(
        f'[run]\nname = "batch"\nworkers = 2\n[source]\npath = "ids.txt"\n[request]\n'
        f'url = "{nginx.url}/batch?ids={{keys}}"\nkeys_per_request = 50\nallow_private = ["127.0.0.0/8"]\n'
    )
    end = await result(folder, "run", "batch.toml")
    requests = len(nginx.requests()) - before
    blocks = -(-keys // 500)
    return [
        Row(
            f"{keys:,} keys, 50 a request",
            f"{requests:,} requests, {end['outcomes']['stored']:,} stored",
            f"{keys // 50:,} and at most one part-filled a block",
            keys // 50 <= requests <= keys // 50 + 2 * blocks and end["outcomes"]["stored"] == keys,
        )
    ]


async def rate(folder: Path, nginx: Nginx) -> list[Row]:
    """2,000 requests at 200/s by 4 workers, as the upstream's own log counts them."""
    before = len(nginx.requests())
    end = await result(folder, "run", corpus(folder, "rate", nginx.url, 2000), "--workers", "4", "--rate", "200")
    times = sorted(at for at, _ in nginx.requests()[before:])
    found = (len(times) - 1) / (times[-1] - times[0])
    worst = max(sum(1 for at in times if start <= at < start + 1) for start in times)
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
        services = embedded.services
        for keys in (100_000, 5_000_000):
            path = folder / f"plan{keys}.txt"
            with path.open("w") as file:
                file.writelines(f"http://127.0.0.1:1/item/{number}\n" for number in range(keys))
            job = folder / f"plan{keys}.toml"
            job.write_text(f'[run]\nname = "plan{keys}"\nhigh_water = 10000000\n[source]\npath = "{path}"\n')
            began = monotonic()
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "crawler", "coordinate", str(job)),
                *("--redis", str(services.redis_url), "--database", str(services.database_url)),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
            peaks[keys] = await _peak_after_planning(str(services.redis_url), f"plan{keys}", process.pid)
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


async def _peak_after_planning(redis: str, name: str, pid: int) -> float:
    """Wait until the command `pid` has planned all keys, and return the peak memory (MB) of its coordinator."""
    client = connect_redis(redis)
    try:
        while True:
            await asyncio.sleep(0.1)
            found = await Runs(client).find(name)
            if found is not None and (await read_counts(client, name)).exhausted:
                break
    finally:
        await client.aclose()
    child = next(child for child in psutil.Process(pid).children() if child.cmdline()[-1] == "coordinator")
    return peak_memory(child.pid)


async def measure(parts: list[str], keys: int) -> list[Row]:
    """The rows of these parts."""
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


if __name__ == "__main__":
    main()
