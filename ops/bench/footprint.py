"""`python -m ops.bench.footprint`: how many bytes a key takes in Redis and in Postgres. README.md plans with them.

First a coordinator alone plans a corpus, then workers complete the run. Prints a table and writes footprint.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import asyncpg
from redis.asyncio import Redis
from rich import box
from rich.console import Console
from rich.table import Table

from coordinator.errors import ShardcrawlError
from coordinator.redis.connection import connect_redis
from ops.bench import watch
from ops.bench.arena import Arena, open_arena, serve_upstream
from ops.bench.planning import planned

HERE = Path(__file__).parent
BODY_SIZES = (300, 5_000)
NAME = "footprint"
DEADLINE_SECONDS = 600.0
PLANNING_DEADLINE_SECONDS = 120.0
TABLES = """
SELECT sum(pg_table_size(relid))::float8 AS rows, sum(pg_indexes_size(relid))::float8 AS indexes
FROM pg_partition_tree('pages')
"""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes for each key of a run with bodies of `size` bytes; `planned` is how many keys a second were planned.

    `queued` and `done` are the memory of Redis for a key in the queue and for a done one, `log` its append-only file.
    `rows` is the table with compressed bodies in Postgres, `index` its primary key, `wal` its write-ahead log.
    """

    size: int
    keys: int
    planned: float
    queued: float
    done: float
    log: float
    rows: float
    index: float
    wal: float


async def measure(keys: int) -> list[Footprint]:
    """One run for each size of bodies."""
    folder = Path(tempfile.mkdtemp(prefix="shardcrawl-bench-"))
    try:
        async with open_arena(folder) as arena:
            return [await _footprint(arena, size, keys) for size in BODY_SIZES]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _footprint(arena: Arena, size: int, keys: int) -> Footprint:
    await arena.clear()
    client = connect_redis(arena.redis)
    connection = await asyncpg.connect(arena.database)
    try:
        with serve_upstream(arena.folder, size) as upstream:
            job = _job(arena.folder, upstream.url, keys)
            memory, log = await _memory(client), await _log(client)
            speed = (await planned(arena, job, NAME, deadline_seconds=PLANNING_DEADLINE_SECONDS)).planned
            queued = await _memory(client) - memory
            begin = await connection.fetchval("SELECT pg_current_wal_lsn()")
            command = ["crawler", "run", str(job)]
            await asyncio.to_thread(watch.run, command, arena.environ, arena.folder, deadline_seconds=DEADLINE_SECONDS)
        wal = float(await connection.fetchval("SELECT pg_current_wal_lsn() - $1::pg_lsn", begin))
        stored = await connection.fetchrow(TABLES)
        assert stored is not None
        sums = (queued, await _memory(client) - memory, await _log(client) - log, *stored.values(), wal)
        return Footprint(size, keys, speed, *(each / keys for each in sums))
    finally:
        await connection.close()
        await client.aclose()


def _job(folder: Path, url: str, keys: int) -> Path:
    urls, job = folder / "urls.txt", folder / "job.toml"
    with urls.open("w") as file:
        file.writelines(f"{url}/item/{number}\n" for number in range(keys))
    job.write_text(
        f'[run]\nname = "{NAME}"\nhigh_water = 100000000\nworkers = 2\n[source]\npath = "{urls}"\n'
        '[request]\nallow_private = ["127.0.0.0/8"]\nrobots = false\n[limits."*"]\nrate = "none"\n'
    )
    return job


async def _memory(client: Redis) -> float:
    return float((await client.info("memory"))["used_memory"])


async def _log(client: Redis) -> float:
    return float((await client.info("persistence"))["aof_current_size"])


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=400_000)
    parser.add_argument("--output", type=watch.output_folder, default=HERE, help="folder of footprint.json")
    arguments = parser.parse_args()
    watch.stop_on_sigterm()
    try:
        found = asyncio.run(measure(arguments.keys))
    except ShardcrawlError as error:
        sys.exit(f"error: {error}")
    (arguments.output / "footprint.json").write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n")
    shown = Table(box=box.SIMPLE_HEAD, title="bytes a key")
    for column in ("bodies", "keys", "Redis: queued", "done", "its log", "rows", "index", "WAL", "planned"):
        shown.add_column(column, justify="right")
    for one in found:
        costs = (one.queued, one.done, one.log, one.rows, one.index, one.wal)
        shown.add_row(
            f"{one.size:,}", f"{one.keys:,}", *(f"{cost:,.1f}" for cost in costs), f"{one.planned:,.0f} keys/s"
        )
    Console(width=120).print(shown)


if __name__ == "__main__":
    main()
