"""Pure: names and column lists of the tables that a run writes, checked and quoted."""

from __future__ import annotations

from collections.abc import Sequence

from crawler.job.models import TableSettings
from crawler.job.names import identifier_fault


def quoted(name: str) -> str:
    """A checked identifier in double quotes."""
    if identifier_fault(name):
        raise ValueError(f"not an identifier: {name!r}")
    return f'"{name}"'


def part(table: str, run_id: int) -> str:
    """The table into which one run loads."""
    return f"{table}_r{run_id}"


def column_list(columns: Sequence[tuple[str, str]]) -> str:
    """The columns of a table of records, as in CREATE TABLE."""
    return ", ".join(f"{quoted(name)} {kind}" for name, kind in columns)


def names(tables: Sequence[TableSettings]) -> list[str]:
    """The tables' names in the job's order."""
    return [table.name for table in tables]
