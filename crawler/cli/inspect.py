"""Commands that only look: status, runs, sql, audit."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import click
from redis.asyncio import Redis
from rich.console import Console

from coordinator.errors import ShardcrawlError, UsageError, first_line
from coordinator.model import Outcome, RunCounts, RunState
from coordinator.queue.registry import Runs
from coordinator.redis.connection import connect_redis
from coordinator.status import RunSnapshot, read_counts, read_snapshot
from crawler.audit.auditor import audit
from crawler.cli import screen
from crawler.cli.options import command, json_option, place_from, place_options, print_json, run_async
from crawler.cli.progress import say
from crawler.local.services import Place, services
from crawler.store.catalogue import StoredRun, open_catalogue
from crawler.store.postgres import connect_postgres


@command("status")
@click.argument("name", metavar="RUN", required=False)
@place_options("warning")
@json_option
def status_command(name: str | None, as_json: bool, **options: Any) -> None:
    """Show where a run stands, or every run that is not complete. Example: shardcrawl status my-run --json"""
    found = run_async(_snapshots(place_from(options), name))
    if as_json:
        listed = [screen.snapshot_json(one) for one in found]
        print_json(listed[0] if name else listed)
        return
    console = Console()
    if not found:
        say(console, "no run is under way; `shardcrawl runs` lists the complete ones")
    for one in found:
        screen.print_snapshot(one, console)


@command("runs")
@place_options("warning")
@json_option
def runs_command(as_json: bool, **options: Any) -> None:
    """List every run, with its counts. Example: shardcrawl runs --json"""
    columns = ["run_id", "run", "state", *(outcome.value for outcome in Outcome), "created_at", "finished_at"]
    screen.print_rows(columns, run_async(_all_runs(place_from(options))), as_json=as_json)


@command("sql")
@click.argument("query")
@place_options("warning")
@json_option
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
def sql_command(query: str, as_json: bool, as_csv: bool, **options: Any) -> None:
    """Query the results; reads only. Example: shardcrawl sql "select outcome, count(*) from pages group by 1" """
    columns, records = run_async(_query_place(place_from(options), query))
    screen.print_rows(columns, records, as_json=as_json, as_csv=as_csv)


@command("audit")
@click.argument("name", metavar="RUN")
@place_options("warning")
@click.option(
    "--requests",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The upstream's log, a path or URL last in each line: no key was asked for twice.",
)
@click.option(
    "--allowed",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    metavar="N",
    help="Requests in that log that may repeat a key: retries, and what killed workers had in flight.",
)
@json_option
def audit_command(name: str, requests: Path | None, allowed: int, as_json: bool, **options: Any) -> None:
    """Compare what source, Postgres and Redis say about a run; changes nothing. Example: shardcrawl audit my-run

    Exit code 0 when all of it agrees, 1 when not.
    """
    findings = run_async(audit(place_from(options), name, str(Path.cwd()), requests, allowed))
    if as_json:
        print_json(findings)
    else:
        rows = [(one.what, one.found, one.expected, "ok" if one.ok else "BROKEN", one.note) for one in findings]
        screen.print_rows(["what", "found", "expected", "", "note"], rows)
    if broken := sum(not one.ok for one in findings):
        raise ShardcrawlError(
            f"run {name}: {broken} of {len(findings)} findings do not hold; `--json` shows their notes in full"
        )


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


async def _query_place(place: Place, query: str) -> tuple[list[str], list[Sequence[Any]]]:
    async with services(place, share=True) as addresses:
        return await query_rows(addresses.database, query)


async def _snapshots(place: Place, name: str | None) -> list[RunSnapshot]:
    """Snapshots of one run, or of every run that is not complete. Raises UsageError for an unknown run."""
    async with _known_runs(place) as (client, stored):
        wanted = [run for run in stored if (run.name == name if name else not run.complete)]
        if name and not wanted:
            known = ", ".join(run.name for run in stored) or "none"
            raise UsageError(f"no run {name}; known runs: {known}")
        return [await _snapshot_of(client, run) for run in wanted]


async def _all_runs(place: Place) -> list[Sequence[Any]]:
    """Every run as a row: name, state, keys by outcome, times."""
    async with _known_runs(place) as (client, stored):
        rows: list[Sequence[Any]] = []
        for run in stored:
            outcomes = dict(run.counts) if run.complete else (await _snapshot_of(client, run)).counts.outcomes
            keys = [outcomes.get(outcome, 0) for outcome in Outcome]
            state = "complete" if run.complete else "running"
            rows.append([run.run_id, run.name, state, *keys, run.created_at, run.finished_at])
        return rows


async def _snapshot_of(client: Redis, run: StoredRun) -> RunSnapshot:
    """A run as Redis knows it; with Postgres' final counts once it is complete, without workers when Redis lost it."""
    record = await Runs(client).find(run.name)
    if record is not None and not run.complete:
        return await read_snapshot(client, record)
    live = await read_counts(client, record) if record is not None else RunCounts()
    final = replace(live, outcomes=dict(run.counts), total=sum(run.counts.values()) if run.complete else None)
    state = RunState.COMPLETE if run.complete else RunState.RUNNING
    return RunSnapshot(run.name, state, final, workers=0, leader=None)


@asynccontextmanager
async def _known_runs(place: Place) -> AsyncIterator[tuple[Redis, list[StoredRun]]]:
    """A client of Redis, and every run that Postgres knows."""
    async with services(place, share=True) as addresses:
        async with open_catalogue(addresses.database) as catalogue:
            await catalogue.prepare()
            stored = await catalogue.all()
        client = connect_redis(addresses.redis)
        try:
            yield client, stored
        finally:
            await client.aclose()
