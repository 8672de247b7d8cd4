"""A run as a version of its corpus: which run readers see, whether `unique` holds, and what was carried over."""

from __future__ import annotations

from collections.abc import Sequence

from crawler.audit.checks import MAX_EXAMPLES, Finding, such_as
from crawler.job.job import Job
from crawler.runs.diff import ComparedRuns, table_changes
from crawler.store.postgres import PostgresConnection
from crawler.store.queries import query
from crawler.store.rows.merge import unique_columns
from crawler.store.rows.stored_run import StoredRun
from crawler.store.tables import RunTables, table_names

CARRIED = "pages that were carried over"


def check_current(runs: Sequence[StoredRun], run: StoredRun, current: int | None) -> Finding:
    """Pure: readers of a corpus see one of its published runs, and none only before the first is published."""
    published = {one.run_id: one.name for one in runs if one.corpus == run.corpus and one.published_at is not None}
    found = {one.run_id: one.name for one in runs}.get(current or 0, "none")
    expected = "one that is published" if published else "none"
    return Finding(
        f"run that readers of corpus {run.corpus} see",
        found,
        expected,
        current in published or not (current or published),
    )


async def check_unique(connection: PostgresConnection, run: StoredRun, job: Job) -> list[Finding]:
    """In a complete run no two records have the same unique columns."""
    return [
        await _none_of(
            connection,
            f"records in {table.name} with the `unique` columns of another",
            query("doubled-records", part=RunTables.of(run).part(table.name), **unique_columns(table)),
        )
        for table in job.tables
        if table.unique and run.complete
    ]


async def check_carried(
    connection: PostgresConnection, run: StoredRun, runs: Sequence[StoredRun], job: Job
) -> list[Finding]:
    """What a refresh carried over equals its base, and what is stale has failed. Of another run there is nothing."""
    if run.carried_run is None:
        return []
    pages = RunTables.of(run).pages
    findings = [await _none_of(connection, "stale pages that have not failed", query("stale-not-failed", pages=pages))]
    base = next((one for one in runs if one.run_id == run.carried_run), None)
    if base is None:
        return [*findings, Finding(CARRIED, "the base is no longer there", "not compared", True)]
    if base.finished_at is None or base.finished_at > run.created_at:
        return [*findings, Finding(CARRIED, "`retry` has changed the base since", "not compared", True)]
    await connection.execute(query("comparison-memory"))
    of_base = RunTables.of(base).pages
    unlike = query("pages-unlike-base", pages=pages, base=of_base)
    findings.append(await _none_of(connection, f"{CARRIED} and are not as in {base.name}", unlike))
    for table in table_names(job.tables):
        if table in base.table_names:
            changes = table_changes(ComparedRuns(base, run), table, kept=False)
            unlike = query("records-unlike-base", pages=pages, base=of_base, changes=changes)
            what = f"{CARRIED} with other records in {table}"
            findings.append(await _none_of(connection, what, unlike, bool(job.parse.ignore)))
    return findings


async def _none_of(connection: PostgresConnection, what: str, statement: str, *values: bool) -> Finding:
    row = await connection.fetchrow(statement, MAX_EXAMPLES, *values)
    assert row is not None
    return Finding(what, row["keys"], 0, row["keys"] == 0, such_as(row["examples"]))
