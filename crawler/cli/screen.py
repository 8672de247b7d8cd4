"""What commands print when they end: tables, summaries and the command to call next."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

import click
import orjson
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from coordinator.limits.upstream_health import UpstreamHealth
from coordinator.model import Outcome
from coordinator.status import RunSnapshot
from crawler.cli.progress import byte_words, duration_words, of_total, outcome_words, say
from crawler.local.run import RunEnd

CELL_CHARACTERS = 60
MAX_TABLE_CHARACTERS = 10_000


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
        sent = f"{end.counts.requests:,} requests and {byte_words(end.counts.received)} of bodies in the whole run"
        say(console, f"{duration_words(end.seconds)} in this session, {sent}")
    if end.stored is None:
        say(console, f"go on with: {again}")
        return
    where = f"run_id = {end.stored.run_id}"
    if outcomes.get(Outcome.FAILED):
        query = f"select reason, count(*) from pages where {where} and outcome = 'failed' group by 1 order by 2 desc"
        say(console, f'see why keys failed: shardcrawl sql{at} "{query}"')
    else:
        query = f"select key, status, body from pages where {where} limit 5"
        say(console, f'look at the rows: shardcrawl sql{at} "{query}"')


def _end_words(end: RunEnd, done: int) -> str:
    name = end.job.run.name
    if end.was_complete:
        return f"run {name} is complete already: {done:,} keys, nothing fetched"
    if end.stored is not None:
        return f"run {name} is complete: {done:,} keys"
    return f"run {name} is interrupted: {done:,}{of_total(end.counts)} keys are done, and stay done"


def print_table(columns: Sequence[str], records: Sequence[Sequence[Any]], console: Console) -> None:
    """Print a query's result as a table; long values are cut."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True)
    for record in records:
        table.add_row(*(_cell(value) for value in record))
    # As wide as its content: a line that wraps at the end of the terminal can be read, a column without width cannot.
    needed = Measurement.get(
        console, console.options.update(max_width=MAX_TABLE_CHARACTERS, markup=False), table
    ).maximum
    console.width = max(console.width, needed)
    console.print(table, markup=False, crop=False)
    say(console, f"{len(records):,} row{'' if len(records) == 1 else 's'}")


def print_rows(
    columns: Sequence[str], records: Sequence[Sequence[Any]], *, as_json: bool = False, as_csv: bool = False
) -> None:
    """Print a query's result on standard output, as a table unless another form is wanted."""
    if as_json:
        click.echo(rows_json(columns, records))
    elif as_csv:
        click.echo(rows_csv(columns, records), nl=False)
    else:
        print_table(columns, records, Console())


def rows_json(columns: Sequence[str], records: Sequence[Sequence[Any]]) -> str:
    """A query's result as a JSON list of objects."""
    listed = [dict(zip(columns, record, strict=True)) for record in records]
    return orjson.dumps(listed, default=_plain, option=orjson.OPT_INDENT_2).decode()


def rows_csv(columns: Sequence[str], records: Sequence[Sequence[Any]]) -> str:
    """A query's result as CSV; a text that a spreadsheet would take for a formula gets a quote before it."""
    return "".join(_line(fields) for fields in (columns, *([_field(value) for value in record] for record in records)))


def _line(fields: Sequence[str]) -> str:
    out = io.StringIO()
    # With the writer's own line end: with another one it does not quote a field with a lone \r.
    csv.writer(out).writerow(fields)
    return out.getvalue().removesuffix("\r\n") + "\n"


def print_snapshot(snapshot: RunSnapshot, console: Console) -> None:
    """Print one run's snapshot."""
    counts = snapshot.counts
    deferred = f", {counts.deferred:,} of them deferred" if counts.deferred else ""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("run", snapshot.name)
    table.add_row("state", snapshot.state.value)
    table.add_row("keys", f"{counts.done:,}{of_total(counts)} done, {counts.queued:,} queued{deferred}")
    table.add_row("outcomes", outcome_words(counts))
    table.add_row("requests", f"{counts.requests:,}, {byte_words(counts.received)} of bodies")
    table.add_row("workers", str(snapshot.workers))
    table.add_row("coordinator", snapshot.leader or "none")
    for health in snapshot.upstreams:
        table.add_row("upstream", f"{health.upstream} {health.summary}")
    for cause in snapshot.waits:
        table.add_row("waits for", cause)
    console.print(table, markup=False)


def snapshot_json(snapshot: RunSnapshot) -> Mapping[str, Any]:
    """One run's snapshot as plain values."""
    counts = snapshot.counts
    return {
        "run": snapshot.name,
        "state": snapshot.state.value,
        "total": counts.total,
        "done": counts.done,
        "queued": counts.queued,
        "deferred": counts.deferred,
        "outcomes": outcomes_json(counts.outcomes),
        "requests": counts.requests,
        "received_bytes": counts.received,
        "workers": snapshot.workers,
        "coordinator": snapshot.leader,
        "paused": snapshot.pauses,
        "upstreams": {health.upstream: _health_json(health) for health in snapshot.upstreams},
        "waits": list(snapshot.waits),
    }


def _health_json(health: UpstreamHealth) -> Mapping[str, Any]:
    live = health.override
    return {
        "paused": health.paused,
        "breaker": health.breaker,
        "probe_in": health.probe_in,
        "found_rate": health.found_rate,
        "live_rate": live.rate.rate_text if live and live.rate else None,
        "live_concurrency": (live.concurrency or "none") if live and live.concurrency is not None else None,
    }


def outcomes_json(outcomes: Mapping[Outcome, int]) -> Mapping[str, int]:
    """Keys by outcome as plain values, with 0 for an outcome that did not occur."""
    return {outcome.value: outcomes.get(outcome, 0) for outcome in Outcome}


def end_json(end: RunEnd) -> Mapping[str, Any]:
    """How a run ended as plain values."""
    return {
        "run": end.job.run.name,
        "state": "complete" if end.stored else "interrupted",
        "outcomes": outcomes_json(end.outcomes),
        "requests": 0 if end.was_complete else end.counts.requests,
        "received_bytes": 0 if end.was_complete else end.counts.received,
        "seconds": round(end.seconds, 3),
    }


def _cell(value: Any) -> str:
    text = "" if value is None else str(_shown(value))
    if isinstance(value, datetime):
        text = value.isoformat(sep=" ", timespec="milliseconds" if value.microsecond else "seconds")
    text = "".join(char if char.isprintable() else " " for char in text)
    return text if len(text) <= CELL_CHARACTERS else text[: CELL_CHARACTERS - 1] + "…"


def _shown(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value)


def _field(value: Any) -> str:
    if value is None:
        return ""
    text = str(_shown(value))
    if isinstance(value, int | float | Decimal) or not text.startswith(("=", "+", "-", "@", "\t", "\r")):
        return text
    number = text.removeprefix("-").replace(".", "", 1).isdigit()
    return text if number else f"'{text}"
