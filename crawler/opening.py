"""Open a run by its name: make it, go on with it, or rebuild what Redis lost from Postgres."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from coordinator.errors import EpochLost, UsageError
from coordinator.failpoints import Failpoint, no_failpoint
from coordinator.model import Epoch, RunState
from coordinator.queue.done import DoneSet
from coordinator.queue.registry import RunRecord, Runs
from coordinator.queue.sharding import Layout
from coordinator.redis.keys import RunKeys
from coordinator.source import STANDARD_INPUT, Cursor, KeyRule, Source, open_source
from crawler.job.job import Job, read_job
from crawler.store.catalogue import Catalogue, StoredRun
from crawler.store.postgres import connect_postgres
from crawler.store.queries import query

logger = logging.getLogger(__name__)

# What makes a run this run: with another source or template its keys would mean something else.
_IDENTITY = (("source", None), ("request", "url"), ("request", "keys_per_request"), ("tables", None))


@dataclass(frozen=True, slots=True)
class OpenedRun:
    """A run that can be worked on; `complete` holds its row when there is nothing left to do."""

    record: RunRecord | None
    job: Job
    resumed: bool
    complete: StoredRun | None = None


def open_corpus(job: Job, cursor: Cursor) -> Source:
    """The job's source behind a cursor. Raises SourceError."""
    several = job.request.keys_per_request > 1
    rule = KeyRule(absolute_url=job.request.url is None, separator=job.request.separator if several else None)
    return open_source(job.source.path, job.source.python, cursor=cursor, key_rule=rule, folder=Path(job.folder))


async def readable(job: Job) -> None:
    """See that the source can be opened, before anything is started for it. Raises SourceError."""
    await _survey(job, count=False)


async def open_run(
    client: Redis, database: str, document: Mapping[str, Any], folder: str, failpoint: Failpoint = no_failpoint
) -> OpenedRun:
    """Make the run that the document names, or go on with it. One process at a time opens a run.

    Raises UsageError, SourceError, EpochLost, PostgresRefused and what Redis and Postgres raise when away.
    """
    job = read_job(document, folder)
    connection = await connect_postgres(database)
    try:
        catalogue = Catalogue(connection)
        await catalogue.prepare()
        async with _alone(database, job.run.name):
            return await _open(client, Runs(client), catalogue, document, job, failpoint)
    finally:
        await connection.close()


async def _open(
    client: Redis, runs: Runs, catalogue: Catalogue, document: Mapping[str, Any], job: Job, failpoint: Failpoint
) -> OpenedRun:
    name = job.run.name
    stored, record = await catalogue.find(name), await runs.find(name)
    if stored is None and record is not None:
        raise EpochLost(
            f"run {name} is in Redis but not in Postgres: is DATABASE_URL the right one? "
            "To begin anew give the run another --name"
        )
    if stored is not None:
        _check_same(stored, document)
    if stored is not None and stored.complete:
        if record is not None and await runs.state(name) is not RunState.COMPLETE:
            await runs.finish(record, stored.counts)  # whoever took the final counts died before it told Redis
        return OpenedRun(record, job, resumed=True, complete=stored)
    if stored is not None and record is not None and stored.epoch == record.epoch:
        await _check_source(job, record)
        record = await runs.rewrite(record, document, job.folder)
        return OpenedRun(record, job, resumed=True)
    fingerprint, total = await _survey(job)
    record = RunRecord(
        name=name,
        run_id=0,
        epoch=Epoch(secrets.token_hex(8)),
        layout=Layout.of(total, job.run.shards),
        document=document,
        folder=job.folder,
        fingerprint=fingerprint,
        total=total,
    )
    if stored is None:
        run_id = await catalogue.make(name, document, record.epoch, job.tables)
        record = replace(record, run_id=run_id)
        failpoint("made")
        await runs.make(record)
        return OpenedRun(record, job, resumed=False)
    # Postgres gets the new epoch last: until it has it, no worker joins, and a crash here is begun again.
    record = replace(record, run_id=stored.run_id)
    await runs.make(record)
    logger.warning("Redis does not know run %s as Postgres does: its done set is rebuilt from Postgres", name)
    done = DoneSet(client, RunKeys(name), record.layout, record.epoch)
    await done.rebuild(catalogue.digests(stored.run_id))
    failpoint("rebuilt")
    await catalogue.change_epoch(stored.run_id, record.epoch)
    return OpenedRun(record, job, resumed=True)


def _check_same(stored: StoredRun, document: Mapping[str, Any]) -> None:
    for section, key in _IDENTITY:
        then, now = (doc.get(section) for doc in (stored.document, document))
        if key is not None:
            then, now = (then or {}).get(key), (now or {}).get(key)
        if then != now:
            what = f"[{section}] {key}" if key else f"[{section}]"
            raise UsageError(
                f"run {stored.name} was begun with another {what} ({_short(then)}, now {_short(now)}): "
                "give the new run another --name"
            )


async def _check_source(job: Job, record: RunRecord) -> None:
    if record.fingerprint:
        fingerprint, _ = await _survey(job, count=False)
        if fingerprint != record.fingerprint:
            raise UsageError(
                f"source {job.source.path} has changed since run {record.name} began: "
                "bring the old file back, or give the new run another --name"
            )


async def _survey(job: Job, *, count: bool = True) -> tuple[str, int | None]:
    """The source's fingerprint and about how many keys it has, without reading from a pipe."""
    if job.source.path == STANDARD_INPUT:
        return "", None

    def look() -> tuple[str, int | None]:
        source = open_corpus(job, Cursor())
        try:
            return source.fingerprint(), source.estimate() if count else None
        finally:
            source.close()

    return await asyncio.to_thread(look)


@asynccontextmanager
async def _alone(database: str, name: str) -> AsyncIterator[None]:
    """Hold a lock on the run's name for as long as it is being opened, on a connection of its own."""
    connection = await connect_postgres(database)
    try:
        async with connection.transaction():
            await connection.execute(query("lock-name"), name)
            yield
    finally:
        connection.terminate()


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
