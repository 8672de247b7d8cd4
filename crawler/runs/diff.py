"""What differs between two runs of a corpus: keys by what has become of them, and rows of its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from coordinator.errors import UsageError
from crawler.store.catalogue import Catalogue
from crawler.store.postgres import PostgresConnection, postgres_errors
from crawler.store.queries import query
from crawler.store.rows.stored_run import StoredRun
from crawler.store.tables import RunTables, quoted

# What may have become of a key from one run to another, and of its records in one table.
CHANGES = ("added", "changed", "unchanged", "stale", "gone", "removed", "failed", "absent")
TABLE_CHANGES = ("added", "changed", "unchanged", "removed")


@dataclass(frozen=True, slots=True)
class RowsOfTable:
    """How many records a table had in the old run, and has in the new one."""

    table: str
    then: int
    now: int


@dataclass(frozen=True, slots=True)
class RunDiff:
    """What differs between two complete runs: keys by change, of the pages or of one table, and rows of tables."""

    keys: Mapping[str, int]
    rows: Sequence[RowsOfTable]


@dataclass(frozen=True, slots=True)
class ComparedRuns:
    """Two complete runs, the older one first. `waiting` is a newer one of the corpus that is not published."""

    old: StoredRun
    new: StoredRun
    waiting: StoredRun | None = None

    @property
    def are_comparable(self) -> bool:
        """Whether the same settings and parser made both, so that another content is another page."""
        return self.old.content_hash is not None and self.old.content_hash == self.new.content_hash

    @property
    def tables(self) -> list[str]:
        """The tables of either job, in the new one's order."""
        return list(dict.fromkeys([*self.new.table_names, *self.old.table_names]))


def _columns_of(run: StoredRun) -> dict[str, list[str]]:
    """{table: its columns} of the run's job. In Postgres it may have got others since, with NULL in them."""
    return {table["name"]: list(table.get("columns", ())) for table in run.document.get("tables", ())}


async def runs_to_compare(catalogue: Catalogue, first: str, second: str | None) -> ComparedRuns:
    """The runs of these names; without a `second` name the current run of the corpus `first`, and the one before it.

    Raises UsageError when one of them is not there, or is not complete; RunCancelled, PostgresUnavailable,
    PostgresRefused.
    """
    runs = await catalogue.all()
    if second is None:
        old, new = previous_and_current(runs, first, await catalogue.current(first))
    else:
        old, new = _named(runs, first), _named(runs, second)
    for run in (old, new):
        run.refuse_cancelled()
        if not run.complete:
            raise UsageError(f"run {run.name} is not complete, so its other keys would seem removed: finish it first")
    return ComparedRuns(old, new, None if second else waiting_run(runs, new))


def waiting_run(runs: Sequence[StoredRun], current: StoredRun) -> StoredRun | None:
    """Pure: the newest complete run of the corpus behind its current one that was never published; None without one."""
    newer = [one for one in runs if one.corpus == current.corpus and one.run_id > current.run_id and one.complete]
    return next((one for one in reversed(newer) if one.published_at is None), None)


def previous_and_current(
    runs: Sequence[StoredRun], corpus: str, current: StoredRun | None
) -> tuple[StoredRun, StoredRun]:
    """Pure: a corpus' current run, and the run before it. Raises UsageError when one of them is not there."""
    if current is None:
        known = ", ".join(sorted({run.corpus for run in runs})) or "none"
        raise UsageError(f"corpus {corpus} has no run that is published; name two runs (known corpora: {known})")
    before = previous_run(runs, current)
    if before is None:
        raise UsageError(f"corpus {corpus} has no run before {current.name}; name two runs (`shardcrawl runs`)")
    return before, current


def previous_run(runs: Sequence[StoredRun], run: StoredRun) -> StoredRun | None:
    """Pure: the run's base, or without one the newest of its corpus that was published before it; None without both.

    One that goes on again, or was cancelled then, is none of both.
    """
    complete = [one for one in runs if one.complete]
    if base := [one for one in complete if one.run_id == run.base_run]:
        return base[0]
    earlier = [one for one in complete if one.corpus == run.corpus and one.published_at and one.run_id < run.run_id]
    return earlier[-1] if earlier else None


async def compare_runs(connection: PostgresConnection, runs: ComparedRuns, table: str | None = None) -> RunDiff:
    """Count what differs, of all pages or of one table. Raises UsageError when neither run has that table."""
    with postgres_errors():
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            await connection.execute(query("comparison-memory"))
            if table is None:
                found = await connection.fetch(query("count-changes"), runs.old.run_id, runs.new.run_id)
            else:
                changes = table_changes(runs, table)
                found = await connection.fetch(query("count-table-changes", changes=changes))
            keys = {row["change"]: row["keys"] for row in found}
            rows = [await _rows_of(connection, runs, name) for name in ([table] if table else runs.tables)]
    return RunDiff({change: keys.get(change, 0) for change in (TABLE_CHANGES if table else CHANGES)}, rows)


def changed_keys_query(runs: ComparedRuns, table: str | None = None) -> str:
    """The query whose rows are each key, of all pages or of one table, that is not as it was: `change` and `key`."""
    if table is None:
        return query("changed-keys", old=runs.old.run_id, new=runs.new.run_id)
    pages = {"old_pages": RunTables.of(runs.old).pages, "new_pages": RunTables.of(runs.new).pages}
    return query("changed-keys-of-table", changes=table_changes(runs, table), **pages)


def table_changes(runs: ComparedRuns, table: str, *, kept: bool = True) -> str:
    """Pure: the query that compares the records of one table by key, also those that were `kept` from earlier runs.

    Raises UsageError when a run does not have the table.
    """
    for run in (runs.old, runs.new):
        if table not in run.table_names:
            names = ", ".join(run.table_names) or "none"
            raise UsageError(f"run {run.name} has no table {table}; its tables are: {names}")
    old, new = RunTables.of(runs.old).part(table), RunTables.of(runs.new).part(table)
    before = _columns_of(runs.old)[table]
    columns = ", ".join(quoted(name) for name in _columns_of(runs.new)[table] if name in before)
    return query("table-changes", old=old, new=new, columns=columns, kept=str(kept).lower())


async def _rows_of(connection: PostgresConnection, runs: ComparedRuns, table: str) -> RowsOfTable:
    then, now = [
        await connection.fetchval(query("count-records", part=RunTables.of(run).part(table)))
        if table in run.table_names
        else 0
        for run in (runs.old, runs.new)
    ]
    return RowsOfTable(table, then, now)


def _named(runs: Sequence[StoredRun], name: str) -> StoredRun:
    for run in runs:
        if run.name == name:
            return run
    raise UsageError(f"no run {name}; known runs: {', '.join(run.name for run in runs) or 'none'}")
