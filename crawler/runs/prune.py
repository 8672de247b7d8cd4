"""Old runs are deleted: first their rows in `runs`, then their tables, last what Redis has of them.

Whatever a crash leaves is found by the next call: tables and Redis keys of runs without a row, whoever deleted that.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from time import monotonic

import asyncpg
from redis.asyncio import Redis

from coordinator.errors import PostgresRefused, PostgresUnavailable, UsageError, first_line
from coordinator.failpoints import Failpoint, no_failpoint
from coordinator.queue.registry import Runs
from coordinator.status import is_in_use
from crawler.job.fields import RUN_NAME
from crawler.runs.naming import name_lock
from crawler.store.catalogue import Catalogue
from crawler.store.corpora import Corpora
from crawler.store.postgres import PostgresConnection, postgres_errors
from crawler.store.queries import query
from crawler.store.rows.stored_run import StoredRun
from crawler.store.tables import RunTables

# How long a table waits for its readers, before the next call goes on with it.
READERS_SECONDS = 10.0
READERS_POLL_SECONDS = 0.1
# A name that no run has, for the lock under which tables are dropped.
_NO_RUN = "*"


@dataclass(frozen=True, slots=True)
class Part:
    """A table of one run, whose row is deleted. `pending`: its detaching was broken off."""

    table: str
    of_run: RunTables
    size: int
    attached: bool
    pending: bool

    @property
    def name(self) -> str:
        """Its name in Postgres."""
        return self.of_run.part_name(self.table)


def to_prune(
    runs: Sequence[StoredRun], current: int | None, *, keep: int | None = None, before: datetime | None = None
) -> list[StoredRun]:
    """Pure: those of a corpus' runs that may go, oldest first.

    Never the current one, one that is under way, or the base of one. With `keep` neither the newest runs that were
    published, so many of them, nor complete ones after the current, which wait to be published; with `before` none
    that ended since then.
    """
    bases = {run.base_run for run in runs if run.unfinished}
    published = [run.run_id for run in runs if run.complete and run.published_at is not None]
    kept = set(sorted(published)[-keep:]) if keep else set()
    return [
        run
        for run in sorted(runs, key=lambda run: run.run_id)
        if not run.unfinished
        and run.run_id not in bases | kept | {current}
        and (keep is None or run.cancelled or run.published_at is not None or run.run_id < (current or 0))
        and (before is None or (run.finished_at or run.created_at) < before)
    ]


async def orphans(connection: PostgresConnection) -> list[Part]:
    """The tables of all runs that have no row any more."""
    with postgres_errors():
        return [
            Part(row["name"], RunTables(row["run_id"], row["schema"]), row["bytes"], row["attached"], row["pending"])
            for row in await connection.fetch(query("orphan-parts"))
        ]


async def check_corpus(connection: PostgresConnection, corpus: str) -> None:
    """Raise UsageError when no run of this corpus was ever made."""
    with postgres_errors():
        known = [row["corpus"] for row in await connection.fetch(query("known-corpora"))]
    if corpus not in known:
        raise UsageError(f"no corpus {corpus}; known corpora: {', '.join(known) or 'none'}")


async def run_sizes(connection: PostgresConnection) -> dict[int, tuple[int, bool]]:
    """The bytes of each run's tables, and whether readers see it, by run_id."""
    with postgres_errors():
        return {row["run_id"]: (row["bytes"], row["current"]) for row in await connection.fetch(query("run-sizes"))}


async def prune(
    connection: PostgresConnection,
    client: Redis,
    database: str,
    corpus: str,
    *,
    keep: int | None = None,
    before: datetime | None = None,
    failpoint: Failpoint = no_failpoint,
) -> tuple[list[StoredRun], list[Part]]:
    """Delete old runs of a corpus, and what deleted runs of any corpus have left; returns the runs and the tables.

    Raises what `drop_orphans` does, and RedisUnavailable. What is left then, the next call deletes.
    """
    deleted = [
        run
        for run in await prunable(connection, corpus, keep=keep, before=before)
        if await delete_row(connection, run.run_id)
    ]
    failpoint("unlisted")
    dropped = await drop_orphans(connection, database, failpoint)
    for run in deleted:
        async with name_lock(database, run.name):
            if await Catalogue(connection).find(run.name) is None:  # else a new run has got its name meanwhile
                await Runs(client).erase(run.name)
    await _erase_unneeded(connection, client)
    return deleted, dropped


async def prunable(
    connection: PostgresConnection, corpus: str, *, keep: int | None = None, before: datetime | None = None
) -> list[StoredRun]:
    """What `prune` would delete of this corpus."""
    runs = [run for run in await Catalogue(connection).all() if run.corpus == corpus]
    return to_prune(runs, await Corpora(connection).current(corpus), keep=keep, before=before)


async def delete_row(connection: PostgresConnection, run_id: int) -> bool:
    """Delete the row of a run; False when it is under way, or another run or the corpus needs it."""
    with postgres_errors():
        try:
            async with connection.transaction():
                await connection.execute(query("lock-run"), run_id)
                await connection.execute(query("free-base"), run_id)
                return await connection.fetchval(query("delete-run"), run_id) is not None
        except asyncpg.ForeignKeyViolationError:  # it is needed since this moment
            return False


async def drop_orphans(
    connection: PostgresConnection, database: str, failpoint: Failpoint = no_failpoint
) -> list[Part]:
    """Drop the tables of runs that have no row any more, while no other process does; returns them.

    Raises PostgresUnavailable while a query that somebody runs holds one up, and PostgresRefused when something else
    depends on one.
    """
    async with name_lock(database, _NO_RUN):
        parts = await orphans(connection)
        with postgres_errors():
            if any(part.attached for part in parts):
                await _wait_for_snapshots(connection)
            for part in parts:
                if part.attached:
                    await _detach(connection, part)
                    failpoint("detached")
                await _drop(connection, part)
    failpoint("dropped")
    return parts


async def _wait_for_snapshots(connection: PostgresConnection) -> None:
    """Wait until nobody reads by a snapshot in which a run without a row is still current."""
    newest, deadline = await connection.fetchval(query("newest-snapshot")), monotonic() + READERS_SECONDS
    while await connection.fetchval(query("has-older-snapshots"), newest):
        if monotonic() > deadline:
            raise _held_up("that began before")
        await asyncio.sleep(READERS_POLL_SECONDS)


async def _detach(connection: PostgresConnection, part: Part) -> None:
    """Let the table be no partition any more. Readers that come meanwhile do not wait, and do not see it."""
    whole, name = part.of_run.whole(part.table), part.of_run.part(part.table)
    detach, finish = query("detach", table=whole, part=name), query("finish-detach", table=whole, part=name)
    try:
        await connection.execute(finish if part.pending else detach, timeout=READERS_SECONDS)
    except TimeoutError:
        raise _held_up(f"on {part.table}") from None


async def _drop(connection: PostgresConnection, part: Part) -> None:
    try:
        async with connection.transaction():
            await connection.execute(query("view-timeout"))
            await connection.execute(query("drop-part", part=part.of_run.part(part.table)))
    except asyncpg.LockNotAvailableError:
        raise _held_up(f"on {part.name}") from None
    except asyncpg.DependentObjectsStillExistError as error:
        raise PostgresRefused(f"Postgres: {first_line(error)}; drop what you made of {part.name} first") from error


def _held_up(which: str) -> PostgresUnavailable:
    return PostgresUnavailable(
        f"Postgres: a query or transaction {which} holds it up; call `shardcrawl prune` again when that has ended: "
        "it deletes what is left"
    )


async def _erase_unneeded(connection: PostgresConnection, client: Redis) -> None:
    """Erase runs in Redis that are over, or that Postgres does not have and on which nobody works."""
    runs = Runs(client)
    names = await runs.names()  # first: a run that is begun now is in Postgres before it is in Redis
    stored = {run.name: run for run in await Catalogue(connection).all()}
    for name in names:
        if not re.fullmatch(RUN_NAME, name):
            continue  # it is not ours, and its keys could be everybody's
        run = stored.get(name)
        if run.state.is_over if run else not await is_in_use(client, name):
            await runs.erase(name)
