"""What became of keys that were fetched to see what a run would store: one in full, or several of a source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from crawler.cli.display.progress import byte_words, say
from crawler.cli.display.screen import print_table
from crawler.job.tables import TableSettings

if TYPE_CHECKING:
    from crawler.rehearsal import Rehearsal

SHOWN_ROWS = 20


def print_rehearsal(found: Rehearsal, console: Console) -> None:
    """Print what was sent for a key, what came back, and what a run would store of it."""

    def line(text: str) -> None:
        say(console, text)

    for exchange in found.exchanges:
        line(f"{exchange.method} {exchange.url}")
        for name, value in exchange.headers:
            line(f"  {name}: {value}")
        line(f"  -> {exchange.summary}")
    if found.headers:
        line("response headers")
        for name, value in found.headers:
            line(f"  {name}: {value}")
    reason = f": {found.reason}" if found.reason else ""
    line((f"outcome: {found.outcome}" if found.outcome else "no outcome yet") + reason)
    for one in found.kept:
        encoding = f", {one.encoding}" if one.encoding else ""
        line(f"pages.{one.column} ({one.kind}{encoding}, {byte_words(one.size)}): {one.beginning}")
    if found.parsed is None:
        return
    for text in (found.parsed.traceback or "").splitlines():
        line(text)
    for name, rows in found.parsed.tables.items():
        line(f"table {name}")
        columns = dict.fromkeys(column for row in rows for column in row)
        print_table(list(columns), [list(row.values()) for row in rows], console)
    _print_found(found.parsed.found, line)


def _print_found(named: Sequence[tuple[str, str]], line: Callable[[str], None]) -> None:
    """Print the keys that a response names."""
    if named:
        line(f"names {len(named):,} key{'' if len(named) == 1 else 's'} to follow:")
    for key, kind in named[:SHOWN_ROWS]:
        line(f"  {key}{f' ({kind})' if kind else ''}")
    if len(named) > SHOWN_ROWS:
        line(f"  and {len(named) - SHOWN_ROWS:,} more")


def print_request(found: Sequence[Rehearsal], console: Console) -> None:
    """Print one request and what became of each of its keys, in a few lines."""
    for exchange in found[0].exchanges:
        say(console, f"{exchange.method} {exchange.url} -> {exchange.summary}")
    for one in found:
        reason = f": {one.reason}" if one.reason else ""
        kept = "".join(f", pages.{part.column} ({part.kind}, {byte_words(part.size)})" for part in one.kept)
        say(console, f"  {one.key}: {one.outcome or 'no outcome yet'}{reason}{kept}")
    if found[0].parsed is not None:
        if named := len(found[0].parsed.found):
            say(console, f"  names {named:,} key{'' if named == 1 else 's'} to follow")
        for text in (found[0].parsed.traceback or "").splitlines():
            say(console, f"  {text}")


def print_tables(tables: Sequence[TableSettings], found: Sequence[Rehearsal], console: Console) -> None:
    """Print the rows of these keys for each table, as far as the console is wide."""
    for table in tables:
        columns, rows = [name for name, _ in table.columns], rows_of(table, found)
        say(console, "")
        say(console, f"table {table.name}: {len(rows):,} row{'' if len(rows) == 1 else 's'}")
        if rows:
            shown = [[row[column] for column in columns] for row in rows[:SHOWN_ROWS]]
            print_table(columns, shown, console, cut=True)
        if len(rows) > SHOWN_ROWS:
            say(console, f"and {len(rows) - SHOWN_ROWS:,} more rows")


def rows_of(table: TableSettings, found: Sequence[Rehearsal]) -> list[dict[str, Any]]:
    """The rows of all keys for one table."""
    return [row for one in found if one.parsed is not None for row in one.parsed.tables[table.name]]
