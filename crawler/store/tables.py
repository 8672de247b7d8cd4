"""Pure: the names and columns of the tables that a run writes, as SQL has them."""

from __future__ import annotations

from collections.abc import Sequence

from crawler.job.models import TableSettings
from crawler.job.names import identifier_fault


def quoted(name: str) -> str:
    """A name in double quotes. Raises ValueError when it is not an identifier that a job may use."""
    if identifier_fault(name):
        raise ValueError(f"not an identifier: {name!r}")
    return f'"{name}"'


def part_name(table: str, run_id: int) -> str:
    """The name of the table into which one run loads; it becomes a partition of `table`."""
    return f"{table}_r{run_id}"


def staging_name(run_id: int) -> str:
    """The name of the temporary table through which a batch of a run is merged."""
    return f"staging_r{run_id}"


def column_list(columns: Sequence[tuple[str, str]]) -> str:
    """The columns of a table of records, as in CREATE TABLE."""
    return ", ".join(f"{quoted(name)} {kind}" for name, kind in columns)


def table_names(tables: Sequence[TableSettings]) -> list[str]:
    """The tables' names in the job's order."""
    return [table.name for table in tables]
