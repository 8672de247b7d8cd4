"""`python -m ops.bench.compression`: what a row costs Postgres by `[store] compression`, and what a run gains by it.

First rows alone, of several kinds of bodies: CPU of all of Postgres, WAL and bytes. Then whole runs with bodies of
4 KB: the sample of all benchmarks, which is words in random order, and texts that somebody wrote. Rounds alternate;
figures are medians. The promise, for texts on a Postgres with lz4: at least 1.15 times the keys a second of pglz, which
was the only compression before. Prints two tables, writes compression.json, and exits with 1 when it does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from itertools import cycle, islice
from pathlib import Path
from statistics import median

import asyncpg
import orjson
from rich import box
from rich.console import Console
from rich.table import Table

from coordinator.errors import ShardcrawlError
from coordinator.model import EntryId, Epoch, Outcome, ShardId
from coordinator.queue.sharding import digest
from crawler.model import Item, OpenBlock, Page
from crawler.store.catalogue import Catalogue
from crawler.store.tables import RunTables
from crawler.store.writer import Writer
from ops.bench import contenders, watch
from ops.bench.arena import Arena, Upstream, machine, open_arena, serve_upstream
from ops.bench.contenders import Contender, Course
from ops.bench.whole_run import Row, report
from ops.dist import ROOT
from ops.matrix import NotAvailable, debian_postgres
from ops.sample import sample

HERE = Path(__file__).parent
BEFORE = "pglz"
BODY_BYTES = 4096
PROMISED_RATIO = 1.15
BATCH_ROWS = 1000
BYTES_A_ROUND = 40_000_000
FILE_BYTES = range(2_500, 6_000)
SAMPLE, TEXTS = f"sample of {BODY_BYTES:,} bytes", "texts of 4 KB on average"
BYTES_OF_RUN = "SELECT sum(pg_total_relation_size(relid))::float8 FROM pg_partition_tree('pages')"


@dataclass(frozen=True, slots=True)
class Cost:
    """What a row costs: microseconds of Postgres' CPU, bytes of WAL, and bytes of the table with index and TOAST."""

    cpu: float
    wal: float
    size: float


@dataclass(frozen=True, slots=True)
class Speed:
    """A whole run: keys a second, microseconds of CPU a key of all processes and servers, bytes a key in Postgres."""

    rate: float
    cpu: float
    size: float


def bodies() -> Mapping[str, Sequence[bytes]]:
    """The bodies, by what they are: the sample of all benchmarks in two sizes, and the texts of this project."""
    files = [file for room in ("coordinator", "crawler", "docs") for file in (ROOT / room).rglob("*.[mp][dy]")]
    texts = {file.name: file.read_text() for file in sorted(files) if file.stat().st_size in FILE_BYTES}
    return {
        SAMPLE: [sample(BODY_BYTES).encode()],
        "sample of 20,000 bytes": [sample(20_000).encode()],
        TEXTS: [orjson.dumps({"name": name, "text": text}) for name, text in texts.items()],
    }


async def row_costs(arena: Arena, settings: Sequence[str], rounds: int) -> Mapping[str, Mapping[str, Cost]]:
    """Rows alone: the medians by kind of body and setting. Each round begins with another setting."""
    found: dict[str, dict[str, Cost]] = {}
    for kind, some in bodies().items():
        pages = _pages(some)
        costs: dict[str, list[Cost]] = {setting: [] for setting in settings}
        for number in range(rounds):
            for setting in _turned(settings, number):
                costs[setting].append(await _row_cost(arena, setting, pages))
        found[kind] = {setting: _median_cost(each) for setting, each in costs.items()}
    return found


async def _row_cost(arena: Arena, setting: str, pages: Sequence[Page]) -> Cost:
    await arena.clear()
    connection = await asyncpg.connect(arena.database)
    try:
        catalogue, epoch = Catalogue(connection), Epoch("bench")
        await catalogue.prepare()
        run = RunTables(await catalogue.make("bench", {"store": {"compression": setting}}, epoch, ()))
        writer = Writer(arena.database, run, epoch, ())
        await writer.open()
        wal, cpu = await _wal(connection), watch.cpu([arena.postgres_pid])
        for begin in range(0, len(pages), BATCH_ROWS):
            await writer.write(pages[begin : begin + BATCH_ROWS])
        cpu, wal = watch.cpu([arena.postgres_pid]) - cpu, await _wal(connection) - wal
        await writer.close()
        size = await connection.fetchval("SELECT pg_total_relation_size($1::text::regclass)::float8", run.pages)
    finally:
        await connection.close()
    return Cost(1e6 * cpu / len(pages), wal / len(pages), size / len(pages))


def _pages(some: Sequence[bytes]) -> list[Page]:
    """Pages with these bodies, one after another, about BYTES_A_ROUND in all."""
    count = BYTES_A_ROUND * len(some) // sum(map(len, some))
    block = OpenBlock(ShardId(0), EntryId("0-0"), count, count)
    pages = []
    for number, body in enumerate(islice(cycle(some), count)):
        key = f"http://127.0.0.1:45678/item/{number}"
        page = Page(Item(key, digest(key), block), key, Outcome.STORED, status=200, attempts=1, fetched_at=1.8e9)
        page.body, page.encoding, page.body_digest = body, "utf-8", secrets.token_bytes(16)
        pages.append(page)
    return pages


async def _wal(connection: asyncpg.Connection[asyncpg.Record]) -> float:
    return float(await connection.fetchval("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"))


def _median_cost(costs: Sequence[Cost]) -> Cost:
    return Cost(median(c.cpu for c in costs), median(c.wal for c in costs), median(c.size for c in costs))


async def run_speeds(
    arena: Arena, upstream: Upstream, settings: Sequence[str], rounds: int, keys: int, documents: int = 0
) -> Mapping[str, Sequence[Speed]]:
    """Whole runs: every round's speed, by setting. Each round begins with another setting."""
    speeds: dict[str, list[Speed]] = {setting: [] for setting in settings}
    for number in range(rounds):
        for setting in _turned(settings, number):
            contender = _contender(setting, keys)
            result = await contenders.crawl(arena, upstream, contender, keys, documents=documents)
            connection = await asyncpg.connect(arena.database)
            size = float(await connection.fetchval(BYTES_OF_RUN))
            await connection.close()
            cpu = 1e6 * (result.cpu + result.servers_cpu) / keys
            speeds[setting].append(Speed(keys / result.seconds, cpu, size / keys))
    return speeds


def _contender(setting: str, keys: int) -> Contender:
    def command(course: Course) -> list[str]:
        words = contenders.shardcrawl(course)
        with course.urls.with_name("job.toml").open("a") as job:
            job.write(f'compression = "{setting}"\n')
        return words

    return Contender(setting, keys, command, ours=True)


def _turned(settings: Sequence[str], number: int) -> Sequence[str]:
    begin = number % len(settings)
    return [*settings[begin:], *settings[:begin]]


async def measure(
    programs: Path | None, settings: Sequence[str], rounds: int, keys: int
) -> tuple[Mapping[str, Mapping[str, Cost]], Mapping[str, Mapping[str, Sequence[Speed]]]]:
    """Rows alone, then whole runs of the sample and of the texts."""
    folder, texts = Path(tempfile.mkdtemp(prefix="shardcrawl-bench-")), bodies()[TEXTS]
    try:
        async with open_arena(folder, programs) as arena:
            costs = await row_costs(arena, settings, rounds)
            with serve_upstream(folder, BODY_BYTES, documents=texts) as upstream:
                sampled = await run_speeds(arena, upstream, settings, rounds, keys)
                return costs, {
                    SAMPLE: sampled,
                    TEXTS: await run_speeds(arena, upstream, settings, rounds, keys, len(texts)),
                }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def cost_table(costs: Mapping[str, Mapping[str, Cost]]) -> Table:
    """What a row costs, by body and setting."""
    shown = Table(box=box.SIMPLE_HEAD)
    for column in ("body", "compression", "CPU of Postgres, us", "WAL, bytes", "table, bytes"):
        shown.add_column(column, justify="left" if column in ("body", "compression") else "right")
    for kind, by_setting in costs.items():
        for setting, cost in by_setting.items():
            shown.add_row(kind, setting, f"{cost.cpu:,.0f}", f"{cost.wal:,.0f}", f"{cost.size:,.0f}")
    return shown


def rows_of(kind: str, speeds: Mapping[str, Sequence[Speed]], promised: float | None) -> list[Row]:
    """A line for each setting beside the one before; `promised` is the ratio that `auto` must have."""
    lines = []
    before = speeds[BEFORE]
    for setting, found in speeds.items():
        ratio = median(one.rate / other.rate for one, other in zip(found, before, strict=True))
        rate, cpu, size = (median(values) for values in zip(*map(astuple, found), strict=True))
        figure = f"{rate:,.0f} keys/s, {ratio:.2f} x; CPU {cpu:.0f} us and {size:,.0f} bytes a key"
        promise = promised if setting == "auto" else None
        said = "" if promise is None else f"{promise} x keys/s"
        lines.append(Row(f"{kind}, {setting}", figure, said, promise is None or ratio >= promise))
    return lines


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", nargs="*", help="of `[store] compression` (default: pglz auto none)")
    parser.add_argument("--embedded", action="store_true", help="the embedded Postgres, which has no lz4, not Debian's")
    parser.add_argument("--keys", type=int, default=80_000, help="of a whole run")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=watch.output_folder, default=HERE, help="folder of compression.json")
    arguments = parser.parse_args()
    watch.stop_on_sigterm()
    settings = list(dict.fromkeys([BEFORE, *(arguments.settings or ("auto", "none"))]))
    where = machine()
    try:
        programs = None if arguments.embedded else debian_postgres()
        costs, runs = asyncio.run(measure(programs, settings, arguments.rounds, arguments.keys))
    except (ShardcrawlError, NotAvailable) as error:
        sys.exit(f"error: {error}")
    results = {
        "machine": where,
        "postgres": "embedded" if programs is None else str(programs),
        "rows": {kind: {name: asdict(cost) for name, cost in found.items()} for kind, found in costs.items()},
        "runs": {
            kind: {name: [asdict(speed) for speed in found] for name, found in speeds.items()}
            for kind, speeds in runs.items()
        },
    }
    (arguments.output / "compression.json").write_text(json.dumps(results, indent=1) + "\n")
    Console(width=120).print(cost_table(costs))
    promised = {TEXTS: PROMISED_RATIO} if programs is not None else {}
    sys.exit(report([row for kind, speeds in runs.items() for row in rows_of(kind, speeds, promised.get(kind))]))


if __name__ == "__main__":
    main()
