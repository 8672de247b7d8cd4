"""What the smaller commands do, between the door and the rooms."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import asyncpg

from coordinator.errors import UsageError, first_line
from coordinator.model import Outcome, RunCounts, RunState
from coordinator.queue.registry import Runs
from coordinator.redis.connection import check_server, connect_redis
from coordinator.source import STANDARD_INPUT
from coordinator.status import RunSnapshot, read_counts, read_snapshot
from crawler.cli.progress import say
from crawler.local.child import ChildSpec
from crawler.local.run import (
    Addresses,
    Place,
    RunEnd,
    Voice,
    printer,
    release_on_death,
    run_at,
    services,
    with_signals,
)
from crawler.local.supervisor import ChildPlan, Supervisor
from crawler.opening import open_run
from crawler.store.catalogue import Catalogue, StoredRun
from crawler.store.postgres import connect_postgres


async def coordinate(place: Place, document: Mapping[str, Any], folder: str, voice: Voice) -> RunEnd:
    """Plan and tidy one run until it is complete; its workers run elsewhere."""
    return await run_at(_shared(place, "coordinate"), document, folder, voice, with_workers=False)


async def work(place: Place, voice: Voice, *, workers: int, grace: float) -> None:
    """Keep worker processes at every active run of this Redis until told to leave."""
    addresses = _shared(place, "work")
    await (await connect_postgres(addresses.database)).close()
    client = connect_redis(addresses.redis)
    try:
        for warning in await check_server(client, addresses.redis):
            say(voice.console, f"warning: {warning}")
        spec = ChildSpec(
            "worker", "worker", addresses.redis, addresses.database, level=voice.level, grace=grace, debug=voice.debug
        )
        plans = [ChildPlan(replace(spec, who=f"worker-{number + 1}")) for number in range(workers)]
        supervisor = Supervisor(plans, printer(voice.console), os.environ, release_on_death(client))
        with_signals(supervisor, voice.console)
        await supervisor.run()
    finally:
        await client.aclose()


async def status(place: Place, name: str | None) -> list[RunSnapshot]:
    """Snapshots of one run, or of every run that is not complete. Raises UsageError for a run nobody knows."""
    async with services(place, share=True) as addresses, _stored(addresses) as stored:
        client = connect_redis(addresses.redis)
        try:
            wanted = [run for run in stored if (run.name == name if name else not run.complete)]
            if name and not wanted:
                known = ", ".join(run.name for run in stored) or "none"
                raise UsageError(f"no run {name}; known runs: {known}")
            return [await _snapshot_of(client, run) for run in wanted]
        finally:
            await client.aclose()


async def _snapshot_of(client: Any, run: StoredRun) -> RunSnapshot:
    record = await Runs(client).find(run.name)
    if run.complete or record is None:
        live = await read_counts(client, record) if record is not None else RunCounts()
        final = replace(live, outcomes=dict(run.counts), total=sum(run.counts.values()) if run.complete else None)
        state = RunState.COMPLETE if run.complete else RunState.RUNNING
        return RunSnapshot(run.name, state, final, workers=0, leader=None)
    return await read_snapshot(client, record)


async def runs(place: Place) -> tuple[list[str], list[Sequence[Any]]]:
    """Every run as rows: name, state, keys by outcome, times."""
    async with services(place, share=True) as addresses, _stored(addresses) as stored:
        client = connect_redis(addresses.redis)
        try:
            records: list[Sequence[Any]] = []
            for run in stored:
                outcomes = dict(run.counts) if run.complete else (await _snapshot_of(client, run)).counts.outcomes
                keys = [outcomes.get(outcome, 0) for outcome in Outcome]
                state = "complete" if run.complete else "running"
                records.append([run.run_id, run.name, state, *keys, run.created_at, run.finished_at])
        finally:
            await client.aclose()
    return ["run_id", "run", "state", *(outcome.value for outcome in Outcome), "created_at", "finished_at"], records


async def rebuild(place: Place, name: str, folder: str) -> int:
    """Make a run's state in Redis anew from Postgres; returns how many keys are done. Raises UsageError."""
    async with services(place) as addresses, _stored(addresses) as stored:
        run = next((run for run in stored if run.name == name), None)
        if run is None or run.complete:
            why = "is complete: it needs no Redis any more" if run else "is not known"
            raise UsageError(f"run {name} {why}; `shardcrawl runs` lists every run")
        client = connect_redis(addresses.redis)
        try:
            await check_server(client, addresses.redis)
            record = await Runs(client).find(name)
            connection = await connect_postgres(addresses.database)
            try:
                await Catalogue(connection).void_epoch(run.run_id, run.epoch)
            finally:
                await connection.close()
            opened = await open_run(client, addresses.database, run.document, record.folder if record else folder)
            assert opened.record is not None
            return (await read_counts(client, opened.record)).done
        finally:
            await client.aclose()


async def retry(place: Place, name: str, reason: str | None) -> int:
    """Let the failed keys of a run go back into it; returns how many. Raises UsageError."""
    async with services(place) as addresses, _stored(addresses) as stored:
        run = next((run for run in stored if run.name == name), None)
        if run is None:
            raise UsageError(f"run {name} is not known; `shardcrawl runs` lists every run")
        if (run.document.get("source") or {}).get("path") == STANDARD_INPUT:
            raise UsageError(f"run {name} read standard input, which cannot be read again: give a file to a new run")
        connection = await connect_postgres(addresses.database)
        try:
            return await Catalogue(connection).reopen(run.run_id, reason)
        finally:
            await connection.close()


async def sql(place: Place, query: str) -> tuple[list[str], list[Sequence[Any]]]:
    """A query's columns and rows."""
    async with services(place, share=True) as addresses:
        return await query_rows(addresses.database, query)


async def query_rows(database: str, query: str) -> tuple[list[str], list[Sequence[Any]]]:
    """A query's columns and rows, in a transaction that only reads. Raises UsageError in Postgres' words."""
    connection = await connect_postgres(database)
    try:
        async with connection.transaction(readonly=True):
            statement = await connection.prepare(query)
            records = await statement.fetch()
            columns = [attribute.name for attribute in statement.get_attributes()]
            return columns, [tuple(record) for record in records]
    except asyncpg.ReadOnlySQLTransactionError as error:
        raise UsageError(f"sql: {first_line(error)}; `sql` only reads, use psql to change things") from error
    except asyncpg.PostgresError as error:
        raise UsageError(f"sql: {first_line(error)}") from error
    finally:
        await connection.close()


def _shared(place: Place, command: str) -> Addresses:
    if not place.redis or not place.database:
        raise UsageError(
            f"{command} serves several machines and needs shared services: set REDIS_URL and DATABASE_URL "
            "(on one machine `shardcrawl run` starts its own)"
        )
    return Addresses(place.redis, place.database)


@asynccontextmanager
async def _stored(addresses: Addresses) -> AsyncIterator[list[StoredRun]]:
    """The runs that Postgres knows, none when its schema is not made yet."""
    connection = await connect_postgres(addresses.database)
    try:
        await Catalogue(connection).prepare()
        yield await Catalogue(connection).all()
    finally:
        await connection.close()
