"""What becomes of a run that has an outcome for every key: it is complete, and published if it may be."""

from __future__ import annotations

import logging

from coordinator.errors import UsageError
from coordinator.failpoints import Failpoint, no_failpoint
from coordinator.queue.registry import RunRecord
from crawler.job.job import Job
from crawler.store.catalogue import Catalogue
from crawler.store.corpora import Corpora
from crawler.store.postgres import connect_postgres
from crawler.store.rows.stored_run import StoredRun
from crawler.store.tables import RunTables

logger = logging.getLogger(__name__)


async def finish_run(
    database: str, run: RunRecord | StoredRun, job: Job, failpoint: Failpoint = no_failpoint
) -> StoredRun:
    """Complete a run and decide whether readers see it; returns it as it is then. May be called again at any time.

    Raises EpochLost, UsageError when the run is not there, PostgresUnavailable, PostgresRefused.
    """
    connection = await connect_postgres(database)
    try:
        catalogue, corpora = Catalogue(connection), Corpora(connection)
        await catalogue.complete(RunTables.of(run), run.epoch, job.tables)
        failpoint("counted")
        complete = await _found(catalogue, run.name)
        if complete.shortfall is None:
            if shortfall := await _shortfall(corpora, complete, job):
                logger.warning("run %s is not published: %s", complete.name, shortfall)
                await corpora.refuse(complete.run_id, shortfall)
            else:
                await corpora.publish(complete.corpus, RunTables.of(complete), job.tables, failpoint)
        return await _found(catalogue, run.name)
    finally:
        connection.terminate()


async def _found(catalogue: Catalogue, name: str) -> StoredRun:
    run = await catalogue.find(name)
    if run is None:
        raise UsageError(f"run {name} is no longer in Postgres: somebody deleted it")
    return run


async def _shortfall(corpora: Corpora, run: StoredRun, job: Job) -> str:
    """Why the run is not published by itself, "" when it is."""
    current = await corpora.current(run.corpus)
    if current is not None and current > run.run_id:
        return f"corpus {run.corpus} has a newer run that is published; `shardcrawl publish {run.name}` goes back to it"
    if job.publish.mode == "manual":
        return f"[publish] mode is manual; `shardcrawl publish {run.name}` publishes it"
    return ""
