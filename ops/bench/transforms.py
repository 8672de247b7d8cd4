"""`python -m ops.bench.transforms`: a transform that takes 5 ms of CPU a record, in one process and in two.

The step alone is the same function in as many processes, with nothing around it; it is timed beside each run. Prints a
table, writes transforms.json, and exits with 1 when a promise does not hold: 1.85 times the records a second with two
processes, and 0.9 of what the step alone makes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import asyncpg
from rich import box
from rich.console import Console
from rich.table import Table

from coordinator.errors import ShardcrawlError
from ops.bench import watch
from ops.bench.arena import Arena, machine, open_arena, serve_upstream

HERE = Path(__file__).parent
CPU_SECONDS = 0.005
BODY_BYTES = 1000
RUN_SECONDS = 8.0
DEADLINE_SECONDS = 120.0
POLL_SECONDS = 2.0
PROCESSES = (1, 2)
PROMISED_RATIO, PROMISED_SHARE = 1.85, 0.9
# By the CPU time of the thread: with a wall clock, one core could do the work of two.
FEATURES = f"""
import sys
from time import thread_time, time

def batch(records):
    return [made(record) for record in records]

def made(record):
    end = thread_time() + {CPU_SECONDS}
    while thread_time() < end:
        pass
    return {{"_key": record["_key"], "name": record["name"], "at": time()}}

if __name__ == "__main__":
    batch([{{"_key": "", "name": ""}}] * int(sys.argv[1]))
"""
PARSER = 'def items(response):\n    return {"things": [{"name": response.json()["id"]}]}\n'
# From the first record to the last one: what comes before is the start of the processes.
RATE = 'SELECT count(DISTINCT name) AS names, (count(*) - 1) / (max("at") - min("at")) AS rate FROM things'


@dataclass(frozen=True, slots=True)
class TransformRun:
    """Records a second of one run, and of the step alone."""

    processes: int
    rate: float
    alone: float


async def measure(rounds: int, console: Console) -> list[TransformRun]:
    """Runs with one process and with two in turn; each round begins with the other one."""
    runs: list[TransformRun] = []
    folder = Path(tempfile.mkdtemp(prefix="shardcrawl-bench-"))
    try:
        with serve_upstream(folder, BODY_BYTES) as upstream:
            async with open_arena(folder) as arena:
                for number in range(rounds):
                    for processes in PROCESSES if number % 2 == 0 else PROCESSES[::-1]:
                        rate = await _run(arena, upstream.url, processes)
                        runs.append(TransformRun(processes, rate, await _alone(arena.folder, processes)))
                        console.print(f"round {number + 1} of {rounds}: {runs[-1]}", highlight=False)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return runs


async def _run(arena: Arena, url: str, processes: int) -> float:
    await arena.clear()
    keys = int(processes / CPU_SECONDS * RUN_SECONDS)
    job = arena.folder / "job.toml"
    (arena.folder / "keys.txt").write_text("".join(f"{number}\n" for number in range(keys)))
    (arena.folder / "features.py").write_text(FEATURES)
    (arena.folder / "parse.py").write_text(PARSER)
    job.write_text(
        f'[run]\nname = "transforms"\nshards = 16\n[source]\npath = "keys.txt"\n'
        f'[request]\nurl = "{url}/item/{{key}}"\nallow_private = ["127.0.0.0/8"]\n[limits."*"]\nrate = "none"\n'
        f'[parse]\npython = "parse:items"\n[transform]\npython = "features:batch"\nprocesses = {processes}\n'
        '[[tables]]\nname = "things"\ncolumns = { name = "text", at = "double precision" }\n'
    )
    command = ["crawler", "run", str(job), "--workers", "1"]
    await asyncio.to_thread(
        watch.run, command, arena.environ, arena.folder, deadline_seconds=DEADLINE_SECONDS, poll_seconds=POLL_SECONDS
    )
    connection = await asyncpg.connect(arena.database)
    try:
        row = await connection.fetchrow(RATE)
    finally:
        await connection.close()
    if row is None or row["names"] != keys:
        raise watch.ContenderFailed(f"shardcrawl stored {row and row['names']} records of {keys} keys")
    return float(row["rate"])


async def _alone(folder: Path, processes: int) -> float:
    records = int(RUN_SECONDS / 2 / CPU_SECONDS)
    command = [sys.executable, str(folder / "features.py"), str(records)]
    began = perf_counter()
    started = [await asyncio.create_subprocess_exec(*command, stdin=subprocess.DEVNULL) for _ in range(processes)]
    await asyncio.gather(*(one.wait() for one in started))
    seconds = perf_counter() - began
    return processes * records / seconds


def middle(runs: Sequence[TransformRun], processes: int, name: str = "rate") -> float:
    """The median of the records a second with so many processes."""
    return float(median(getattr(run, name) for run in runs if run.processes == processes))


def promises(runs: Sequence[TransformRun]) -> dict[str, bool]:
    """What is promised, and whether it held."""
    first, *_, last = PROCESSES
    shares = {count: middle(runs, count) / middle(runs, count, "alone") for count in PROCESSES}
    return {
        f"2 processes make >= {PROMISED_RATIO} times the records of 1": middle(runs, last) / middle(runs, first)
        >= PROMISED_RATIO,
        f"a run makes >= {PROMISED_SHARE} of the step alone": min(shares.values()) >= PROMISED_SHARE,
    }


def table(runs: Sequence[TransformRun]) -> Table:
    """The medians of the rounds."""
    shown = Table(box=box.SIMPLE_HEAD, title=f"a transform that takes {1000 * CPU_SECONDS:.0f} ms of CPU a record")
    for column in ("processes", "records/s", "ratio", "the step alone", "share of that"):
        shown.add_column(column, justify="right")
    for count in PROCESSES:
        rate, alone = middle(runs, count), middle(runs, count, "alone")
        ratio = rate / middle(runs, PROCESSES[0])
        shown.add_row(str(count), f"{rate:,.1f}", f"{ratio:.2f}", f"{alone:,.1f}", f"{rate / alone:.2f}")
    return shown


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=watch.output_folder, default=HERE, help="folder of transforms.json")
    arguments = parser.parse_args()
    watch.stop_on_sigterm()
    where = machine()
    try:
        runs = asyncio.run(measure(arguments.rounds, Console(stderr=True)))
    except ShardcrawlError as error:
        sys.exit(f"error: {error}")
    held = promises(runs)
    results = {"machine": where, "cpu": CPU_SECONDS, "runs": [asdict(run) for run in runs], "promises": held}
    (arguments.output / "transforms.json").write_text(json.dumps(results, indent=1) + "\n")
    console = Console(width=120)
    console.print(table(runs))
    for promise, holds in held.items():
        console.print(f"{'yes' if holds else 'NO ':<4} {promise}", highlight=False)
    sys.exit(0 if all(held.values()) else 1)


if __name__ == "__main__":
    main()
