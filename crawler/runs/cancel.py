"""A run is cancelled: whoever works on it, on any machine, drains; then Redis forgets it.

Each step may be repeated, so a command that died is simply called again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from time import monotonic

import orjson
from redis.asyncio import Redis

from coordinator.errors import UsageError
from coordinator.failpoints import Failpoint, no_failpoint
from coordinator.model import Outcome
from coordinator.queue.registry import Runs
from coordinator.status import is_in_use
from crawler.runs.naming import name_lock
from crawler.runs.prune import delete_row, drop_orphans
from crawler.store.catalogue import Catalogue
from crawler.store.corpora import lock_run
from crawler.store.postgres import PostgresConnection, connect_postgres, postgres_errors
from crawler.store.queries import query
from crawler.store.reasons import count_outcomes, encode_reasons
from crawler.store.rows.stored_run import StoredRun
from crawler.store.tables import RunTables

logger = logging.getLogger(__name__)

# What a worker has in flight may take that long. Who stays longer can store nothing any more.
DRAIN_SECONDS = 30.0
# A coordinator that stands by looks at the run's state this often, and has no lease; a worker that leaves may still
# write a notice.
QUIET_SECONDS = 1.0
LEASES_POLL_SECONDS = 0.1


async def cancel_run(
    client: Redis, database: str, name: str, *, drop: bool = False, failpoint: Failpoint = no_failpoint
) -> Mapping[Outcome, int]:
    """Cancel a run that is not complete; returns its keys by outcome. With `drop` its rows and its name are deleted.

    Raises UsageError when it is not known or complete, or when another run needs its rows; RedisUnavailable,
    PostgresUnavailable, PostgresRefused.
    """
    connection = await connect_postgres(database)
    try:
        run = await Catalogue(connection).find(name)
        if run is None and drop and await drop_orphans(connection, database, failpoint):
            return {}  # a call before this one deleted the row, and died
        if run is None:
            raise UsageError(f"run {name} is not known; `shardcrawl runs` lists every run")
        await _mark(connection, run)
        failpoint("cancelled")
        await Runs(client).cancel(name)
        await _wait_until_left(client, name)
        failpoint("drained")
        async with name_lock(database, name):  # one that is being opened now is made in Redis anew
            counts = await _close(connection, run)
            await Runs(client).erase(name)
        failpoint("erased")
        if drop:
            if not await delete_row(connection, run.run_id) and await Catalogue(connection).find(name) is not None:
                raise UsageError(
                    f"run {name} is cancelled, and its rows stay: another run began with it, and goes on; "
                    "`shardcrawl prune` deletes them later"
                )
            failpoint("unlisted")
            await drop_orphans(connection, database, failpoint)
        return counts
    finally:
        connection.terminate()


async def _mark(connection: PostgresConnection, run: StoredRun) -> None:
    """Call the run cancelled in Postgres. Raises UsageError when it is complete, gone, or seen by readers."""
    with postgres_errors():
        async with connection.transaction():
            await lock_run(connection, run.run_id, run.name)
            if await connection.fetchval(query("cancel-run"), run.run_id) is not None:
                return
            is_complete = await connection.fetchval(query("final-counts"), run.run_id) is not None
    why = "is complete" if is_complete else "is the one that readers see, and keys of it go again"
    raise UsageError(f"run {run.name} {why}, so it is not cancelled; `shardcrawl rollback` and `prune` may help")


async def _wait_until_left(client: Redis, name: str) -> None:
    """Wait until no worker and no coordinator has had a lease on the run for a second."""
    deadline = monotonic() + DRAIN_SECONDS
    quiet_until = monotonic() + QUIET_SECONDS
    while monotonic() < quiet_until:
        if await is_in_use(client, name):
            if monotonic() > deadline:
                logger.warning(
                    "not all who work on run %s left within %.0f s: what they have in flight is lost",
                    *(name, DRAIN_SECONDS),
                )
                return
            quiet_until = monotonic() + QUIET_SECONDS
        await asyncio.sleep(LEASES_POLL_SECONDS)


async def _close(connection: PostgresConnection, run: StoredRun) -> Mapping[Outcome, int]:
    """Let nothing more be stored in the run, and count what it has. Raises UsageError when it is gone."""
    of_run = RunTables.of(run)
    with postgres_errors():
        async with connection.transaction():
            await lock_run(connection, run.run_id, run.name)
            await connection.execute(query("stop-batches", part=of_run.pages))
            counts, reasons = await count_outcomes(connection, of_run.pages)
            keys = orjson.dumps({outcome.value: keys for outcome, keys in counts.items()}).decode()
            await connection.execute(query("close-cancelled"), run.run_id, keys, encode_reasons(reasons))
    return counts
