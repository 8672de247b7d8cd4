"""What becomes of a run that has an outcome for every key: it is complete, and published if it may be.

A published run can be published again at any time, and the corpus can go back to the one before.
"""

from __future__ import annotations

import logging

from coordinator.errors import EpochLost, UsageError
from coordinator.failpoints import Failpoint, no_failpoint
from coordinator.model import Outcome
from coordinator.queue.registry import RunRecord
from crawler.job.job import Job, read_job
from crawler.runs.gate import Facts, shortfall
from crawler.runs.prune import check_corpus
from crawler.store.catalogue import Catalogue, open_catalogue
from crawler.store.corpora import Corpora
from crawler.store.postgres import PostgresConnection, postgres_errors
from crawler.store.queries import query
from crawler.store.rows.stored_run import StoredRun
from crawler.store.tables import RunTables

logger = logging.getLogger(__name__)


async def finish_run(
    database: str, run: RunRecord | StoredRun, job: Job, failpoint: Failpoint = no_failpoint
) -> StoredRun:
    """Complete a run and decide whether readers see it; returns it as it is then. May be called again at any time.

    Raises EpochLost, RunCancelled, UsageError when the run is not there, PostgresUnavailable, PostgresRefused.
    """
    async with open_catalogue(database) as catalogue:
        corpora = Corpora(catalogue.connection)
        await catalogue.complete(RunTables.of(run), run.epoch, job.tables)
        failpoint("counted")
        while (complete := await _found(catalogue, run.name)).complete and complete.shortfall is None:
            # What readers see may change while this is decided and done: then it is decided anew.
            current, tables = await corpora.current(complete.corpus), RunTables.of(complete)
            if held_back := await _held_back(catalogue.connection, complete, job, current):
                logger.warning(
                    "run %s is not published: %s", complete.name, held_back, extra={"event": "run_held_back"}
                )
                await corpora.refuse(complete.run_id, held_back)
            else:
                await corpora.publish(complete.corpus, tables, job.tables, failpoint, instead_of=current)
        complete.refuse_cancelled()
        if not complete.complete:
            raise EpochLost(f"run {complete.name} was changed in Postgres while it ended")
        return complete


async def publish_run(
    connection: PostgresConnection, name: str, *, force: bool = False, failpoint: Failpoint = no_failpoint
) -> tuple[StoredRun, str]:
    """Let readers see this complete run, with `force` also when it falls short; returns it, and why it is held back.

    One that they see already is not held back: it may be that its files are missing.
    Raises UsageError when it is not known or not complete, RunCancelled, PostgresUnavailable, PostgresRefused.
    """
    catalogue = Catalogue(connection)
    run = await _found(catalogue, name)
    run.refuse_cancelled()
    if not run.complete:
        raise UsageError(f"run {name} is not complete: finish it with `shardcrawl run JOB` or `coordinate JOB` first")
    job = read_job(run.document, run.folder or ".")
    is_seen = await Corpora(connection).current(run.corpus) == run.run_id
    if not (force or is_seen) and (falls_short := await _falls_short(connection, run, job)):
        return run, falls_short
    await Corpora(connection).publish(run.corpus, RunTables.of(run), job.tables, failpoint)
    return run, ""


async def roll_back(connection: PostgresConnection, corpus: str) -> tuple[str, str]:
    """Let readers see the run that was published before the current one; returns the names of both, the new one first.

    Raises UsageError when there is none, PostgresUnavailable, PostgresRefused.
    """
    current = await Catalogue(connection).current(corpus)
    if current is None:
        await check_corpus(connection, corpus)
        raise UsageError(f"corpus {corpus} has no run that readers see; `shardcrawl runs` lists every run")
    with postgres_errors():
        async with connection.transaction():  # the corpus first, as who publishes locks it before the run
            if await connection.fetchval(query("lock-corpus"), corpus) != current.run_id:
                raise UsageError(
                    f"corpus {corpus}: another command has just changed which run readers see; "
                    "`shardcrawl runs` shows which one it is"
                )
            name = await connection.fetchval(query("roll-back"), corpus, current.run_id)
    if name is None:
        raise UsageError(f"corpus {corpus} has no complete run that was published before {current.name}")
    return str(name), current.name


async def _found(catalogue: Catalogue, name: str) -> StoredRun:
    run = await catalogue.find(name)
    if run is None:
        raise UsageError(f"run {name} is not in Postgres; `shardcrawl runs` lists every run")
    return run


async def _held_back(connection: PostgresConnection, run: StoredRun, job: Job, current: int | None) -> str:
    """Why the run is not published by itself in the place of the `current` one, "" when it is."""
    if current is not None and current > run.run_id:
        return f"corpus {run.corpus} has a newer run that is published; `shardcrawl publish {run.name}` goes back to it"
    if current == run.run_id:
        return ""  # readers see it, and `retry` was called
    if current is not None and run.base_run is not None and current < run.base_run:
        return (
            f"readers of corpus {run.corpus} went back behind the run with which this refresh began; "
            f"`shardcrawl publish {run.name}` lets them see it"
        )
    if falls_short := await _falls_short(connection, run, job):
        return falls_short
    if job.publish.mode == "manual":
        return f"the job publishes by hand: `shardcrawl publish {run.name}`"
    return ""


async def _falls_short(connection: PostgresConnection, run: StoredRun, job: Job) -> str:
    """Which bounds of `[publish]` the run does not keep, and what to do; "" when it keeps all of them."""
    found = shortfall(job.publish, await _facts(connection, run, job))
    return f"{found}. If that is right: shardcrawl publish {run.name} --force" if found else ""


async def _facts(connection: PostgresConnection, run: StoredRun, job: Job) -> Facts:
    """What the bounds of `[publish]` are about; what no bound of this job needs is not counted."""
    bounds, part = job.publish, RunTables.of(run).pages
    may_be_empty = job.run.since is not None or any(table.mode == "merge" for table in job.tables)
    with_rows = run.counts.get(Outcome.STORED, 0) + run.counts.get(Outcome.UNCHANGED, 0)
    is_empty = not (may_be_empty or with_rows)
    incomplete, compared = 0, {"keys_with_rows": with_rows}
    with postgres_errors():
        if bounds.max_incomplete is not None:
            incomplete = await connection.fetchval(query("count-broken-lists", part=part))
        current = await Catalogue(connection).current(run.corpus)
        if current is not None and (is_empty or (bounds.max_gone, bounds.min_keys) != (None, None)):
            async with connection.transaction(readonly=True):
                await connection.execute(query("work-memory"))
                compare = query("compare-with-current", part=part, before=RunTables.of(current).pages)
                compared = dict(await connection.fetchrow(compare) or {})
    return Facts(
        keys=sum(run.counts.values()),
        failed=run.counts.get(Outcome.FAILED, 0),
        denied=sum(reason.keys for reason in run.reasons if reason.denied),
        incomplete=incomplete,
        may_be_empty=may_be_empty,
        **compared,
    )
