"""What commands print when they end: tables, summaries and the command to call next."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import click
import orjson
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from coordinator.model import Outcome, outcomes_json
from crawler.cli.display.progress import byte_words, duration_words, of_total, printable, say
from crawler.cli.display.snapshot import health_json
from crawler.local.events import RunEnd
from crawler.store.reasons import ReasonCount
from crawler.store.rows.stored_run import StoredRun
from crawler.store.tables import PAGES, RunTables, readable

CELL_CHARACTERS = 60
CUT_CHARACTERS = (CELL_CHARACTERS, 40, 25, 16, 10)
MAX_TABLE_CHARACTERS = 10_000
SHOWN_REASONS = 5


def print_summary(end: RunEnd, console: Console, *, again: str, at: str) -> None:
    """Print how a run stands: outcomes, time, bytes, and what to do next.

    `again` is the command that goes on with it, `at` the options that let another command find it.
    """
    outcomes = end.outcomes
    say(console, _end_words(end, sum(outcomes.values())))
    table = Table(box=box.SIMPLE, show_header=True, pad_edge=False)
    table.add_column("outcome")
    table.add_column("keys", justify="right")
    for outcome in Outcome:
        if outcomes.get(outcome) or outcome in (Outcome.STORED, Outcome.FAILED):
            table.add_row(outcome.value, f"{outcomes.get(outcome, 0):,}")
    console.print(table)
    if not end.was_complete:
        since = "since it was rebuilt from Postgres" if end.counts.rebuilt else "in the whole run"
        sent = f"{end.counts.requests:,} requests and {byte_words(end.counts.received)} of bodies {since}"
        say(console, f"{duration_words(end.seconds)} in this session, {sent}")
    print_reasons(end.reasons, console)
    for notice in end.notices:
        say(console, notice)
    for health in end.unauthorized:
        refusals = f"its last {health.refused:,} responses were {health.status}"
        say(console, f"{health.upstream} refuses every request ({refusals}): renew the token, or what else it refuses")
    if end.too_many_failed and end.stored is not None:
        code = "" if end.stored.falls_short or (end.files and end.files.fault) else ": exit code 3"
        most = f"{100 * end.job.run.max_failed:g} %"
        say(console, f"more than [run] max_failed ({most}) of the keys failed or were denied{code}")
    if end.stored is not None and end.stored.falls_short:
        say(console, "it falls short of [publish]: exit code 4")
    if end.stored is None:
        say(console, f"go on with: {again}")
    if end.denied:
        say(console, f"what was denied goes back with: shardcrawl retry{at} {end.job.run.name}{_denied_options(end)}")
    if end.unauthorized:
        say(console, "if these refusals are right, [retry] refused_in_a_row = 0 makes them outcomes of their keys")
    if end.stored is None:
        return
    say(console, _query_words(end, end.stored, at))


def _query_words(end: RunEnd, stored: StoredRun, at: str) -> str:
    """A query that shows why keys of the run failed, or else its rows."""
    of_run = RunTables.of(stored)

    def name_of(table: str) -> str:
        if stored.published_at is None:  # its tables are no partitions yet
            name, in_own_schema = of_run.part_name(table), True
        else:
            name, in_own_schema = table, table != PAGES
        names = [of_run.schema, name] if of_run.schema and in_own_schema else [name]
        return ".".join(readable(one) for one in names).replace('"', '\\"')  # the query stands in a shell's quotes

    where = f"run_id = {stored.run_id}"
    if end.outcomes.get(Outcome.FAILED):
        query = f"select key, reason from {name_of(PAGES)} where {where} and outcome = 'failed' limit 20"
        return f'see why keys failed: shardcrawl sql{at} "{query}"'
    if not any(end.outcomes.get(one) for one in (Outcome.STORED, Outcome.UNCHANGED)):
        query = f"select key, outcome, reason from {name_of(PAGES)} where {where} limit 20"
        return f'see why there are no rows: shardcrawl sql{at} "{query}"'
    tables = end.job.tables
    what = f"* from {name_of(tables[0].name)}" if tables else f"key, status, body from {name_of(PAGES)}"
    return f'look at the rows: shardcrawl sql{at} "select {what} where {where} limit 5"'


def _end_words(end: RunEnd, done: int) -> str:
    name = end.job.run.name
    if end.gave_up:
        return f"run {name} is paused: {done:,}{of_total(end.counts)} keys are done, and stay done"
    if end.was_complete:
        return f"run {name} is complete already: {done:,} keys, nothing fetched"
    if end.stored is not None:
        return f"run {name} is complete: {done:,} keys"
    return f"run {name} is interrupted: {done:,}{of_total(end.counts)} keys are done, and stay done"


def print_table(
    columns: Sequence[str], records: Sequence[Sequence[Any]], console: Console, *, cut: bool = False
) -> None:
    """Print a query's result as a table; long values are cut, and with `cut` the table to the width of the console."""
    # A long value in one column must not take the width of all others.
    for most in CUT_CHARACTERS if cut else (CELL_CHARACTERS,):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in columns:
            table.add_column(column, no_wrap=True)
        for record in records:
            table.add_row(*(_cell(value, most) for value in record))
        options = console.options.update(max_width=MAX_TABLE_CHARACTERS, markup=False)
        if (needed := Measurement.get(console, options, table).maximum) <= console.width:
            break
    if cut:
        console.print(table, markup=False)
        return
    # As wide as its content: a line that wraps at the end of the terminal can be read, a column without width cannot.
    console.width = max(console.width, needed)
    console.print(table, markup=False, crop=False)
    say(console, f"{len(records):,} row{'' if len(records) == 1 else 's'}")


def print_rows(columns: Sequence[str], records: Sequence[Sequence[Any]], *, as_json: bool = False) -> None:
    """Print rows on standard output, as a table or as JSON."""
    if as_json:
        click.echo(rows_as("json", columns, records), nl=False)
    else:
        print_table(columns, records, Console())


def rows_as(form: str, columns: Sequence[str], records: Sequence[Sequence[Any]]) -> bytes:
    """Rows as csv, jsonl (JSON objects, one a line), or json (these in a list)."""
    if form == "csv":
        out = io.StringIO()
        # With the writer's own line end: with another one it does not quote a field with a lone \r.
        writer = csv.writer(out)
        writer.writerow(columns)
        writer.writerows([["" if value is None else _shown(value) for value in record] for record in records])
        return out.getvalue().encode()
    rows = [orjson.dumps(dict(zip(columns, record, strict=True)), default=plain) for record in records]
    if form == "jsonl":
        return b"".join(row + b"\n" for row in rows)
    return b"[" + b",".join(b"\n" + row for row in rows) + b"\n]\n"


def print_reasons(reasons: Sequence[ReasonCount], console: Console) -> None:
    """Print why keys were refused or failed, a line for each of the two."""
    for outcome in (Outcome.REFUSED, Outcome.FAILED):
        if words := reason_words(outcome, reasons):
            say(console, words)


def reason_words(outcome: Outcome, reasons: Sequence[ReasonCount]) -> str:
    """The usual reasons of one outcome, as "refused 200: 150 x status 401, 50 x status 403"; empty without any."""
    found = [one for one in reasons if one.outcome is outcome]
    shown = [one for one in found if one.reason is not None][:SHOWN_REASONS]
    words = [f"{one.keys:,} x {one.reason or 'without a reason'}" for one in shown]
    keys = sum(one.keys for one in found)
    if rest := keys - sum(one.keys for one in shown):
        words.append(f"{rest:,} x others")
    return f"{outcome.value} {keys:,}: {', '.join(words)}" if words else ""


def reasons_json(reasons: Sequence[ReasonCount]) -> list[Mapping[str, Any]]:
    """Reasons as plain values; the one that is null stands for all that are rarer."""
    return [{"outcome": one.outcome.value, "reason": one.reason, "keys": one.keys} for one in reasons]


def _denied_options(end: RunEnd) -> str:
    """The options of `retry` that put back what was denied, and nothing that failed."""
    reasons = [one.reason or "" for one in end.reasons if one.denied]
    statuses = {found[1] for reason in reasons if (found := re.search(r"\bstatus (\d{3})$", reason))}
    return "".join(f" --status {status}" for status in sorted(statuses))


def end_json(end: RunEnd) -> Mapping[str, Any]:
    """How a run ended as plain values."""
    return {
        "run": end.job.run.name,
        "state": "complete" if end.stored else "paused" if end.gave_up else "interrupted",
        "published": end.stored is not None and end.stored.published_at is not None,
        "shortfall": end.stored.shortfall if end.stored else None,
        "files": end.files and {"place": end.files.place, "rows": end.files.rows, "fault": end.files.fault or None},
        "outcomes": outcomes_json(end.outcomes),
        "denied": end.denied,
        "reasons": reasons_json(end.reasons),
        "upstreams": {health.upstream: health_json(health) for health in end.unauthorized},
        "requests": 0 if end.was_complete else end.counts.requests,
        "received_bytes": 0 if end.was_complete else end.counts.received,
        "seconds": round(end.seconds, 3),
        "unmatched_limits": list(end.unmatched),
        "null_columns": {column.name: column.since for column in end.null_columns},
    }


def _cell(value: Any, most: int) -> str:
    text = "" if value is None else str(_shown(value))
    if isinstance(value, datetime):
        text = value.isoformat(sep=" ", timespec="milliseconds" if value.microsecond else "seconds")
    text = printable(text)
    return text if len(text) <= most else text[: most - 1] + "…"


def _shown(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else plain(value)


def plain(value: Any) -> Any:
    """A value of a column as JSON can say it."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value)
