"""A run whose job has more columns adds them to the table, also where other runs load into it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from coordinator.errors import PostgresRefused, PostgresUnavailable
from coordinator.model import Epoch
from coordinator.tasks import cancel_and_wait
from crawler.job.tables import TableSettings
from crawler.store import user_tables
from crawler.store.catalogue import Catalogue
from crawler.store.postgres import PostgresConnection, connect_postgres
from crawler.store.queries import query
from crawler.store.tables import RunTables
from crawler.store.writer import Writer
from tests.crawler.examples import a_document, a_page, a_table, finished
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

EPOCH = Epoch("first")
OLD = a_table(n="integer", t="varchar(5)")
NEW = a_table(at="timestamptz(3)", t="varchar(5)", many="numeric(5,2)[]", n="integer")


@pytest.fixture
async def catalogue(connection: PostgresConnection) -> Catalogue:
    catalogue = Catalogue(connection)
    await catalogue.prepare()
    return catalogue


async def begun(catalogue: Catalogue, name: str, table: TableSettings, corpus: str = "test") -> RunTables:
    schema = "mine" if corpus == "apart" else ""
    document = a_document(store={"schema": schema} if schema else {})
    return RunTables(await catalogue.make(name, document, EPOCH, [table], corpus=corpus), schema)


async def current(connection: PostgresConnection, view: str = "facts_current") -> list[tuple[Any, ...]]:
    rows = await connection.fetch(f"SELECT n, t, at, many FROM {view} ORDER BY n")
    return [tuple(row) for row in rows]


@pytest.mark.parametrize("corpus", ["test", "apart"])
async def test_new_columns_are_added_and_runs_on_their_way_go_on(
    catalogue: Catalogue, connection: PostgresConnection, database: str, corpus: str
) -> None:
    """A published run, one that loads with an open connection, and a new one with another order of columns."""
    view = "mine.facts_current" if corpus == "apart" else "facts_current"
    published = await begun(catalogue, "published", OLD, corpus)
    writer = Writer(database, published, EPOCH, [OLD])
    await writer.write([a_page("a", records=[(1, "a")])])
    await writer.close()
    await finished(connection, published, EPOCH, [OLD])
    loading = await begun(catalogue, "loading", OLD, corpus)
    writer = Writer(database, loading, EPOCH, [OLD])
    await writer.write([a_page("a", records=[(1, "b")])])
    wider = await begun(catalogue, "wider", NEW, corpus)
    assert await current(connection, view) == [(1, "a", None, None)]
    await writer.write([a_page("b", records=[(2, "b")])])
    await writer.write([a_page("b", records=[(2, "b")]), a_page("c", records=[(3, "b"), (4, "too long")])])
    await writer.close()
    await finished(connection, loading, EPOCH, [OLD])
    assert await current(connection, view) == [(1, "b", None, None), (2, "b", None, None)]
    writer = Writer(database, wider, EPOCH, [NEW])
    await writer.write([a_page("a", records=[(None, "c", [1], 1)])])
    await writer.close()
    await finished(connection, wider, EPOCH, [NEW])
    assert await current(connection, view) == [(1, "c", None, [1])]


async def test_a_job_with_the_old_columns_is_refused_afterwards(catalogue: Catalogue) -> None:
    await begun(catalogue, "first", OLD)
    await begun(catalogue, "second", NEW)
    with pytest.raises(PostgresRefused, match="the job has no column at timestamp"):
        await begun(catalogue, "third", OLD)


async def test_a_run_from_before_its_table_was_dropped_may_have_the_column(
    catalogue: Catalogue, connection: PostgresConnection
) -> None:
    await begun(catalogue, "first", NEW)
    await connection.execute("DROP TABLE facts CASCADE")
    await begun(catalogue, "second", OLD)
    await begun(catalogue, "third", NEW)
    columns = [await connection.fetch(query("columns-of"), f"facts_r{run}") for run in (1, 2, 3)]
    assert sorted(columns[0]) == sorted(columns[1]) == sorted(columns[2])


async def test_a_rehearsal_adds_no_column(catalogue: Catalogue, connection: PostgresConnection) -> None:
    await begun(catalogue, "first", OLD)
    before = await connection.fetch(query("columns-of"), "facts")
    _, added = await catalogue.rehearse("second", [NEW])
    assert [(column.name, column.kind) for column in added] == [
        ("at", "timestamp(3) with time zone"),
        ("many", "numeric(5,2)[]"),
    ]
    assert await connection.fetch(query("columns-of"), "facts") == before


@pytest.mark.parametrize("corpus", ["test", "apart"])
async def test_a_view_that_differs_from_its_table_is_made_anew(
    catalogue: Catalogue, connection: PostgresConnection, corpus: str
) -> None:
    """Somebody dropped it, to change a type or with the table, or added a column by hand that the job then has."""
    schema = "mine" if corpus == "apart" else ""
    await begun(catalogue, "first", OLD, corpus)
    for number, statement in enumerate(
        [
            "DROP VIEW {0}_current",
            "DROP TABLE {0} CASCADE",
            "ALTER TABLE {0} ADD at timestamptz(3), ADD many numeric(5,2)[]",
        ]
    ):
        await connection.execute(statement.format("mine.facts" if schema else "facts"))
        await begun(catalogue, f"run {number}", NEW if "ADD" in statement else OLD, corpus)
        table = await connection.fetch(query("columns-of"), f"{schema or 'public'}.facts")
        assert table == await connection.fetch(query("columns-of"), f"{schema or 'public'}.facts_current") != []


async def test_a_view_that_keeps_a_renamed_column_is_named(
    catalogue: Catalogue, connection: PostgresConnection
) -> None:
    await begun(catalogue, "first", OLD)
    await connection.execute("ALTER TABLE facts RENAME n TO number")
    renamed = a_table(number="integer", t="varchar(5)")
    for make in (begun(catalogue, "second", renamed), catalogue.rehearse("second", [renamed], corpus="test")):
        with pytest.raises(PostgresRefused, match='name of view column "n" .* drop or rename'):
            await make
    await connection.execute("DROP VIEW facts_current")
    await begun(catalogue, "second", renamed)
    assert await connection.fetch("SELECT number FROM facts_current") == []


async def test_a_reader_that_holds_it_up_is_named_and_nothing_is_changed(
    catalogue: Catalogue, connection: PostgresConnection, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = "SET LOCAL lock_timeout = '20ms'"
    monkeypatch.setattr(
        user_tables, "query", lambda name, **of: quick if name == "migration-timeout" else query(name, **of)
    )
    await begun(catalogue, "first", OLD)
    reader = await connect_postgres(database)
    try:
        for table in ("facts_current", "facts", "facts_r1"):
            async with reader.transaction():
                await reader.fetch(f"SELECT * FROM {table}")
                with pytest.raises(PostgresUnavailable, match="facts is to get column at, and a query .* holds it up"):
                    await begun(catalogue, "second", NEW)
    finally:
        await reader.close()
    assert [run.name for run in await catalogue.all()] == ["first"]
    await begun(catalogue, "second", NEW)


async def test_readers_of_other_views_are_not_held_up_meanwhile(
    catalogue: Catalogue, connection: PostgresConnection, database: str
) -> None:
    """Adding columns waits for a reader of the table; who reads another corpus waits for nobody."""
    await begun(catalogue, "first", OLD)
    await begun(catalogue, "other", a_table("others", n="integer"), corpus="other")
    reader, maker = await connect_postgres(database), await connect_postgres(database)
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    try:
        async with reader.transaction():
            await reader.fetch("SELECT * FROM facts_current")
            making = asyncio.create_task(begun(Catalogue(maker), "second", NEW))
            try:

                async def waiting() -> bool:
                    return bool(await connection.fetchval(waits))

                await eventually(waiting, "the new column to wait")
                async with connection.transaction():
                    await connection.execute("SET LOCAL lock_timeout = '1ms'")
                    assert await connection.fetch("SELECT * FROM others_current") == []
                    assert await connection.fetch("SELECT * FROM pages_current") == []
            except BaseException:
                await cancel_and_wait(making)
                raise
        await making
    finally:
        await reader.close()
        await maker.close()
