"""`python -m ops.bench.growth`: do speed and memory of a run stay the same from its first key to its last?

Whole runs of 2 workers with bodies of 0.3 KB, which are sampled; then each of them again when it is complete, again
with a full done set to plan over, and one that is interrupted half-way. Every run must pass `shardcrawl audit`. Prints
a table, writes growth.json and growth.png, and exits with 1 when a promise does not hold.
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
from ops.bench.arena import Arena, machine, open_arena, serve_upstream
from ops.bench.drawing import draw_growth
from ops.bench.planning import planned
from ops.bench.sampling import Sample, back_at, rates, sampled, slope, spread, tenth
from ops.bench.whole_run import Row, report

HERE = Path(__file__).parent
BODY_BYTES = 300
NAME = "growth"
SAMPLE_SECONDS = 2.0
RESUMED_SAMPLE_SECONDS = 0.1
DEADLINE_SECONDS = 600.0

MAX_SLOWDOWN = 0.05
MAX_MEMORY_CHANGE = 0.10
DONE_KEY_BYTES = 12.0
# A full queue: 300,000 keys of 36 characters, 39 bytes each as `footprint` measured; and what Redis needs for its
# clients and to rewrite its log.
QUEUE_BYTES = 300_000 * 39 + 16_000_000
PLANNED_KEYS_PER_SECOND = 300_000
RESUMED_WITHIN_SECONDS = 3.0
RESUMED_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Growth:
    """One run; `empty` is the memory of Redis before it, `left` that after it, in bytes."""

    keys: int
    samples: list[Sample]
    empty: int
    left: int


async def measure(sizes: Sequence[int], console: Console) -> tuple[list[Row], list[Growth]]:
    """The rows of the table, and the runs that they are about."""
    folder = Path(tempfile.mkdtemp(prefix="shardcrawl-bench-"))
    rows: list[Row] = []
    grown: list[Growth] = []
    try:
        with serve_upstream(folder, BODY_BYTES) as upstream:
            async with open_arena(folder) as arena:
                for keys in sizes:
                    job = _job(folder, upstream.url, keys)
                    console.print(f"{keys:,} keys", highlight=False)
                    grown.append(await _run(arena, job, keys))
                    rows += _promises(grown[-1])
                    rows.append(await _rerun(arena, job, keys))
                    rows += await _again(arena, job)
                rows.append(await _resumed(arena, _job(folder, upstream.url, sizes[0]), sizes[0]))
                rows.append(await _planned(arena, _job(folder, upstream.url, sizes[-1], high_water=10**9), sizes[-1]))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return rows, grown


async def _run(arena: Arena, job: Path, keys: int) -> Growth:
    await arena.clear()
    empty = await _memory(arena)
    samples = await sampled(arena, ["run", str(job)], NAME, every=SAMPLE_SECONDS)
    await _audit(arena)
    return Growth(keys, samples, empty, await _memory(arena))


def _promises(run: Growth) -> list[Row]:
    """Whether speed and memory of the run stayed the same."""
    speeds = rates(run.samples, run.keys)
    if not speeds:
        raise watch.ContenderFailed(f"a run of {run.keys:,} keys is over before the first sample: give more --keys")
    first, last = tenth(speeds, 2), tenth(speeds, 10)
    key_bytes = (run.left - run.empty) / run.keys
    beside = max(sample.redis - run.empty - DONE_KEY_BYTES * sample.done for sample in run.samples)
    rows = [
        Row(
            f"{run.keys:,} keys: speed in the second and the last tenth",
            f"{first:,.0f} and {last:,.0f} keys/s ({last / first - 1:+.1%}; trend {slope(speeds):+.1%})",
            f"at most {MAX_SLOWDOWN:.0%} slower",  # it becomes faster when the planner has ended and its core is free
            last / first - 1 >= -MAX_SLOWDOWN,
        ),
        Row(
            "Redis, a key that is done", f"{key_bytes:.1f} bytes", f"{DONE_KEY_BYTES:.0f}", key_bytes <= DONE_KEY_BYTES
        ),
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
                f"{begin:.0f} MB, then {least:.0f} to {most:.0f}",
                f"within {MAX_MEMORY_CHANGE:.0%}",
                begin * (1 - MAX_MEMORY_CHANGE) <= least and most <= begin * (1 + MAX_MEMORY_CHANGE),
            )
        )
    return rows


async def _rerun(arena: Arena, job: Path, keys: int) -> Row:
    """Start the complete run once more; the time is that of the whole command."""
    spent = await asyncio.to_thread(_shardcrawl, arena, "run", str(job))
    rate = keys / spent.seconds
    figure = f"{rate:,.0f} keys/s ({spent.seconds:.1f} s for the whole command)"
    return Row("the complete run again", figure, f"{PLANNED_KEYS_PER_SECOND:,} keys/s", rate >= PLANNED_KEYS_PER_SECOND)


async def _again(arena: Arena, job: Path) -> list[Row]:
    """Postgres has all keys, Redis is empty: the done set is rebuilt, the source planned again, nothing is fetched."""
    connection = await asyncpg.connect(arena.database)
    try:  # as `shardcrawl retry` leaves a run that was complete
        await connection.execute(query("reopen-run"), await connection.fetchval("SELECT run_id FROM runs"))
    finally:
        await connection.close()
    client = connect_redis(arena.redis)
    try:
        await client.flushall()
        over = await planned(arena, job, NAME, deadline_seconds=DEADLINE_SECONDS)
        await asyncio.to_thread(_shardcrawl, arena, "run", str(job))
        found = await Runs(client).find(NAME)
        assert found is not None
        end = await read_counts(client, NAME)
    finally:
        await client.aclose()
    await _audit(arena)
    return [
        Row("its done set from Postgres", f"{over.rebuilt:,.0f} keys/s", "", True),
        Row(
            "planned again: finished keys skipped",
            f"{over.planned:,.0f} keys/s, {end.requests} requests",
            f"{PLANNED_KEYS_PER_SECOND:,} keys/s, 0 requests",
            over.planned >= PLANNED_KEYS_PER_SECOND and end.requests == 0 and end.published == 0,
        ),
    ]


async def _resumed(arena: Arena, job: Path, keys: int) -> Row:
    """Interrupt a run when half of it is done, and start it again."""
    await arena.clear()
    first = await sampled(
        arena, ["run", str(job)], NAME, every=RESUMED_SAMPLE_SECONDS, until=lambda sample: sample.done * 2 >= keys
    )
    whole = [sample for number, sample in enumerate(first) if number % round(1 / RESUMED_SAMPLE_SECONDS) == 0]
    before = median(rates(whole, keys))
    back = back_at(await sampled(arena, ["run", str(job)], NAME, every=RESUMED_SAMPLE_SECONDS), RESUMED_SHARE * before)
    await _audit(arena)
    figure = "never" if back is None else f"after {back:.1f} s"
    return Row(
        f"interrupted half-way at {before:,.0f} keys/s, started again",
        f"{RESUMED_SHARE:.0%} of that {figure}",
        f"{RESUMED_WITHIN_SECONDS:.0f} s",
        back is not None and back <= RESUMED_WITHIN_SECONDS,
    )


async def _planned(arena: Arena, job: Path, keys: int) -> Row:
    """The planner alone: no worker uses CPU, and the queue has room for the whole corpus."""
    await arena.clear()
    rate = (await planned(arena, job, NAME, deadline_seconds=DEADLINE_SECONDS)).planned
    return Row(
        f"planning {keys:,} keys",
        f"{rate:,.0f} keys/s",
        f"{PLANNED_KEYS_PER_SECOND:,} keys/s",
        rate >= PLANNED_KEYS_PER_SECOND,
    )


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


def _shardcrawl(arena: Arena, *arguments: str) -> watch.Spent:
    return watch.run(["crawler", *arguments], arena.environ, arena.folder, deadline_seconds=DEADLINE_SECONDS)


async def _audit(arena: Arena) -> None:
    """Run `shardcrawl audit`. Raises ContenderFailed when source, Postgres and Redis do not agree."""
    await asyncio.to_thread(_shardcrawl, arena, "audit", NAME)


async def _memory(arena: Arena) -> int:
    client = connect_redis(arena.redis)
    try:
        return int((await client.info("memory"))["used_memory"])
    finally:
        await client.aclose()


def main() -> None:
    """Measure, print, save and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, nargs="+", default=[1_000_000, 5_000_000])
    parser.add_argument("--output", type=watch.output_folder, default=HERE, help="folder of growth.json and growth.png")
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
