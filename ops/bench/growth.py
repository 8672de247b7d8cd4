"""`python -m ops.bench.growth`: does a run stay as fast and as small as it began, whatever the corpus's size?

Whole runs of 2 workers with bodies of 0.3 KB, sampled all the time; then each again, planned again over a full done
set, and one that is interrupted half-way. Every run must pass `shardcrawl audit`. Prints a table, writes growth.json
and growth.png, and exits with 1 when a promise does not hold.
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
from rich.console import Console

from coordinator.errors import ShardcrawlError
from coordinator.queue.registry import Runs
from coordinator.redis.connection import connect_redis
from coordinator.status import read_counts
from crawler.store.queries import query
from ops.bench import watch
from ops.bench.arena import Arena, arena, machine, upstream
from ops.bench.drawing import draw_growth
from ops.bench.first_light import Row, report
from ops.bench.planning import planned
from ops.bench.sampling import Sample, back_at, rates, sampled, slope, spread, tenth

HERE = Path(__file__).parent
SIZE = 300
NAME = "growth"
EVERY = 2.0
RESUMED_EVERY = 0.1
MOST_SECONDS = 600.0

STEADY = 0.05
FLAT = 0.10
DONE_BYTES = 12.0
# What waits in the queue: 300,000 keys of 36 characters, 39 bytes each as measured by `footprint`, and what Redis keeps
# for its clients and its log's rewrite.
QUEUE_BYTES = 300_000 * 39 + 16_000_000
PLANNED = 300_000
BACK_WITHIN = 3.0
BACK_AT = 0.9


@dataclass(frozen=True, slots=True)
class Growth:
    """One run; `empty` is what Redis took before it (bytes), `left` after it."""

    keys: int
    samples: list[Sample]
    empty: int
    left: int


async def measure(sizes: Sequence[int], console: Console) -> tuple[list[Row], list[Growth]]:
    """The rows of the table, and the runs behind them."""
    folder = Path(tempfile.mkdtemp(prefix="shardcrawl-bench-"))
    rows: list[Row] = []
    grown: list[Growth] = []
    try:
        with upstream(folder, SIZE) as at:
            async with arena(folder) as ground:
                for keys in sizes:
                    job = _job(folder, at.url, keys)
                    console.print(f"{keys:,} keys", highlight=False)
                    grown.append(await _run(ground, job, keys))
                    rows += _promises(grown[-1])
                    rows.append(await _rerun(ground, job, keys))
                    rows += await _again(ground, job)
                rows.append(await _resumed(ground, _job(folder, at.url, sizes[0]), sizes[0]))
                rows.append(await _planned(ground, _job(folder, at.url, sizes[-1], high_water=10**9), sizes[-1]))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return rows, grown


async def _run(ground: Arena, job: Path, keys: int) -> Growth:
    await ground.clear()
    empty = await _memory(ground)
    samples = await sampled(ground, ["run", str(job)], NAME, every=EVERY)
    await _audit(ground)
    return Growth(keys, samples, empty, await _memory(ground))


def _promises(run: Growth) -> list[Row]:
    """Whether the run's speed and its memory stayed what they were."""
    speeds = rates(run.samples, run.keys)
    if not speeds:
        raise watch.ContenderFailed(f"a run of {run.keys:,} keys is over before it was looked at: give more --keys")
    first, last = tenth(speeds, 2), tenth(speeds, 10)
    key_bytes = (run.left - run.empty) / run.keys
    beside = max(sample.redis - run.empty - DONE_BYTES * sample.done for sample in run.samples)
    rows = [
        Row(
            f"{run.keys:,} keys: speed in the second and the last tenth",
            f"{first:,.0f} and {last:,.0f} keys/s ({last / first - 1:+.1%}; trend {slope(speeds):+.1%})",
            f"at most {STEADY:.0%} slower",  # faster it gets: the planner leaves its core to the workers
            last / first - 1 >= -STEADY,
        ),
        Row("Redis, a key that is done", f"{key_bytes:.1f} bytes", f"{DONE_BYTES:.0f}", key_bytes <= DONE_BYTES),
        Row(
            "Redis beside that, at most",
            f"{beside / 1e6:.1f} MB",
            f"{QUEUE_BYTES / 1e6:.0f} MB",
            beside <= QUEUE_BYTES,
        ),
    ]
    for who in sorted({who for sample in run.samples for who in sample.resident}):
        begin, least, most = spread(run.samples, who)
        rows.append(
            Row(
                f"memory of {who} after the first tenth",
                f"{begin:.0f} MB, later {least:.0f} to {most:.0f}",
                f"within {FLAT:.0%}",
                begin * (1 - FLAT) <= least and most <= begin * (1 + FLAT),
            )
        )
    return rows


async def _rerun(ground: Arena, job: Path, keys: int) -> Row:
    """The complete run once more, from the command's start to its end."""
    spent = await asyncio.to_thread(_shardcrawl, ground, "run", str(job))
    rate = keys / spent.seconds
    said = f"{rate:,.0f} keys/s ({spent.seconds:.1f} s for the whole command)"
    return Row("the complete run again", said, f"{PLANNED:,} keys/s", rate >= PLANNED)


async def _again(ground: Arena, job: Path) -> list[Row]:
    """Postgres has every key, Redis none: the done set is rebuilt, the source planned again, and nothing fetched."""
    connection = await asyncpg.connect(ground.database)
    try:  # as `shardcrawl retry` leaves a run that was complete
        await connection.execute(query("reopen-run"), await connection.fetchval("SELECT run_id FROM runs"))
    finally:
        await connection.close()
    client = connect_redis(ground.redis)
    try:
        await client.flushall()
        over = await planned(ground, job, NAME, most_seconds=MOST_SECONDS)
        await asyncio.to_thread(_shardcrawl, ground, "run", str(job))
        record = await Runs(client).find(NAME)
        assert record is not None
        end = await read_counts(client, record)
    finally:
        await client.aclose()
    await _audit(ground)
    return [
        Row("its done set from Postgres", f"{over.remembered:,.0f} keys/s", "", True),
        Row(
            "planned again: finished keys skipped",
            f"{over.planned:,.0f} keys/s, {end.requests} requests",
            f"{PLANNED:,} keys/s, 0 requests",
            over.planned >= PLANNED and end.requests == 0 and end.published == 0,
        ),
    ]


async def _resumed(ground: Arena, job: Path, keys: int) -> Row:
    """A run that is interrupted when half of it is done, and started again."""
    await ground.clear()
    first = await sampled(
        ground, ["run", str(job)], NAME, every=RESUMED_EVERY, until=lambda sample: sample.done * 2 >= keys
    )
    whole = [sample for number, sample in enumerate(first) if number % round(1 / RESUMED_EVERY) == 0]
    before = median(rates(whole, keys))
    back = back_at(await sampled(ground, ["run", str(job)], NAME, every=RESUMED_EVERY), BACK_AT * before)
    await _audit(ground)
    said = "never" if back is None else f"after {back:.1f} s"
    return Row(
        f"interrupted half-way at {before:,.0f} keys/s, started again",
        f"{BACK_AT:.0%} of that {said}",
        f"{BACK_WITHIN:.0f} s",
        back is not None and back <= BACK_WITHIN,
    )


async def _planned(ground: Arena, job: Path, keys: int) -> Row:
    """The planner by itself: no worker takes CPU, and the queue takes the whole corpus."""
    await ground.clear()
    rate = (await planned(ground, job, NAME, most_seconds=MOST_SECONDS)).planned
    return Row(f"planning {keys:,} keys", f"{rate:,.0f} keys/s", f"{PLANNED:,} keys/s", rate >= PLANNED)


def _job(folder: Path, url: str, keys: int, high_water: int = 300_000) -> Path:
    urls, job = folder / f"urls{keys}.txt", folder / f"growth{keys}.toml"
    if not urls.exists():
        with urls.open("w") as file:
            file.writelines(f"{url}/item/{number}\n" for number in range(keys))
    job.write_text(
        f'[run]\nname = "{NAME}"\nworkers = 2\nhigh_water = {high_water}\n[source]\npath = "{urls}"\n'
        '[request]\nallow_private = ["127.0.0.0/8"]\nrobots = false\n[limits."*"]\nrate = "none"\n'
    )
    return job


def _shardcrawl(ground: Arena, *arguments: str) -> watch.Spent:
    return watch.run(["crawler", *arguments], ground.environ, ground.folder, most_seconds=MOST_SECONDS)


async def _audit(ground: Arena) -> None:
    """Raises ContenderFailed when source, Postgres and Redis do not agree."""
    await asyncio.to_thread(_shardcrawl, ground, "audit", NAME)


async def _memory(ground: Arena) -> int:
    client = connect_redis(ground.redis)
    try:
        return int((await client.info("memory"))["used_memory"])
    finally:
        await client.aclose()


def main() -> None:
    """Measure, print, save and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, nargs="+", default=[1_000_000, 5_000_000])
    parser.add_argument("--output", type=Path, default=HERE, help="folder of growth.json and growth.png")
    arguments = parser.parse_args()
    watch.stop_on_sigterm()
    where = machine()
    try:
        rows, grown = asyncio.run(measure(arguments.keys, Console(stderr=True)))
    except ShardcrawlError as error:
        sys.exit(f"error: {error}")
    results = {"machine": where, "rows": [asdict(row) for row in rows], "runs": [asdict(run) for run in grown]}
    (arguments.output / "growth.json").write_text(json.dumps(results, separators=(",", ":")) + "\n")
    draw_growth(results, arguments.output / "growth.png")
    sys.exit(report(rows))


if __name__ == "__main__":
    main()
