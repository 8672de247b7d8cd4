"""Pure: the names and columns of the tables that a run writes, as SQL has them."""

from __future__ import annotations

from collections.abc import Sequence

from crawler.job.tables import TableSettings, column_type, identifier_fault


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
    return ", ".join(f"{quoted(name)} {column_type(kind)}" for name, kind in columns)


def columns_fault(found: Sequence[tuple[str, str]], wanted: Sequence[tuple[str, str]]) -> str | None:
    """The first column in which a table that exists differs from the job's, None when none does.

    Columns are (name, type as Postgres writes it).
    """
    there = dict(found)
    for name, kind in wanted:
        if name not in there:
            return f"it has no column {name} {kind}"
        if there[name] != kind:
            return f"column {name} is {there[name]} there, and {kind} in the job"
    if more := [name for name in there if name not in dict(wanted)]:
        return f"the job has no column {more[0]} {there[more[0]]}"
    if list(found) != list(wanted):
        return "its columns come in another order"
    return None


def table_names(tables: Sequence[TableSettings]) -> list[str]:
    """The tables' names in the job's order."""
    return [table.name for table in tables]
