"""`python -m ops.bench.parsers`: a parse function that takes 5 ms of CPU, on one worker and on two.

Each worker parses in a child process, so two workers make nearly twice as many keys a second on two cores, and the
event loops stay free. Prints a table, writes parsers.json, and exits with 1 when a promise does not hold: 1.9 times the
keys a second, and no event loop that is blocked for 50 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import asyncpg
from rich import box
from rich.console import Console
from rich.table import Table

from coordinator.errors import ShardcrawlError
from ops.bench import watch
from ops.bench.arena import Arena, machine, open_arena, serve_upstream
from ops.bench.latency import STEADY_RATE

HERE = Path(__file__).parent
PARSE_CPU_SECONDS = 0.005
BODY_BYTES = 1000
RUN_SECONDS = 4.0
DEADLINE_SECONDS = 60.0
POLL_SECONDS = 2.0
WORKERS = (1, 2)
PROMISED_RATIO = 1.9
PROMISED_LAG_SECONDS = 0.05
# By the CPU time of the thread: with a wall clock, one core could do the work of two.
PARSER = f"""
from time import thread_time

def items(response):
    end = thread_time() + {PARSE_CPU_SECONDS}
    while thread_time() < end:
        pass
    return {{"things": [{{"name": response.json()["id"]}}]}}
"""
LAG = re.compile(r"event loop lag: 99 % within (\d+) ms, largest (\d+) ms")


@dataclass(frozen=True, slots=True)
class Crawl:
    """One run. Lags are in seconds, of the worst of its workers; CPU seconds are for 1,000 keys."""

    workers: int
    rate: float
    cpu: float
    usual_lag: float
    largest_lag: float


async def measure(rounds: int, console: Console) -> list[Crawl]:
    """Runs of one worker and of two in turn; each round begins with the other one."""
    crawls: list[Crawl] = []
    folder = Path(tempfile.mkdtemp(prefix="shardcrawl-bench-"))
    try:
        with serve_upstream(folder, BODY_BYTES) as upstream:
            async with open_arena(folder) as arena:
                for number in range(rounds):
                    for workers in WORKERS if number % 2 == 0 else WORKERS[::-1]:
                        crawls.append(await _crawl(arena, upstream.url, workers))
                        console.print(
                            f"round {number + 1} of {rounds}: {workers} workers: {crawls[-1].rate:,.1f} keys/s",
                            highlight=False,
                        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return crawls


async def _crawl(arena: Arena, url: str, workers: int) -> Crawl:
    await arena.clear()
    keys = int(workers / PARSE_CPU_SECONDS * RUN_SECONDS)
    job = arena.folder / "job.toml"
    (arena.folder / "keys.txt").write_text("".join(f"{number}\n" for number in range(keys)))
    (arena.folder / "slow_parser.py").write_text(PARSER)
    # Few shards for few keys: blocks are as large as in a large run.
    job.write_text(
        f'[run]\nname = "parsers"\nshards = 16\n[source]\npath = "keys.txt"\n'
        f'[request]\nurl = "{url}/item/{{key}}"\nallow_private = ["127.0.0.0/8"]\n[limits."*"]\nrate = "none"\n'
        '[parse]\npython = "slow_parser:items"\n[[tables]]\nname = "things"\ncolumns = { name = "text" }\n'
    )
    command = ["crawler", "run", str(job), "--workers", str(workers), "--log-level", "debug"]
    spent = await asyncio.to_thread(
        watch.run, command, arena.environ, arena.folder, deadline_seconds=DEADLINE_SECONDS, poll_seconds=POLL_SECONDS
    )
    log = " ".join((arena.folder / "err.txt").read_text().split())
    lags = [(int(usual) / 1000, int(largest) / 1000) for usual, largest in LAG.findall(log)]
    connection = await asyncpg.connect(arena.database)
    try:
        row = await connection.fetchrow(STEADY_RATE)
        records = await connection.fetchval("SELECT count(DISTINCT name) FROM things")
    finally:
        await connection.close()
    if row is None or row["keys"] != keys or records != keys:
        raise watch.ContenderFailed(f"shardcrawl stored {records} records of {keys} keys")
    if len(lags) != workers:
        raise watch.ContenderFailed(f"{len(lags)} of {workers} workers logged the lag of their event loop")
    return Crawl(
        workers, row["rate"], 1000 * spent.cpu / keys, max(lag for lag, _ in lags), max(lag for _, lag in lags)
    )


def rate(crawls: Sequence[Crawl], workers: int) -> float:
    """The median of the keys a second with so many workers."""
    return median(crawl.rate for crawl in crawls if crawl.workers == workers)


def promises(crawls: Sequence[Crawl]) -> dict[str, bool]:
    """What is promised, and whether it held."""
    return {
        f"2 workers make >= {PROMISED_RATIO} times the keys of 1": rate(crawls, 2) / rate(crawls, 1) >= PROMISED_RATIO,
        f"no loop blocked for {1000 * PROMISED_LAG_SECONDS:.0f} ms": max(crawl.largest_lag for crawl in crawls)
        < PROMISED_LAG_SECONDS,
    }


def table(crawls: Sequence[Crawl]) -> Table:
    """The figures: medians of the rounds, and the worst lag of all."""
    shown = Table(box=box.SIMPLE_HEAD, title=f"a parse function that takes {1000 * PARSE_CPU_SECONDS:.0f} ms of CPU")
    for column in ("workers", "keys/s", "ratio", "CPU-s/1,000", "lag, 99 % (ms)", "largest lag (ms)"):
        shown.add_column(column, justify="right")
    for workers in WORKERS:
        same = [crawl for crawl in crawls if crawl.workers == workers]
        shown.add_row(
            str(workers),
            f"{rate(crawls, workers):,.1f}",
            f"{rate(crawls, workers) / rate(crawls, 1):.2f}",
            f"{median(crawl.cpu for crawl in same):.2f}",
            f"{1000 * max(crawl.usual_lag for crawl in same):.0f}",
            f"{1000 * max(crawl.largest_lag for crawl in same):.0f}",
        )
    return shown


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=watch.output_folder, default=HERE, help="folder of parsers.json")
    arguments = parser.parse_args()
    watch.stop_on_sigterm()
    where = machine()
    try:
        crawls = asyncio.run(measure(arguments.rounds, Console(stderr=True)))
    except ShardcrawlError as error:
        sys.exit(f"error: {error}")
    held = promises(crawls)
    results = {
        "machine": where,
        "cpu": PARSE_CPU_SECONDS,
        "crawls": [asdict(crawl) for crawl in crawls],
        "promises": held,
    }
    (arguments.output / "parsers.json").write_text(json.dumps(results, indent=1) + "\n")
    console = Console(width=120)
    console.print(table(crawls))
    for promise, holds in held.items():
        console.print(f"{'yes' if holds else 'NO ':<4} {promise}", highlight=False)
    sys.exit(0 if all(held.values()) else 1)


if __name__ == "__main__":
    main()
