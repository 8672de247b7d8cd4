"""Commands that only look: status, runs, sql, audit."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO

import asyncpg
import click
from redis.asyncio import Redis
from rich.console import Console

from coordinator.errors import ShardcrawlError, UsageError, first_line, redacted
from coordinator.model import outcomes_json
from coordinator.redis.connection import connect_redis, translate_redis_errors
from coordinator.status import RunSnapshot
from crawler.audit.auditor import audit
from crawler.cli.display import screen
from crawler.cli.display.live import watch_runs
from crawler.cli.display.overview import Overview, reasons_of, snapshot_of, wanted_runs
from crawler.cli.display.progress import byte_words, say
from crawler.cli.display.snapshot import print_snapshot, snapshot_json
from crawler.cli.options import command, json_option, place_from, place_options, print_json, run_async
from crawler.local.services import Place, services
from crawler.runs.prune import run_sizes
from crawler.store.catalogue import Catalogue
from crawler.store.postgres import PostgresConnection, connect_postgres, connect_reader
from crawler.store.queries import query
from crawler.store.reasons import ReasonCount
from crawler.store.rows.ended import SAMPLED_KEYS, is_sample
from crawler.store.rows.stored_run import StoredRun

# How a type becomes JSON. Postgres' own form of a numeric is a number, which most readers of JSON would round.
_JSON_FORMS = {"numeric": "{}::text", "numeric[]": "{}::text[]", "bytea": "encode({}, 'hex')"}


@command("status")
@click.argument("name", metavar="RUN", required=False)
@place_options("warning")
@json_option
@click.option("--watch", "live", is_flag=True, help="Show it live in the terminal, until q or Ctrl-C.")
def status_command(name: str | None, as_json: bool, live: bool, **options: Any) -> None:
    """Show where a run stands, or every run that is not complete. Example: shardcrawl status my-run --json"""
    if live:
        console = Console()
        if as_json or not console.is_terminal or console.is_dumb_terminal:
            raise UsageError("status --watch needs a terminal; a program calls `status --json` again and again")
        run_async(_watch(place_from(options), name, console))
        return
    found = run_async(run_status(place_from(options), name))
    if as_json:
        listed = [
            {
                **snapshot_json(one),
                "reasons": screen.reasons_json(reasons),
                "reasons_sampled": is_sample(run, reasons),
                "shortfall": run.shortfall,
            }
            for one, run, reasons in found
        ]
        print_json(listed[0] if name else listed)
        return
    console = Console()
    if not found:
        say(console, "no run is under way; `shardcrawl runs` lists the complete ones")
    for one, run, reasons in found:
        print_snapshot(one, console)
        screen.print_reasons(reasons, console)
        if is_sample(run, reasons):
            say(console, f"of an outcome with more keys than these, a sample of {SAMPLED_KEYS:,} is counted")
        if run.shortfall:
            say(console, f"it is not published: {run.shortfall}")


@command("runs")
@place_options("warning")
@json_option
def runs_command(as_json: bool, **options: Any) -> None:
    """List every run: its corpus, keys, bytes, and which one readers see. Example: shardcrawl runs --json"""
    runs = run_async(all_runs(place_from(options)))
    if not as_json:
        runs = [run | {"current": "yes" if run["current"] else "", "size": byte_words(run["size"])} for run in runs]
    screen.print_rows(list(runs[0]) if runs else ["name"], [list(run.values()) for run in runs], as_json=as_json)


@command("sql")
@click.argument("query")
@place_options("warning")
@click.option("--json", "form", flag_value="json", help="Print a JSON list, row by row.")
@click.option("--jsonl", "form", flag_value="jsonl", help="Print JSON, one row a line.")
@click.option("--csv", "form", flag_value="csv", help="Print CSV as COPY does, every value exact.")
def sql_command(query: str, form: str | None, **options: Any) -> None:
    """Query the results; reads only. Example: shardcrawl sql "select outcome, count(*) from pages group by 1"

    The forms for programs are UTF-8, and hold no row in memory. Without one, all rows are read and shown as a table.
    """
    run_async(_query_place(place_from(options), query, form))


@command("audit")
@click.argument("name", metavar="RUN")
@place_options("warning")
@click.option(
    "--requests",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The upstream's log, nginx's or with a path or URL last in each line: no key was asked for twice.",
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
    findings = run_async(audit(place_from(options), name, str(Path.cwd()), requests, allowed, os.environ))
    if as_json:
        print_json(findings)
    else:
        rows = [(one.what, one.found, one.expected, "ok" if one.ok else "BROKEN", one.note) for one in findings]
        screen.print_rows(["what", "found", "expected", "", "note"], rows)
    if broken := sum(not one.ok for one in findings):
        raise ShardcrawlError(
            f"run {name}: {broken} of {len(findings)} findings do not hold; `--json` shows their notes in full"
        )


async def query_rows(database: str, statement: str) -> tuple[list[str], list[Sequence[Any]]]:
    """A query's columns and rows, in a transaction that only reads. Raises UsageError in Postgres' words."""
    async with _reading(database) as connection:
        prepared = await connection.prepare(statement)
        records = await prepared.fetch()
        return [attribute.name for attribute in prepared.get_attributes()], [tuple(record) for record in records]


async def write_rows(database: str, statement: str, form: str, out: BinaryIO) -> None:
    """Write a query's rows as csv, json or jsonl. Raises UsageError in Postgres' words."""
    if not await _copy_rows(database, statement, form, out):
        out.write(screen.rows_as(form, *await query_rows(database, statement)))


async def _copy_rows(database: str, statement: str, form: str, out: BinaryIO) -> bool:
    """Write a query's rows by COPY; False for a statement that COPY does not take, like SHOW."""
    async with _reading(database) as connection:
        attributes = (await connection.prepare(statement)).get_attributes()
        # A line of its own, so that a comment at the statement's end does not take the bracket behind it.
        inner = f"{statement.strip().rstrip(';')}\n"
        options: dict[str, Any] = {"header": True}
        writer = _Lines(out)
        if form != "csv":
            names = [f"c{number}" for number in range(len(attributes))]
            columns = ", ".join(
                f"{_JSON_FORMS.get(attribute.type.name, '{}').format(name)} AS {_quoted(attribute.name)}"
                for name, attribute in zip(names, attributes, strict=True)
            )
            inner = query("rows-as-json", query=inner, names=", ".join(names), columns=columns)
            # No JSON has these characters, so that no line of it is quoted.
            options = {"quote": "\1", "delimiter": "\2"}
            writer = _JsonList(out) if form == "json" else writer
        await connection.execute(query("exact-output"))
        try:
            await connection.copy_from_query(inner, output=writer.write, format="csv", **options)
        except (asyncpg.PostgresSyntaxError, asyncpg.FeatureNotSupportedError):
            if writer.has_begun:
                raise
            return False
    writer.end()
    return True


class _Lines:
    """Rows as COPY sends them."""

    def __init__(self, out: BinaryIO) -> None:
        self.has_begun = False
        self._out = out

    async def write(self, lines: bytes) -> None:
        self.has_begun = True
        self._out.write(lines)

    def end(self) -> None:
        self._out.flush()


class _JsonList(_Lines):
    """Rows that are JSON, one a line, as one JSON list."""

    _between = b"[\n"

    async def write(self, lines: bytes) -> None:
        rows = lines.removesuffix(b"\n")
        await super().write(self._between + rows.replace(b"\n", b",\n"))
        self._between = b",\n" if len(rows) < len(lines) else b""

    def end(self) -> None:
        self._out.write(b"\n]\n" if self.has_begun else b"[]\n")
        super().end()


def _quoted(name: str) -> str:
    return '"{}"'.format(name.replace('"', '""'))


@asynccontextmanager
async def _reading(database: str) -> AsyncIterator[PostgresConnection]:
    """A connection of a role that can only read, in a transaction that only reads.

    Raises UsageError for what Postgres says of a statement.
    """
    connection, path = await connect_reader(database)
    try:
        async with connection.transaction(readonly=True):
            await connection.execute(query("read-with-path"), path)
            yield connection
    except asyncpg.ReadOnlySQLTransactionError as error:
        raise UsageError(f"sql: {first_line(error)}; `sql` only reads, use psql to change things") from error
    except asyncpg.PostgresError as error:
        raise UsageError(f"sql: {first_line(error)}") from error
    finally:
        connection.terminate()


async def _query_place(place: Place, statement: str, form: str | None) -> None:
    async with services(place, share=True) as addresses:
        if form is not None:
            await write_rows(addresses.database, statement, form, sys.stdout.buffer)
            return
        columns, records = await query_rows(addresses.database, statement)
    screen.print_rows(columns, records)


async def run_status(place: Place, name: str | None) -> list[tuple[RunSnapshot, StoredRun, Sequence[ReasonCount]]]:
    """One run, or every unfinished one, as Redis and as Postgres has it, and why keys of it failed or were refused.

    Raises UsageError for an unknown run.
    """
    async with _known_runs(place) as (client, connection, stored):
        runs = wanted_runs(stored, name)
        found = [(await snapshot_of(client, connection, run), run) for run in runs]
        return [(one, run, await reasons_of(connection, run, one.counts)) for one, run in found]


async def _watch(place: Place, name: str | None, console: Console) -> None:
    """Show one run, or every unfinished one, live. Raises UsageError for an unknown run."""
    async with services(place, share=True) as addresses:
        client = connect_redis(addresses.redis)
        overview = Overview(client, addresses.database, name)
        try:
            await watch_runs(overview, console)
        finally:
            await client.aclose()
            overview.close()


async def all_runs(place: Place) -> list[dict[str, Any]]:
    """Every run: its corpus and state, keys by outcome, whether readers see it, bytes of its tables, times."""
    async with _known_runs(place) as (client, connection, stored):
        sizes = await run_sizes(connection)
        runs = []
        for run in stored:
            outcomes = (await snapshot_of(client, connection, run)).counts.outcomes if run.unfinished else run.counts
            size, current = sizes.get(run.run_id, (0, False))
            runs.append(
                {"run_id": run.run_id, "name": run.name, "corpus": run.corpus, "state": run.state.value}
                | dict(outcomes_json(outcomes))
                | {"current": current, "published_at": run.published_at, "shortfall": run.shortfall, "size": size}
                | {"created_at": run.created_at, "finished_at": run.finished_at}
            )
        return runs


@asynccontextmanager
async def _known_runs(place: Place) -> AsyncIterator[tuple[Redis, PostgresConnection, list[StoredRun]]]:
    """A client of Redis, a connection to Postgres, and every run that this knows."""
    async with services(place, share=True) as addresses:
        connection = await connect_postgres(addresses.database)
        client = connect_redis(addresses.redis)
        try:
            catalogue = Catalogue(connection)
            await catalogue.prepare()
            # Without a run nothing else would ask Redis, and a wrong password would be "no run".
            with translate_redis_errors(redacted(addresses.redis)):
                await client.ping()
            yield client, connection, await catalogue.all()
        finally:
            await client.aclose()
            await connection.close()
