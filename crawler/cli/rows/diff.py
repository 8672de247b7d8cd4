"""The command that compares two runs: diff."""

from __future__ import annotations

import sys
from typing import Any

import click
from rich.console import Console

from crawler.cli.display.progress import say
from crawler.cli.display.screen import print_table
from crawler.cli.inspect import write_rows
from crawler.cli.options import command, json_option, place_from, place_options, print_json, run_async
from crawler.local.services import Place, services
from crawler.runs.diff import ComparedRuns, RunDiff, changed_keys_query, compare_runs, runs_to_compare
from crawler.store.catalogue import Catalogue, open_catalogue


@command("diff")
@click.argument("first", metavar="RUN|CORPUS")
@click.argument("second", metavar="[RUN]", required=False)
@click.option("--table", metavar="TABLE", help="Compare the rows of this table, key by key.")
@click.option("--keys", is_flag=True, help="Print each key that is not as it was, as CSV, or with --json as JSON.")
@place_options("warning")
@json_option
def diff_command(first: str, second: str | None, table: str | None, keys: bool, as_json: bool, **options: Any) -> None:
    """Compare two complete runs: what was added, changed, removed. Example: shardcrawl diff afd-2026-08 afd-2026-11

    With the name of a corpus alone: its current run, and the one before.
    """
    place = place_from(options)
    if keys:
        run_async(_write_keys(place, first, second, table, "json" if as_json else "csv"))
        return
    runs, found = run_async(compared_runs(place, first, second, table))
    if as_json:
        print_json(diff_json(runs, found, table))
    else:
        _print_diff(runs, found, table, Console())


def diff_json(runs: ComparedRuns, found: RunDiff, table: str | None) -> dict[str, Any]:
    """What differs between two runs as plain values."""
    return {
        "old": runs.old.name,
        "new": runs.new.name,
        "comparable": runs.are_comparable,
        "table": table,
        "changes": dict(found.keys),
        "rows": {one.table: {"then": one.then, "now": one.now} for one in found.rows},
    }


def _print_diff(runs: ComparedRuns, found: RunDiff, table: str | None, console: Console) -> None:
    of_table = f", by their rows in {table}" if table else ""
    say(console, f"keys from run {runs.old.name} to run {runs.new.name}{of_table}:")
    print_table(["change", "keys"], [(change, f"{keys:,}") for change, keys in found.keys.items()], console, cut=True)
    if found.rows:
        rows = [(one.table, f"{one.then:,}", f"{one.now:,}") for one in found.rows]
        print_table(["table", "rows then", "rows now"], rows, console, cut=True)


async def compared_runs(
    place: Place, first: str, second: str | None, table: str | None
) -> tuple[ComparedRuns, RunDiff]:
    """Two runs and what differs between them. Raises UsageError, ShardcrawlError."""
    async with services(place, share=True) as addresses, open_catalogue(addresses.database) as catalogue:
        runs = await _found(catalogue, first, second)
        return runs, await compare_runs(catalogue.connection, runs, table)


async def _write_keys(place: Place, first: str, second: str | None, table: str | None, form: str) -> None:
    async with services(place, share=True) as addresses:
        async with open_catalogue(addresses.database) as catalogue:
            statement = changed_keys_query(await _found(catalogue, first, second), table)
        await write_rows(addresses.database, statement, form, sys.stdout.buffer)


async def _found(catalogue: Catalogue, first: str, second: str | None) -> ComparedRuns:
    """The runs, with a note on standard error when their contents are not of one making, or a newer run waits."""
    await catalogue.prepare()
    runs = await runs_to_compare(catalogue, first, second)
    if not runs.are_comparable:
        click.echo(
            f"note: runs {runs.old.name} and {runs.new.name} were not made by the same settings and parser: "
            "keys may be changed by that alone",
            err=True,
        )
    if runs.waiting is not None:
        words = f"note: run {runs.waiting.name} is newer, and not published; what it changes: "
        click.echo(f"{words}shardcrawl diff {runs.new.name} {runs.waiting.name}", err=True)
    return runs
