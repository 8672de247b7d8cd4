"""`python -m ops.bench.latency`: an upstream that takes 300 ms, and how near shardcrawl comes to what that allows.

With so many requests in flight at such an upstream there can be in_flight / 0.3 s answers a second and no more.
Prints a table, writes latency.json and latency.png, and exits with 1 when less than 95 % of that is reached anywhere.
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
from ops.bench.arena import Arena, arena, machine
from ops.bench.drawing import draw_latency
from ops.nginx import Nginx

HERE = Path(__file__).parent
DELAY = 0.3
SIZE = 300
PROMISED = 0.95
SECONDS = 12.0
MOST_SECONDS = 180.0
# (workers, requests in flight of each)
FLEETS = ((1, 100), (1, 400), (2, 500), (4, 250), (2, 1000), (2, 2000), (4, 1000))
# The middle of the run: at its ends not everything is in flight.
STEADY = """
WITH ends AS (SELECT percentile_disc(ARRAY[0.2, 0.8]) WITHIN GROUP (ORDER BY fetched_at) AS at FROM pages)
SELECT count(*) FILTER (WHERE fetched_at >= at[1] AND fetched_at < at[2])
       / extract(epoch FROM max(at[2]) - min(at[1]))::float8 AS rate, count(*) AS keys
FROM pages, ends
"""


@dataclass(frozen=True, slots=True)
class Line:
    """A fleet's medians; CPU seconds are for 1,000 keys."""

    workers: int
    in_flight: int
    possible: float
    rate: float
    cpu: float

    @property
    def share(self) -> float:
        """How much of what is possible was reached."""
        return self.rate / self.possible


async def measure(rounds: int, console: Console) -> list[Line]:
    """Every fleet in turn, round after round."""
    found: dict[tuple[int, int], list[tuple[float, float]]] = {fleet: [] for fleet in FLEETS}
    folder = Path(tempfile.mkdtemp(prefix="shardcrawl-bench-"))
    try:
        with Nginx(folder / "nginx", size=SIZE, delay=DELAY) as nginx:
            async with arena(folder) as ground:
                for number in range(rounds):
                    for workers, concurrency in FLEETS:
                        rate, cpu = await _crawl(ground, nginx.url, workers, concurrency)
                        found[workers, concurrency].append((rate, cpu))
                        console.print(
                            f"round {number + 1} of {rounds}: {workers} x {concurrency}: {rate:,.0f} keys/s",
                            highlight=False,
                        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return [
        Line(
            workers,
            workers * concurrency,
            workers * concurrency / DELAY,
            median(rate for rate, _ in made),
            median(cpu for _, cpu in made),
        )
        for (workers, concurrency), made in found.items()
    ]


async def _crawl(ground: Arena, url: str, workers: int, concurrency: int) -> tuple[float, float]:
    """Keys/s in the middle of a run, and CPU seconds for 1,000 of its keys."""
    await ground.clear()
    keys = int(workers * concurrency / DELAY * SECONDS)
    job, urls = ground.folder / "job.toml", ground.folder / "urls.txt"
    urls.write_text("".join(f"{url}/slow/{number}\n" for number in range(keys)))
    job.write_text(
        f'[run]\nname = "latency"\nconcurrency = {concurrency}\n[source]\npath = "{urls}"\n'
        '[request]\nallow_private = ["127.0.0.0/8"]\nrobots = false\n[limits."*"]\nrate = "none"\n'
        f"[store]\nbatch_rows = {max(1000, 2 * concurrency)}\n"
    )
    command = ["crawler", "run", str(job), "--workers", str(workers)]
    spent = await asyncio.to_thread(watch.run, command, ground.environ, ground.folder, most_seconds=MOST_SECONDS)
    watch.run(["crawler", "audit", "latency"], ground.environ, ground.folder, most_seconds=MOST_SECONDS)
    connection = await asyncpg.connect(ground.database)
    try:
        row = await connection.fetchrow(STEADY)
    finally:
        await connection.close()
    assert row is not None
    if row["keys"] != keys:
        raise watch.ContenderFailed(f"shardcrawl stored {row['keys']} of {keys} keys")
    return row["rate"], 1000 * spent.cpu / keys


def table(lines: Sequence[Line]) -> Table:
    """The figures."""
    shown = Table(box=box.SIMPLE_HEAD, title=f"an upstream that answers after {1000 * DELAY:.0f} ms")
    for column in ("workers", "in flight", "possible", "keys/s", "share", "CPU-s/1,000", f">= {PROMISED:.0%}"):
        shown.add_column(column, justify="right")
    for line in lines:
        shown.add_row(
            str(line.workers),
            f"{line.in_flight:,}",
            f"{line.possible:,.0f}",
            f"{line.rate:,.0f}",
            f"{line.share:.1%}",
            f"{line.cpu:.3f}",
            "yes" if line.share >= PROMISED else "NO",
        )
    return shown


def main() -> None:
    """Measure, print, save and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=HERE, help="folder of latency.json and latency.png")
    arguments = parser.parse_args()
    watch.stop_on_sigterm()
    where = machine()
    try:
        lines = asyncio.run(measure(arguments.rounds, Console(stderr=True)))
    except ShardcrawlError as error:
        sys.exit(f"error: {error}")
    results = {"machine": where, "rounds": arguments.rounds, "delay": DELAY, "lines": [asdict(line) for line in lines]}
    (arguments.output / "latency.json").write_text(json.dumps(results, indent=1) + "\n")
    Console(width=120).print(table(lines))
    draw_latency(results, arguments.output / "latency.png")
    sys.exit(0 if all(line.share >= PROMISED for line in lines) else 1)


if __name__ == "__main__":
    main()
