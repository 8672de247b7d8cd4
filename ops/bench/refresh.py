"""`python -m ops.bench.refresh`: a first run of pages with ETags, 1 % of which change, and a refresh of it.

The promise: the refresh makes at least 1.5 times the keys a second of the first run, every key has one page, and what
is carried over equals the base. The job makes rows of a table, one of each record of a response; with `--bodies` it has
no table, and keeps the bodies as they are. Shown beside it are the bytes of both runs on the network and in Postgres'
WAL, and what it costs Postgres to carry pages over. Prints a table, writes refresh.json, and exits with 1 when the
promise does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import asyncpg

from coordinator.errors import ShardcrawlError
from coordinator.model import EntryId, Epoch, Outcome, ShardId
from crawler.job.document import load_job_file
from crawler.job.job import read_job
from crawler.model import Item, OpenBlock, Page
from crawler.store.catalogue import Catalogue
from crawler.store.rows.base import BaseReader, CarriedPages
from crawler.store.tables import RunTables
from ops.bench import watch
from ops.bench.arena import Arena, Upstream, machine, open_arena
from ops.bench.whole_run import Row, report
from ops.nginx import Nginx

HERE = Path(__file__).parent
BODY_BYTES = 4096
CONCURRENCY = 128
DEADLINE_SECONDS = 3600.0
PROMISED_RATIO = 1.5
CARRIED_AT_MOST, CARRIED_A_BATCH = 100_000, 1000
JOB = """
[run]
corpus = "items"
concurrency = {concurrency}
[source]
path = "{source}"
[request]
robots = false
allow_private = ["127.0.0.0/8"]
[limits."*"]
rate = "none"
[store]
batch_rows = 4000
"""
RECORDS = """
[parse]
format = "json"
[[tables]]
name = "records"
rows = "records[]"
[tables.columns]
edition = { type = "integer", from = "^.edition" }
number = "integer"
title = "text"
url = "text"
summary = "text"
active = "boolean"
changed = "date"
tags = "jsonb"
follows = "integer"
"""
PAGES = """
SELECT count(*) AS pages, count(DISTINCT digest) AS keys, count(*) FILTER (WHERE outcome = 'unchanged') AS unchanged,
       extract(epoch FROM max(fetched_at) - min(fetched_at))::float8 AS seconds
FROM pages WHERE run_id = $1
"""
CARRIED_OTHERWISE = """
SELECT count(*) FROM pages_r2 n LEFT JOIN pages_r1 b USING (digest)
WHERE n.outcome = 'unchanged'
  AND (b.key, b.body, b.etag, b.body_digest, b.content_digest)
      IS DISTINCT FROM (n.key, n.body, n.etag, n.body_digest, n.content_digest)
"""
# The rows of the unchanged keys in each run: how many, and the sum of the hashes of their values.
ROWS_OF_UNCHANGED = """
SELECT count(*) AS rows, sum(hash_record_extended((r.digest, r.edition, r.number, r.title, r.url, r.summary, r.active,
                                                   r.changed, r.tags, r.follows), 0)::numeric) AS hashes
FROM {part} r JOIN pages_r2 n USING (digest) WHERE n.outcome = 'unchanged'
"""


@dataclass(frozen=True, slots=True)
class Measured:
    """One run: seconds from the first page to the last, and of the whole command; bytes of bodies and of WAL.

    `cpu` are the seconds of all its processes, `servers_cpu` those of Redis, Postgres and nginx.
    """

    what: str
    keys: int
    unchanged: int
    seconds: float
    command_seconds: float
    received: int
    wal: int
    memory: float
    cpu: float
    servers_cpu: float

    @property
    def rate(self) -> float:
        """Keys a second."""
        return self.keys / self.seconds


@dataclass(frozen=True, slots=True)
class Carry:
    """What it costs Postgres to carry this many pages over: seconds on one connection, and bytes of WAL."""

    pages: int
    seconds: float
    wal: int


async def measure(keys: int, *, bodies: bool) -> tuple[list[Measured], Carry, int]:
    """Both runs, the cost of carrying, and how many carried pages differ from their base."""
    folder = Path(tempfile.mkdtemp(prefix="shardcrawl-bench-"))
    try:
        with Nginx(folder / "nginx", size=BODY_BYTES, etags=True) as nginx:
            async with open_arena(folder) as arena:
                await arena.clear()
                source, job = folder / "urls.txt", folder / "job.toml"
                source.write_text("".join(f"{nginx.url}/item/{number}\n" for number in range(keys)))
                job.write_text(JOB.format(source=source, concurrency=CONCURRENCY) + ("" if bodies else RECORDS))
                upstream = Upstream(nginx.url, BODY_BYTES, nginx.pid)
                runs = [await _run(arena, upstream, job, "first run", 1)]
                nginx.edit()
                runs.append(await _run(arena, upstream, job, "refresh", 2, "--refresh"))
                connection = await asyncpg.connect(arena.database)
                try:
                    differing = await connection.fetchval(CARRIED_OTHERWISE)
                    if not bodies:
                        await _compare_rows(connection)
                    carry = await _carry(arena.database, connection, job, min(keys, CARRIED_AT_MOST))
                finally:
                    await connection.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return runs, carry, differing


async def _run(arena: Arena, upstream: Upstream, job: Path, what: str, run_id: int, *options: str) -> Measured:
    connection = await asyncpg.connect(arena.database)
    try:
        await connection.execute("CHECKPOINT")
        wal, servers_cpu = await _wal(connection), arena.servers_cpu(upstream)
        command = ["crawler", "run", str(job), "--workers", "2", "--rate", "none", *options]
        spent = await asyncio.to_thread(
            watch.run, command, arena.environ, arena.folder, deadline_seconds=DEADLINE_SECONDS, poll_seconds=2.0
        )
        wal, servers_cpu = await _wal(connection) - wal, arena.servers_cpu(upstream) - servers_cpu
        row = await connection.fetchrow(PAGES, run_id)
        name = await connection.fetchval("SELECT name FROM runs WHERE run_id = $1", run_id)
    finally:
        await connection.close()
    assert row is not None
    if row["pages"] != row["keys"]:
        raise watch.ContenderFailed(f"{what}: {row['pages']} pages of {row['keys']} keys")
    status = await asyncio.to_thread(
        watch.run, ["crawler", "status", name, "--json"], arena.environ, arena.folder, deadline_seconds=60
    )
    received = json.loads(status.out)["received_bytes"]
    print(f"{what}: {row['keys'] / row['seconds']:,.0f} keys/s", file=sys.stderr)
    return Measured(
        *(what, row["keys"], row["unchanged"], row["seconds"], spent.seconds),
        *(received, wal, spent.memory, spent.cpu, servers_cpu),
    )


async def _carry(database: str, connection: Any, job: Path, pages: int) -> Carry:
    """Carry pages of the first run over into a third one, batch by batch, with their rows."""
    base, epoch, tables = RunTables(1), Epoch(secrets.token_hex(8)), read_job(load_job_file(job)).tables
    run = RunTables(await Catalogue(connection).make("carried", {}, epoch, tables, base_run=1))
    digests = [row[0] for row in await connection.fetch("SELECT digest FROM pages_r1 ORDER BY digest LIMIT $1", pages)]
    reader, carried, block = BaseReader(database, base, keeps=True), CarriedPages(run, base, tables), _a_block()
    wal, seconds = await _wal(connection), 0.0
    for first in range(0, len(digests), CARRIED_A_BATCH):
        known = await reader.pages(digests[first : first + CARRIED_A_BATCH])
        batch = [
            Page(Item("", digest, block), None, Outcome.UNCHANGED, status=304, base=one, unmodified=True)
            for digest, one in sorted(known.items())
        ]
        began = perf_counter()
        async with connection.transaction():
            new = await carried.carry(connection, batch, None)
        seconds += perf_counter() - began
        assert len(new) == len(batch)
    reader.close()
    return Carry(len(digests), seconds, await _wal(connection) - wal)


async def _compare_rows(connection: Any) -> None:
    base, carried = [await connection.fetchrow(ROWS_OF_UNCHANGED.format(part=f"records_r{run}")) for run in (1, 2)]
    if not base["rows"] or base != carried:
        raise watch.ContenderFailed(
            f"the refresh has {carried['rows']} rows of unchanged keys, the base {base['rows']}"
        )


def _a_block() -> OpenBlock:
    return OpenBlock(ShardId(0), EntryId("1-0"), 1, 1)


async def _wal(connection: Any) -> int:
    """The bytes of WAL so far."""
    return int(await connection.fetchval("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')"))


def rows_of(runs: Sequence[Measured], carry: Carry, differing: int, keys: int) -> list[Row]:
    """The table of what was measured and promised."""
    first, second = runs
    ratio, edited = second.rate / first.rate, sum(1 for number in range(keys) if f"{number}".endswith("00"))
    whole = first.command_seconds / second.command_seconds
    figures = [
        Row(f"{run.what}: keys/s", f"{run.rate:,.0f} ({run.command_seconds:.1f} s in all)", "", held=run.keys == keys)
        for run in runs
    ]
    traffic = f"{first.received / 1e6:,.1f} MB, then {second.received / 1e6:,.1f} MB"
    return [
        *figures,
        Row(
            "refresh / first run",
            f"{ratio:.2f} (whole command {whole:.2f})",
            f">= {PROMISED_RATIO}",
            ratio >= PROMISED_RATIO,
        ),
        Row("unchanged", f"{second.unchanged:,}", f"{keys - edited:,}", second.unchanged == keys - edited),
        Row("carried pages that differ from the base", f"{differing}", "0", differing == 0),
        Row("bodies", traffic, "<= 2 % of the first", second.received <= 0.02 * first.received),
        Row("WAL a key", f"{first.wal / keys:,.0f} bytes, then {second.wal / keys:,.0f}", "", held=True),
        Row(
            "carrying a page",
            f"{1e6 * carry.seconds / carry.pages:.0f} us, {carry.wal / carry.pages:,.0f} bytes",
            "",
            held=True,
        ),
        Row("CPU a key: its own, the servers'", "; then ".join(map(_cpu_words, runs)), "", held=True),
        Row("memory at most", f"{first.memory:.0f} MB, then {second.memory:.0f} MB", "", held=True),
    ]


def _cpu_words(run: Measured) -> str:
    return f"{1e6 * run.cpu / run.keys:.0f} us, {1e6 * run.servers_cpu / run.keys:.0f} us"


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--bodies", action="store_true", help="keep bodies instead of making rows")
    parser.add_argument("--output", type=watch.output_folder, default=HERE, help="folder of refresh.json")
    arguments = parser.parse_args()
    watch.stop_on_sigterm()
    where = machine()
    try:
        runs, carry, differing = asyncio.run(measure(arguments.keys, bodies=arguments.bodies))
    except ShardcrawlError as error:
        sys.exit(f"error: {error}")
    rows = rows_of(runs, carry, differing, arguments.keys)
    results = {
        "machine": where,
        "bodies": arguments.bodies,
        "runs": [asdict(run) for run in runs],
        "carry": asdict(carry),
    }
    (arguments.output / "refresh.json").write_text(json.dumps(results, indent=1) + "\n")
    sys.exit(report(rows))


if __name__ == "__main__":
    main()
