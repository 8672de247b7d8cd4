"""`python -m ops.bench.latency`: an upstream that takes 300 ms, and how near shardcrawl comes to the possible rate.

With `in_flight` requests in flight, such an upstream can send at most in_flight / 0.3 s responses a second. Prints a
table, writes latency.json and latency.png, and exits with 1 when one of the rows reaches less than 95 % of that.
"""

from __future__ import annotations

import argparse
import asyncio
import json
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
from ops.bench.arena import Arena, machine, open_arena
from ops.bench.drawing import draw_latency
from ops.nginx import Nginx

HERE = Path(__file__).parent
DELAY_SECONDS = 0.3
BODY_BYTES = 300
PROMISED_SHARE = 0.95
RUN_SECONDS = 12.0
DEADLINE_SECONDS = 180.0
WORKERS_AND_CONCURRENCY = ((1, 100), (1, 400), (2, 500), (4, 250), (2, 1000), (2, 2000), (4, 1000))
# The middle of the run: at its beginning and end not all requests are in flight.
STEADY_RATE = """
WITH ends AS (SELECT percentile_disc(ARRAY[0.2, 0.8]) WITHIN GROUP (ORDER BY fetched_at) AS at FROM pages)
SELECT count(*) FILTER (WHERE fetched_at >= at[1] AND fetched_at < at[2])
       / extract(epoch FROM max(at[2]) - min(at[1]))::float8 AS rate, count(*) AS keys
FROM pages, ends
"""


@dataclass(frozen=True, slots=True)
class FleetFigures:
    """The medians of so many workers with so many requests in flight; CPU seconds are for 1,000 keys."""

    workers: int
    in_flight: int
    possible: float
    rate: float
    cpu: float

    @property
    def share(self) -> float:
        """Which part of the possible rate was reached."""
        return self.rate / self.possible


async def measure(rounds: int, console: Console) -> list[FleetFigures]:
    """All of WORKERS_AND_CONCURRENCY in turn, in rounds."""
    found: dict[tuple[int, int], list[tuple[float, float]]] = {pair: [] for pair in WORKERS_AND_CONCURRENCY}
    folder = Path(tempfile.mkdtemp(prefix="shardcrawl-bench-"))
    try:
        with Nginx(folder / "nginx", size=BODY_BYTES, delay=DELAY_SECONDS) as nginx:
            async with open_arena(folder) as arena:
                for number in range(rounds):
                    for workers, concurrency in WORKERS_AND_CONCURRENCY:
                        rate, cpu = await _crawl(arena, nginx.url, workers, concurrency)
                        found[workers, concurrency].append((rate, cpu))
                        console.print(
                            f"round {number + 1} of {rounds}: {workers} x {concurrency}: {rate:,.0f} keys/s",
                            highlight=False,
                        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return [
        FleetFigures(
            workers,
            workers * concurrency,
            workers * concurrency / DELAY_SECONDS,
            median(rate for rate, _ in crawls),
            median(cpu for _, cpu in crawls),
        )
        for (workers, concurrency), crawls in found.items()
    ]


async def _crawl(arena: Arena, url: str, workers: int, concurrency: int) -> tuple[float, float]:
    """Keys/s in the middle of a run, and CPU seconds for 1,000 of its keys."""
    await arena.clear()
    keys = int(workers * concurrency / DELAY_SECONDS * RUN_SECONDS)
    job, urls = arena.folder / "job.toml", arena.folder / "urls.txt"
    urls.write_text("".join(f"{url}/slow/{number}\n" for number in range(keys)))
    job.write_text(
        f'[run]\nname = "latency"\nconcurrency = {concurrency}\n[source]\npath = "{urls}"\n'
        '[request]\nallow_private = ["127.0.0.0/8"]\nrobots = false\n[limits."*"]\nrate = "none"\n'
        f"[store]\nbatch_rows = {max(1000, 2 * concurrency)}\n"
    )
    command = ["crawler", "run", str(job), "--workers", str(workers)]
    spent = await asyncio.to_thread(watch.run, command, arena.environ, arena.folder, deadline_seconds=DEADLINE_SECONDS)
    watch.run(["crawler", "audit", "latency"], arena.environ, arena.folder, deadline_seconds=DEADLINE_SECONDS)
    connection = await asyncpg.connect(arena.database)
    try:
        row = await connection.fetchrow(STEADY_RATE)
    finally:
        await connection.close()
    assert row is not None
    if row["keys"] != keys:
        raise watch.ContenderFailed(f"shardcrawl stored {row['keys']} of {keys} keys")
    return row["rate"], 1000 * spent.cpu / keys


def table(lines: Sequence[FleetFigures]) -> Table:
    """The figures."""
    shown = Table(box=box.SIMPLE_HEAD, title=f"an upstream that responds after {1000 * DELAY_SECONDS:.0f} ms")
    for column in ("workers", "in flight", "possible", "keys/s", "share", "CPU-s/1,000", f">= {PROMISED_SHARE:.0%}"):
        shown.add_column(column, justify="right")
    for line in lines:
        shown.add_row(
            str(line.workers),
            f"{line.in_flight:,}",
            f"{line.possible:,.0f}",
            f"{line.rate:,.0f}",
            f"{line.share:.1%}",
            f"{line.cpu:.3f}",
            "yes" if line.share >= PROMISED_SHARE else "NO",
        )
    return shown


def main() -> None:
    """Measure, print, save and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--output", type=watch.output_folder, default=HERE, help="folder of latency.json and latency.png"
    )
    arguments = parser.parse_args()
    watch.stop_on_sigterm()
    where = machine()
    try:
        lines = asyncio.run(measure(arguments.rounds, Console(stderr=True)))
    except ShardcrawlError as error:
        sys.exit(f"error: {error}")
    results = {
        "machine": where,
        "rounds": arguments.rounds,
        "delay": DELAY_SECONDS,
        "lines": [asdict(line) for line in lines],
    }
    (arguments.output / "latency.json").write_text(json.dumps(results, indent=1) + "\n")
    Console(width=120).print(table(lines))
    draw_latency(results, arguments.output / "latency.png")
    sys.exit(0 if all(line.share >= PROMISED_SHARE for line in lines) else 1)


if __name__ == "__main__":
    main()
