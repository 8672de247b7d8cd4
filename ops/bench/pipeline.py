"""`python -m ops.bench.pipeline`: fetch, parse, a transform that takes 5 ms of CPU a record, write into Postgres.

As a loop, a `multiprocessing.Pool`, queued stages and a job of shardcrawl, in alternating rounds; the rows of each are
compared with what they should be. The limit is the transform alone. Prints the figures, writes pipeline.json and
pipeline.png, and exits with 1 when a promise does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from hashlib import md5
from pathlib import Path

import asyncpg
import httpx
from rich import box
from rich.console import Console
from rich.table import Table

from coordinator.errors import ShardcrawlError
from ops.bench import watch
from ops.bench.arena import Arena, Upstream, machine, open_arena
from ops.bench.contenders import RUN, SHARDCRAWL, Contender, Course, Result
from ops.bench.report import Report
from ops.bench.step import ALONE, CPU_SECONDS, parsed, score
from ops.bench.tables import promise_table
from ops.bench.trials import Figures, Promise, Trial, ratio
from ops.nginx import Nginx

HERE = Path(__file__).parent
BODY_BYTES = 1000
LATENCY_SECONDS = 0.01
DEADLINE_SECONDS = 180.0
POLL_SECONDS = 0.1  # to poll as often as `compare` would take 3 % of two cores from ours alone
CORES = max(2, os.cpu_count() or 2)
PROCESSES = sorted({1, 2, CORES, 2 * CORES})
PROMISED_GROWTH, PROMISED_SHARE = 1.85, 0.9
ROWS = """
SELECT md5(string_agg(concat_ws(' ', name, text, score), chr(10) ORDER BY name COLLATE "C")), min("at") FROM things
"""


def _way(name: str) -> Callable[[Course], list[str]]:
    return lambda course: ["ops.bench.rivals.stages", str(course.urls), course.database, name, str(course.workers)]


def _ours(course: Course) -> list[str]:
    job = course.urls.with_name("job.toml")
    job.write_text(
        f'[run]\nname = "{RUN}"\nshards = 16\n[source]\npath = "{course.urls}"\n'
        '[request]\nallow_private = ["127.0.0.0/8"]\nrobots = false\n[limits."*"]\nrate = "none"\n'
        '[parse]\npython = "ops.bench.step:items"\n'
        f'[transform]\npython = "ops.bench.step:scored"\nprocesses = {course.workers}\n'
        '[[tables]]\nname = "things"\n'
        'columns = { name = "text", text = "text", score = "bigint", at = "double precision" }\n'
    )
    return ["crawler", "run", str(job), "--workers", "1"]


# As many keys for each process as keep it busy for eight seconds; the limit has fewer, it is the steadiest.
LOOP = Contender("loop", 480, _way("loop"))
POOL = Contender("multiprocessing.Pool", 480, _way("pool"))
QUEUE = Contender("queued stages", 1600, _way("queue"))
OURS = Contender(SHARDCRAWL.name, 1600, _ours, ours=True)
LIMIT = Contender(ALONE, 800, lambda course: ["ops.bench.step", str(course.keys), str(course.workers)])


def trials() -> list[Trial]:
    """All contenders. A Pool may have more processes than there are cores, because they wait for responses too."""
    chosen = [(LOOP, 1), (POOL, CORES), (POOL, 2 * CORES), (QUEUE, CORES)]
    chosen += [(contender, count) for count in PROCESSES for contender in (LIMIT, OURS)]
    return [Trial("pipeline", str(count), contender, workers=count) for contender, count in chosen]


async def measure(chosen: Sequence[Trial], rounds: int, scale: float, console: Console) -> list[Figures]:
    """All trials in turn, in rounds; each round begins with another one. Raises ContenderFailed."""
    results: dict[Trial, list[Result]] = {trial: [] for trial in chosen}
    folder = Path(tempfile.mkdtemp(prefix="shardcrawl-bench-"))
    try:
        with Nginx(folder / "nginx", size=BODY_BYTES, delay=LATENCY_SECONDS) as nginx:
            upstream = Upstream(nginx.url, BODY_BYTES, nginx.pid)
            async with open_arena(folder) as arena:
                for number in range(rounds):
                    first = number * len(chosen) // rounds
                    for trial in [*chosen[first:], *chosen[:first]]:
                        keys = max(40, int(trial.contender.keys * min(trial.workers, CORES) * scale))
                        result = await _crawl(arena, upstream, trial, keys)
                        results[trial].append(result)
                        console.print(
                            f"round {number + 1} of {rounds}: {trial.contender.name}, {trial.workers}: "
                            f"{result.keys / result.seconds:,.1f} records/s",
                            highlight=False,
                        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return [Figures.of(trial, results[trial]) for trial in chosen]


async def _crawl(arena: Arena, upstream: Upstream, trial: Trial, keys: int) -> Result:
    await arena.clear()
    urls = arena.folder / "urls.txt"
    urls.write_text("".join(f"{upstream.url}/slow/{number}\n" for number in range(keys)))
    course = Course(upstream, keys, urls, arena.redis, arena.database, trial.workers)
    last = asyncio.create_task(arena.committed(RUN, keys, POLL_SECONDS)) if trial.contender.ours else None
    before = arena.servers_cpu(upstream)
    command = trial.contender.command(course)
    try:
        spent = await asyncio.to_thread(
            watch.run, command, arena.environ, arena.folder, deadline_seconds=DEADLINE_SECONDS
        )
        servers = arena.servers_cpu(upstream) - before
        report = Report(keys, 0.0, await last) if last else Report.read(spent.out)
    finally:
        if last is not None:
            last.cancel()
    first = report.first if trial.contender is LIMIT else await _first_of_right_rows(arena, upstream, trial, keys)
    return Result(report.keys, report.last - first, spent.seconds, spent.cpu, servers, spent.memory)


async def _first_of_right_rows(arena: Arena, upstream: Upstream, trial: Trial, keys: int) -> float:
    """When the first record was there. What comes before is the start of processes."""
    response = await asyncio.to_thread(httpx.get, f"{upstream.url}/item/0")
    text = parsed(response.content)["text"]
    rows = "\n".join(f"{name} {text} {score(name, text)}" for name in sorted(map(str, range(keys))))
    connection = await asyncpg.connect(arena.database)
    try:
        digest, first = await connection.fetchrow(ROWS)
    finally:
        await connection.close()
    if digest != md5(rows.encode()).hexdigest():
        raise watch.ContenderFailed(f"{trial.contender.name} did not store the row of each of {keys} keys once")
    return float(first)


def found(lines: Sequence[Figures], contender: Contender, processes: int) -> Figures:
    """The figures of a contender with so many processes."""
    return next(line for line in lines if (line.contender, line.circumstance) == (contender.name, str(processes)))


def promises(lines: Sequence[Figures]) -> list[Promise]:
    """What is promised. The rows of each crawl were compared after it."""
    ours = {count: found(lines, OURS, count) for count in PROCESSES}
    growth = ratio(ours[2], ours[1])
    shares = [ratio(ours[count], found(lines, LIMIT, count)) for count in PROCESSES]
    return [
        Promise(
            "times the records/s of 1 process, with 2", f"{PROMISED_GROWTH}", f"{growth:.2f}", growth >= PROMISED_GROWTH
        ),
        Promise(
            f"of what the step alone makes, with {', '.join(map(str, PROCESSES))} processes",
            f"{PROMISED_SHARE}",
            ", ".join(f"{share:.2f}" for share in shares),
            min(shares) >= PROMISED_SHARE,
        ),
        Promise("the same row of each key, from each of them", "always", "always", True),
    ]


def table(lines: Sequence[Figures]) -> Table:
    """The medians of the rounds."""
    shown = Table(box=box.SIMPLE_HEAD, title=f"a transform that takes {1000 * CPU_SECONDS:.0f} ms of CPU a record")
    shown.add_column("", no_wrap=True)
    for column in (
        *("processes", "records/s", "lowest to highest", "x the loop", "of the limit", "CPU-s/1,000"),
        *("of servers", "MB at most", "whole command"),
    ):
        shown.add_column(column, justify="right", no_wrap=True)
    for line in lines:
        shown.add_row(
            line.contender,
            line.circumstance,
            f"{line.rate:,.1f}",
            f"{min(line.rates):,.1f} to {max(line.rates):,.1f}",
            f"{ratio(line, found(lines, LOOP, 1)):.1f}",
            f"{ratio(line, found(lines, LIMIT, int(line.circumstance))):.2f}",
            f"{line.cpu:.2f}",
            f"{line.servers_cpu:.2f}",
            f"{line.memory:,.0f}",
            f"{line.command_rate:,.1f}/s",
        )
    return shown


def main() -> None:
    """Measure, print, save and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the usual keys; below 1 for a first look")
    parser.add_argument(
        "--output", type=watch.output_folder, default=HERE, help="folder of pipeline.json and pipeline.png"
    )
    arguments = parser.parse_args()
    from ops.bench.drawing import draw_pipeline  # only `make bench` installs matplotlib

    watch.stop_on_sigterm()
    where = machine()
    try:
        lines = asyncio.run(measure(trials(), arguments.rounds, arguments.scale, Console(stderr=True)))
    except ShardcrawlError as error:
        sys.exit(f"error: {error}")
    held = promises(lines)
    results = {
        "machine": where,
        "cores": str(CORES),
        "rounds": arguments.rounds,
        "latency": LATENCY_SECONDS,
        "cpu": CPU_SECONDS,
        "lines": [asdict(line) for line in lines],
        "promises": [asdict(promise) for promise in held],
    }
    (arguments.output / "pipeline.json").write_text(json.dumps(results, indent=1) + "\n")
    console = Console(width=140)
    console.print(table(lines), promise_table(held))
    draw_pipeline(results, arguments.output / "pipeline.png")
    sys.exit(0 if all(promise.held for promise in held) else 1)


if __name__ == "__main__":
    main()
