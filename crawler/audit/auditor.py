"""The auditor: reads what source, Postgres, Redis and an upstream's log say about one run, and compares them.

It changes nothing: digests of the source go into a temporary table of a transaction that is rolled back. Its memory
does not grow with the corpus.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

from redis.asyncio import Redis

from coordinator.errors import SourceError, UsageError
from coordinator.model import RunState
from coordinator.queue.registry import RunInRedis, RunRecord, Runs
from coordinator.redis.connection import as_text, connect_redis, translate_redis_errors
from coordinator.redis.keys import RunKeys
from coordinator.status import read_snapshot
from crawler.audit import checks
from crawler.audit.checks import (
    MAX_EXAMPLES,
    Finding,
    InPostgres,
    InRedis,
    InSource,
    LoggedRequests,
    Orphans,
    Sessions,
    StoredWithoutRecord,
)
from crawler.audit.digests import AUDIT_CHUNK_KEYS, add_found_digests, check_origins, keys_with_digests, load_digests
from crawler.audit.upstream_log import UpstreamLog
from crawler.audit.versions import check_carried, check_current, check_unique
from crawler.corpus import is_rereadable, with_source_database
from crawler.job.job import Job, read_job
from crawler.local.services import Place, services
from crawler.store.catalogue import Catalogue
from crawler.store.corpora import Corpora
from crawler.store.postgres import PostgresConnection, connect_postgres, postgres_errors
from crawler.store.queries import query
from crawler.store.rows.stored_run import StoredRun
from crawler.store.tables import PAGES, RunTables, table_names

COMMANDS_PER_PIPELINE = 2000
# How long a session may be idle in a transaction. A worker's session is idle for milliseconds, between two statements
# of a batch. While a run goes on, the limit is the time-out after which Postgres ends such a session.
MAX_IDLE_SECONDS = 1.0
MAX_IDLE_SECONDS_IN_A_RUN = 30.0


async def audit(
    place: Place, name: str, folder: str, log: Path | None, allowed: int, environ: Mapping[str, str]
) -> list[Finding]:
    """Compare all that is known about a run; `folder` is where relative paths begin when Redis lost the run.

    `log` is the upstream's log, `allowed` how many requests in it may repeat a key. Raises UsageError for an unknown
    run or a log that cannot be read, RedisUnavailable, RedisRefused, PostgresUnavailable, PostgresRefused.
    """
    async with services(place, share=True) as addresses:
        client = connect_redis(addresses.redis)
        try:
            connection = await connect_postgres(addresses.database)
            try:
                await Catalogue(connection).prepare()
                complete = partial(with_source_database, database=addresses.database, environ=environ)
                return await _findings(client, connection, name, folder, log, allowed, complete)
            finally:
                await connection.close()
        finally:
            await client.aclose()


async def _findings(
    client: Redis,
    connection: PostgresConnection,
    name: str,
    folder: str,
    log: Path | None,
    allowed: int,
    complete: Callable[[Job], Job],
) -> list[Finding]:
    known = await Runs(client).find(name)
    before = await Catalogue(connection).find(name)
    record = before.record if before else None
    # Redis first: what it calls done was committed before, so the snapshot of Postgres that is taken now has it.
    in_redis = await _in_redis(client, record) if known and record else None
    with postgres_errors():
        transaction = connection.transaction(isolation="repeatable_read")
        await transaction.start()
        await connection.execute(query("audit-settings"))
        stored = await _find_run(Catalogue(connection), name, in_redis=known is not None)
        runs = await Catalogue(connection).all()
        job = complete(read_job(stored.document, stored.folder or folder))
        in_source = await _in_source(connection, stored, job, record)
        in_postgres = await _in_postgres(connection, stored, job)
        versions = [check_current(runs, stored, await Corpora(connection).current(stored.corpus))]
        versions += await check_unique(connection, stored, job)
        versions += await check_carried(connection, stored, runs, job)
        logged = await _logged(connection, log, job) if log else None
        origins = [await check_origins(connection, RunTables.of(stored))] if job.follows else []
        await transaction.rollback()
        max_idle_seconds = MAX_IDLE_SECONDS if stored.complete else MAX_IDLE_SECONDS_IN_A_RUN
        rows = await connection.fetch(query("idle-sessions"), max_idle_seconds)
        staging = await connection.fetchval(query("staging-tables"), RunTables.of(stored).staging_name)
    if stored.complete and record and in_redis and in_redis.state is not RunState.COMPLETE:
        in_redis = await _in_redis(client, record, complete=True)  # a run becomes complete in Redis after Postgres
    sessions = Sessions(staging=staging, idle=[f"pid {row['pid']} for {row['seconds']} s" for row in rows])
    redis = _comparable_redis(in_redis, known, stored)
    return [*checks.compare(in_source, in_postgres, redis, sessions, logged, allowed), *origins, *versions]


async def _find_run(catalogue: Catalogue, name: str, *, in_redis: bool) -> StoredRun:
    """The run's row in Postgres. Raises UsageError when there is none."""
    stored = await catalogue.find(name)
    if stored is not None:
        return stored
    if in_redis:
        raise UsageError(f"run {name} is in Redis but not in Postgres: is DATABASE_URL the right one?")
    runs = ", ".join(run.name for run in await catalogue.all()) or "none"
    raise UsageError(f"no run {name}; known runs: {runs}")


def _comparable_redis(in_redis: InRedis | None, known: RunInRedis | None, stored: StoredRun) -> InRedis | Finding:
    """What Redis has of the run, when it has the same epoch as Postgres; else a finding that says what it has."""
    if in_redis is not None and known is not None and known.epoch == stored.epoch:
        return in_redis
    if stored.complete or stored.cancelled:
        found = "not there" if known is None else "belongs to another beginning of the run"
        return Finding("the run in Redis", found, "not needed any more", known is None)
    found = "not there" if known is None else "void"
    return Finding("the run in Redis", found, "rebuilt from Postgres by the next `shardcrawl run`", True)


async def _in_redis(client: Redis, record: RunRecord, *, complete: bool = False) -> InRedis:
    keys, layout = RunKeys(record.name), record.layout
    now = await read_snapshot(client, record.name, record.total)
    complete = complete or now.state is RunState.COMPLETE
    with translate_redis_errors():
        return InRedis(
            state=now.state,
            counts=now.counts,
            skipped=int(await client.hget(keys.state, "skipped") or 0),
            done=await _sum(client, "SCARD", [keys.done(bucket) for bucket in range(layout.buckets)]),
            blocks=await _sum(client, "XLEN", [keys.stream(shard) for shard in range(layout.shards)]),
            workers=now.workers,
            stray=await _stray(client, record, complete=complete),
        )


async def _sum(client: Redis, command: str, keys: Sequence[str]) -> int:
    """The sum of what a Redis command returns for each of the keys."""
    total = 0
    for start in range(0, len(keys), COMMANDS_PER_PIPELINE):
        async with client.pipeline(transaction=False) as pipe:
            for key in keys[start : start + COMMANDS_PER_PIPELINE]:
                pipe.execute_command(command, key)
            total += sum(await pipe.execute())
    return total


async def _stray(client: Redis, record: RunRecord, *, complete: bool) -> list[str]:
    """The run's keys that `coordinator.redis.keys` does not know; of a complete run only those without a lifetime."""
    keys, layout = RunKeys(record.name), record.layout
    known = {*keys.all(layout.shards, layout.buckets), *(keys.all_known(layout.buckets) if layout.follows else ())}
    if complete:
        known -= {*keys.queue(layout.shards), keys.leader}
    stray = set()
    async for found in client.scan_iter(match=f"shardcrawl:{{{record.name}}}:*", count=1000):
        key = as_text(found)
        if key not in known and (complete or not key.startswith((*keys.lasting_prefixes, keys.figures("")))):
            stray.add(key)
    return sorted([key for key in stray if not complete or await client.ttl(key) == -1])


async def _in_source(
    connection: PostgresConnection, stored: StoredRun, job: Job, record: RunRecord | None
) -> InSource | Finding:
    if not is_rereadable(job):
        return Finding("the source", "a pipe or standard input", "not compared: it cannot be read again", True)
    try:
        lines, fingerprint = await load_digests(connection, job)
        if job.follows:
            lines += await add_found_digests(connection, RunTables.of(stored), job.most_found)
    except SourceError as error:
        return Finding("the source", "cannot be read", "readable", False, str(error))
    part = RunTables.of(stored).pages
    await connection.execute("ANALYZE audit_source_r0")
    row = await connection.fetchrow(query("audit-source", part=part))
    assert row is not None
    missing = await connection.fetch(query("missing-digests", part=part), MAX_EXAMPLES) if stored.complete else []
    return InSource(
        lines=lines,
        keys=row["keys"],
        missing=row["missing"],
        unknown=row["unknown"],
        follows=job.follows,
        changed=record is not None and bool(record.fingerprint) and fingerprint != record.fingerprint,
        missing_examples=await asyncio.to_thread(keys_with_digests, job, {row["digest"] for row in missing}),
        unknown_examples=[row["key"] for row in await connection.fetch(query("unknown-keys", part=part), MAX_EXAMPLES)],
    )


async def _in_postgres(connection: PostgresConnection, stored: StoredRun, job: Job) -> InPostgres:
    of_run, tables = RunTables.of(stored), [PAGES, *table_names(job.tables)]
    parts, pages = {table: of_run.part(table) for table in tables}, of_run.pages
    outcomes = await connection.fetch(query("count-outcomes", part=pages))
    orphans = []
    for table in job.tables:
        kept = query("kept-of-an-earlier-run") if table.mode == "merge" else query("nothing-kept")
        statement = query("orphan-records", part=parts[table.name], pages=pages, kept=kept)
        row = await connection.fetchrow(statement, MAX_EXAMPLES)
        assert row is not None
        orphans.append(Orphans(table.name, row["records"], row["examples"]))
    empty = None
    if job.tables:
        has_no_record = " AND ".join(query("has-no-record", part=parts[table]) for table in tables[1:])
        statement = query("stored-without-record", pages=pages, has_no_record=has_no_record)
        row = await connection.fetchrow(statement, MAX_EXAMPLES, stored.carried_run is not None)
        assert row is not None
        empty = StoredWithoutRecord(row["keys"], row["examples"], allowed=job.parse.no_record in (None, "stored"))
    return InPostgres(
        complete=stored.complete,
        counts=stored.counts,
        pages={row["outcome"]: row["keys"] for row in outcomes},
        digests=await connection.fetchval(query("count-digests", part=pages)),
        orphans=orphans,
        empty=empty,
        tables=tables,
        attached=[
            table
            for table, part in parts.items()
            if await connection.fetchval(query("is-attached"), of_run.whole(table), part)
        ],
        published=stored.published_at is not None,
    )


async def _logged(connection: PostgresConnection, log: Path, job: Job) -> LoggedRequests:
    """The keys in the upstream's log, counted in a temporary table. Raises UsageError when it cannot be read."""
    await connection.execute(query("make-audit-requests"))
    read = UpstreamLog(log, job.request)
    keys = read.keys()
    while batch := await asyncio.to_thread(lambda: [(key,) for key in islice(keys, AUDIT_CHUNK_KEYS)]):
        await connection.copy_records_to_table("audit_requests_r0", records=batch, columns=["key"])
    row = await connection.fetchrow(query("audit-requests"), MAX_EXAMPLES)
    assert row is not None
    return LoggedRequests(
        total=row["total"],
        distinct=row["distinct"],
        examples=row["examples"],
        other_lines=read.other_lines,
        other_line=read.other_line,
    )
