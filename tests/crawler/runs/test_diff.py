"""What differs between two runs: which runs are compared, and how keys and rows are counted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from coordinator.errors import UsageError
from coordinator.model import Epoch
from crawler.cli.inspect import query_rows
from crawler.runs.diff import (
    ComparedRuns,
    RowsOfTable,
    changed_keys_query,
    compare_runs,
    previous_and_current,
    runs_to_compare,
    waiting_run,
)
from crawler.store.catalogue import Catalogue
from crawler.store.postgres import PostgresConnection, connect_postgres
from crawler.store.rows.stored_run import StoredRun
from crawler.store.tables import RunTables
from crawler.store.writer import Writer
from tests.crawler.examples import a_document, a_page, a_table, finished

pytestmark = pytest.mark.anyio

MOMENT = datetime(2026, 11, 1, tzinfo=UTC)
EPOCH = Epoch("x")
FACTS, MORE = a_table("facts", n="bigint", t="text"), a_table("more", n="bigint")
# Records of `facts` by key.
THEN = {"kept": [(1, "a"), (2, "b")], "changed": [(3, "c")], "less": [(4, "d"), (4, "d")], "removed": [(5, "e")]}
NOW = {"kept": [(2, "b"), (1, "a")], "changed": [(3, None)], "less": [(4, "d")], "added": [(6, "f")]}


@pytest.fixture
async def connection(database: str) -> AsyncIterator[PostgresConnection]:
    connection = await connect_postgres(database)
    await Catalogue(connection).prepare()
    yield connection
    await connection.close()


def a_run(run_id: int, *, corpus: str = "afd", base_run: int | None = None, published: bool = True) -> StoredRun:
    return StoredRun(
        *(run_id, f"{corpus}-{run_id}", {}, EPOCH, True, {}, MOMENT, MOMENT),
        corpus=corpus,
        base_run=base_run,
        published_at=MOMENT if published else None,
    )


@pytest.mark.parametrize(
    ("runs", "current", "before"),
    [
        ([a_run(1), a_run(2), a_run(3)], 3, 2),
        ([a_run(1), a_run(2), a_run(3, base_run=1)], 3, 1),
        ([a_run(1), a_run(3, base_run=None)], 3, 1),
        ([a_run(1), a_run(2, published=False), a_run(3)], 3, 1),
        ([a_run(1), a_run(2, corpus="other"), a_run(3)], 3, 1),
        ([a_run(1), a_run(2), a_run(3)], 2, 1),
        ([a_run(1), replace(a_run(2), complete=False), a_run(3)], 3, 1),
        ([a_run(1), replace(a_run(2), complete=False), a_run(3, base_run=2)], 3, 1),
    ],
)
def test_a_corpus_is_compared_with_the_run_with_which_its_current_one_began(
    runs: Sequence[StoredRun], current: int, before: int
) -> None:
    now = next(run for run in runs if run.run_id == current)
    old, new = previous_and_current(runs, "afd", now)
    assert (old.run_id, new.run_id) == (before, current)


def test_a_corpus_without_two_runs_is_an_error_that_names_what_is_there() -> None:
    only = a_run(1)
    with pytest.raises(UsageError, match=r"corpus afd has no run before afd-1; name two runs"):
        previous_and_current([only], "afd", only)
    with pytest.raises(UsageError, match=r"corpus other has no run that is published; .* \(known corpora: afd\)"):
        previous_and_current([only], "other", None)


def test_a_newer_run_that_waits_for_publication_is_named() -> None:
    old, waits = a_run(2), a_run(4, published=False)
    assert waiting_run([a_run(1, published=False), old, a_run(3, published=False), waits], old) == waits
    assert waiting_run([a_run(1), old, a_run(3)], old) is None, "who rolled back has seen it"
    assert waiting_run([old, a_run(3, published=False, corpus="other")], old) is None


def test_runs_are_comparable_when_one_and_the_same_made_them() -> None:
    old, new = a_run(1), a_run(2)
    assert not ComparedRuns(old, new).are_comparable
    assert not ComparedRuns(replace(old, content_hash="a"), replace(new, content_hash="b")).are_comparable
    assert ComparedRuns(replace(old, content_hash="a"), replace(new, content_hash="a")).are_comparable


async def made(
    connection: PostgresConnection, database: str, name: str, records: dict[str, list[tuple[object, ...]]]
) -> RunTables:
    tables = [FACTS] if name == "old" else [FACTS, MORE]
    document = a_document(tables=[{"name": table.name, "columns": table.column_settings} for table in tables])
    of_run = RunTables(await Catalogue(connection).make(name, document, EPOCH, tables, corpus="afd"))
    writer = Writer(database, of_run, EPOCH, tables)
    await writer.write([a_page(key, body=None, records=rows) for key, rows in records.items()])
    await writer.close()
    return of_run


async def test_keys_and_rows_are_counted_and_named(connection: PostgresConnection, database: str) -> None:
    for name, records in (("old", THEN), ("new", NOW)):
        of_run = await made(connection, database, name, records)
        with pytest.raises(UsageError, match=f"run {name} is not complete"):
            await runs_to_compare(Catalogue(connection), name, name)
        await finished(connection, of_run, EPOCH, [FACTS] if name == "old" else [FACTS, MORE])
    runs = await runs_to_compare(Catalogue(connection), "afd", None)
    assert (runs.old.name, runs.new.name) == ("old", "new")
    assert runs == await runs_to_compare(Catalogue(connection), "old", "new")

    pages = await compare_runs(connection, runs)
    assert {change: keys for change, keys in pages.keys.items() if keys} == {"added": 1, "unchanged": 3, "removed": 1}
    assert pages.rows == [RowsOfTable("facts", 6, 5), RowsOfTable("more", 0, 0)]
    facts = await compare_runs(connection, runs, "facts")
    assert facts.keys == {"added": 1, "changed": 2, "unchanged": 1, "removed": 1}
    assert facts.rows == [RowsOfTable("facts", 6, 5)]

    async def keys(table: str | None) -> list[tuple[object, ...]]:
        return sorted(map(tuple, (await query_rows(database, changed_keys_query(runs, table)))[1]))

    ends = [("added", "added"), ("removed", "removed")]
    assert await keys(None) == ends
    assert await keys("facts") == sorted([*ends, ("changed", "changed"), ("changed", "less")])
    with pytest.raises(UsageError, match="run old has no table more; its tables are: facts"):
        await compare_runs(connection, runs, "more")
    with pytest.raises(UsageError, match="no run nobody; known runs: old, new"):
        await runs_to_compare(Catalogue(connection), "old", "nobody")
    # A record that was kept from a run before is its key's.
    await connection.execute("UPDATE facts_r2 SET digest = digest || '\\x00' WHERE n = 1")
    assert (await compare_runs(connection, runs, "facts")).keys == facts.keys
    # A record of a run before, whose key has no page in this one, has its name from there.
    await connection.execute("DELETE FROM pages_r2 WHERE key = 'changed'")
    assert ("changed", "changed") in await keys("facts")


async def test_a_column_that_only_one_job_has_is_not_compared(connection: PostgresConnection, database: str) -> None:
    for name in ("old", "new"):
        await made(connection, database, name, THEN)
    await connection.execute("UPDATE runs SET state = 'complete', counts = '{}'")
    # As a run does whose job has a column more: the old one's rows have NULL in it.
    await connection.execute("ALTER TABLE facts_r1 ADD COLUMN extra text")
    await connection.execute("ALTER TABLE facts_r2 ADD COLUMN extra text DEFAULT 'x'")
    await connection.execute(
        """UPDATE runs SET spec = jsonb_set(spec, '{tables,0,columns,extra}', '"text"') WHERE name = 'new'"""
    )
    runs = await runs_to_compare(Catalogue(connection), "old", "new")
    assert (await compare_runs(connection, runs, "facts")).keys["unchanged"] == len(THEN)
