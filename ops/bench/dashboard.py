"""`python -m ops.bench.dashboard`: the pages of `shardcrawl serve` at their largest, and what open pages cost a run.

A run of 1,000 upstreams, 200 workers and 1,000,000 failed keys is looked at with Chromium. Then runs at full speed
are made with and without open pages, in turn. Prints tables, writes dashboard.json, and exits with 1 when a promise
does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from redis.asyncio import Redis
from rich import box
from rich.console import Console
from rich.table import Table

from coordinator.errors import ShardcrawlError
from coordinator.redis.connection import connect_redis
from ops.bench import contenders, watch
from ops.bench.arena import Arena, Upstream, machine, open_arena, serve_upstream
from ops.bench.crowd import NAME, Crowd, gather
from ops.bench.looks import METRICS, VIEWS, Costs, Looked, look, open_pages, served

HERE = Path(__file__).parent
PROMISED_VIEW_MS, PROMISED_METRICS_MS, PROMISED_LOSS = 300.0, 100.0, 0.03
FEW_PAGES, MANY_PAGES = 10, 50
WATCHED_SECONDS = 10.0
BODY_BYTES = 4096
KEYS, WORKERS = 120_000, 2


@dataclass(frozen=True, slots=True)
class Ran:
    """One run at full speed: how many pages were open, keys a second, the CPU us a key of the run with Redis, Postgres
    and nginx, and what Redis and `serve` took in ms a second.
    """

    pages: int
    rate: float
    cpu: float
    redis_cpu_ms: float
    serve_cpu_ms: float


async def measure(
    crowd: Crowd, looks: int, rounds: int, keys: int, pictures: Path | None
) -> tuple[list[Looked], list[float], list[Ran]]:
    """The looks at each kind of page, the CPU ms a second that FEW_PAGES open pages add, and the runs."""
    folder = Path(tempfile.mkdtemp(prefix="shardcrawl-bench-"))
    try:
        async with open_arena(folder) as arena, _client(arena) as redis:
            await arena.clear()
            _say(f"a run of {crowd.failed:,} failed keys is made")
            await gather(crowd, redis, arena.database)
            async with served(arena) as (serve, url):
                costs = Costs(arena, serve, redis)
                looked = await look(crowd, redis, url, costs, looks, pictures)
                idle = await costs.of(lambda: asyncio.sleep(WATCHED_SECONDS), WATCHED_SECONDS)
                async with open_pages(url, NAME, FEW_PAGES):
                    busy = await costs.of(lambda: asyncio.sleep(WATCHED_SECONDS), WATCHED_SECONDS)
                shared = [more - less for more, less in zip(busy, idle, strict=True)]
                with serve_upstream(folder, BODY_BYTES) as upstream:
                    return looked, shared, await _race(arena, upstream, url, costs, rounds, keys)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def _client(arena: Arena) -> AsyncIterator[Redis]:
    client = connect_redis(arena.redis)
    try:
        yield client
    finally:
        await client.aclose()


async def _race(arena: Arena, upstream: Upstream, url: str, costs: Costs, rounds: int, keys: int) -> list[Ran]:
    """Runs at full speed without and with open pages; each round begins with the other."""
    found = []
    for number in range(rounds):
        for pages in (0, MANY_PAGES) if number % 2 == 0 else (MANY_PAGES, 0):
            results: list[contenders.Result] = []

            async def run(results: list[contenders.Result] = results) -> None:
                results.append(await contenders.crawl(arena, upstream, contenders.SHARDCRAWL, keys, workers=WORKERS))

            async with AsyncExitStack() as stack:
                if pages:
                    await stack.enter_async_context(open_pages(url, contenders.RUN, pages))
                serve, redis, _ = await costs.of(run, 1.0)
            (result,) = results
            cpu = 1e6 * (result.cpu + result.servers_cpu) / keys
            took = result.command_seconds
            found.append(Ran(pages, keys / result.seconds, cpu, redis / took, serve / took))
            _say(f"round {number + 1} of {rounds}, {pages} pages: {found[-1].rate:,.0f} keys/s, {cpu:.1f} us a key")
    return found


def loss(ran: Sequence[Ran], figure: Callable[[Ran], float]) -> float:
    """How much less of a figure there is with open pages: the median of the rounds' ratios, less 1."""
    pairs = [{one.pages: figure(one) for one in ran[at : at + 2]} for at in range(0, len(ran), 2)]
    return 1 - median(pair[MANY_PAGES] / pair[0] for pair in pairs)


def promises(looked: Sequence[Looked], shared: Sequence[float], ran: Sequence[Ran]) -> dict[str, bool]:
    """What is promised, and whether it held."""
    held = {
        f"{one.what}: rows within {PROMISED_VIEW_MS:.0f} ms": median(one.rows_ms) < PROMISED_VIEW_MS
        for one in looked
        if one.what in VIEWS
    }
    held[f"{METRICS} within {PROMISED_METRICS_MS:.0f} ms"] = median(looked[-1].rows_ms) < PROMISED_METRICS_MS
    if ran:
        few = f"at most {PROMISED_LOSS:.0%} fewer keys/s with {MANY_PAGES} open pages"
        held[few] = loss(ran, lambda one: one.rate) <= PROMISED_LOSS
        worker = median(one.redis_cpu_ms for one in ran if not one.pages) / WORKERS
        held[f"{FEW_PAGES} open pages cost Redis {shared[1]:.2f} ms a second, a worker {worker:.2f}"] = (
            shared[1] < worker
        )
    return held


def _say(words: str) -> None:
    print(words, file=sys.stderr)


def look_table(crowd: Crowd, looked: Sequence[Looked], shared: Sequence[float]) -> Table:
    """Medians of the looks, and what a look and FEW_PAGES open pages cost."""
    size = f"{crowd.upstreams:,} upstreams, {crowd.workers} workers, {crowd.failed:,} failed keys"
    shown = Table(box=box.SIMPLE_HEAD, title=size)
    for column in ("", "first ms", "rows ms", "worst", "KB", "CPU ms: serve", "Redis", "Postgres"):
        shown.add_column(column, justify="right" if column else "left")
    for one in looked:
        times = f"{median(one.first_ms):.0f}", f"{median(one.rows_ms):.0f}", f"{max(one.rows_ms):.0f}"
        cpu = (f"{ms:.2f}" for ms in (one.serve_cpu_ms, one.redis_cpu_ms, one.postgres_cpu_ms))
        shown.add_row(one.what, *times, f"{one.bytes / 1000:.1f}", *cpu)
    shown.add_row(f"{FEW_PAGES} open pages, a second", "", "", "", "", *(f"{ms:.2f}" for ms in shared))
    return shown


def run_table(ran: Sequence[Ran]) -> Table:
    """Medians of the runs, without and with open pages."""
    shown = Table(box=box.SIMPLE_HEAD, title="runs at full speed")
    for column in ("open pages", "keys/s", "CPU us a key", "Redis ms/s", "serve ms/s"):
        shown.add_column(column, justify="right")
    for pages in (0, MANY_PAGES):
        same = [one for one in ran if one.pages == pages]
        figures = [(one.rate, one.cpu, one.redis_cpu_ms, one.serve_cpu_ms) for one in same]
        shown.add_row(str(pages), *(f"{median(column):,.1f}" for column in zip(*figures, strict=True)))
    return shown


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--looks", type=int, default=10, help="looks at each kind of page")
    parser.add_argument("--rounds", type=int, default=3, help="of one run without and one with open pages; 0: none")
    parser.add_argument("--keys", type=int, default=KEYS, help="of each of these runs")
    parser.add_argument(
        "--failed", type=int, default=Crowd().failed, help="keys that failed in the run that is looked at"
    )
    parser.add_argument("--pictures", type=watch.output_folder, metavar="DIR", help="draw the pages there, too")
    parser.add_argument("--output", type=watch.output_folder, default=HERE, help="folder of dashboard.json")
    arguments = parser.parse_args()
    watch.stop_on_sigterm()
    where, crowd = machine(), Crowd(failed=arguments.failed)
    try:
        looked, shared, ran = asyncio.run(
            measure(crowd, arguments.looks, arguments.rounds, arguments.keys, arguments.pictures)
        )
    except ShardcrawlError as error:
        sys.exit(f"error: {error}")
    held = promises(looked, shared, ran)
    results = {
        "machine": where,
        "looked": [asdict(one) for one in looked],
        "open_pages_cpu_ms": shared,
        "ran": [asdict(one) for one in ran],
        "promises": held,
    }
    (arguments.output / "dashboard.json").write_text(json.dumps(results, indent=1) + "\n")
    console = Console(width=120)
    console.print(look_table(crowd, looked, shared))
    if ran:
        console.print(run_table(ran))
    for promise, holds in held.items():
        console.print(f"{'yes' if holds else 'NO ':<4} {promise}", highlight=False)
    sys.exit(0 if all(held.values()) else 1)


if __name__ == "__main__":
    main()
