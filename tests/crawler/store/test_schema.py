"""A database of an older shardcrawl is brought up to date, with all that is in it; a newer one is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from coordinator.errors import PostgresRefused, PostgresUnavailable
from coordinator.model import Epoch, Outcome
from coordinator.queue.sharding import digest
from crawler.model import Page
from crawler.store import schema
from crawler.store.catalogue import Catalogue
from crawler.store.corpora import Corpora
from crawler.store.postgres import PostgresConnection, connect_postgres
from crawler.store.queries import migrations, query
from crawler.store.reasons import PagesToRetry
from crawler.store.schema import schema_version
from crawler.store.tables import RunTables
from crawler.store.writer import Writer
from tests.crawler.examples import a_page, finished

pytestmark = pytest.mark.anyio

# The schema of shardcrawl 0.1.0, before there were migrations. It is not the file that the program reads.
OLD_SCHEMA = (Path(__file__).parent / "schema_0001.sql").read_text()
OLD_COLUMNS = (
    *("run_id", "digest", "key", "url", "outcome", "reason", "status", "attempts", "fetched_at", "etag"),
    *("last_modified", "body_digest", "body"),
)
NEWEST = max(migrations())
FINISHED, UNFINISHED = 1, 2
EPOCH = Epoch("old")


@pytest.fixture
async def connection(database: str) -> AsyncIterator[PostgresConnection]:
    connection = await connect_postgres(database)
    yield connection
    await connection.close()


@pytest.fixture
async def old(connection: PostgresConnection) -> PostgresConnection:
    """A connection to a database of 0.1.0 with a finished run, and one whose part is no partition yet."""
    await connection.execute(OLD_SCHEMA)
    for run_id, name in ((FINISHED, "finished"), (UNFINISHED, "unfinished")):
        await connection.execute("INSERT INTO runs (name, spec, epoch) VALUES ($1, '{}', $2)", name, EPOCH)
        await connection.execute(query("make-pages-part", part=f"pages_r{run_id}", run_id=run_id))
        await copy_as_0_1_0_does(connection, run_id, "before")
    await connection.execute(query("attach", table="pages", part=f"pages_r{FINISHED}", run_id=FINISHED))
    await connection.execute(
        "UPDATE runs SET state = 'complete', counts = '{\"stored\": 1}', finished_at = now(), published_at = now() "
        "WHERE run_id = $1",
        FINISHED,
    )
    return connection


async def copy_as_0_1_0_does(connection: PostgresConnection, run_id: int, key: str) -> None:
    row = (run_id, digest(key), key, None, "stored", None, 200, 1, None, None, None, None, '{"a": 1}')
    moment = await connection.fetchval("SELECT now()")
    await connection.copy_records_to_table(
        f"pages_r{run_id}", records=[(*row[:8], moment, *row[9:])], columns=OLD_COLUMNS
    )


def a_picture(key: str) -> Page:
    page = a_page(key, body=None)
    page.content, page.content_type, page.encoding = b"\x89PNG\0", "image/png", None
    return page


async def written(database: str, run_id: int, *pages: Page) -> None:
    writer = Writer(database, RunTables(run_id), EPOCH, ())
    try:
        await writer.write(pages)
    finally:
        await writer.close()


async def columns(connection: PostgresConnection, table: str) -> list[Any]:
    return [tuple(row) for row in await connection.fetch(query("columns-of"), table)]


async def test_a_new_database_gets_every_migration_once(connection: PostgresConnection) -> None:
    for _ in range(2):
        await Catalogue(connection).prepare(upgrade=True)
        assert await schema_version(connection) == NEWEST
    assert await connection.fetchval("SELECT count(*) FROM schema_version") == 1


async def test_the_migrations_are_numbered_without_a_gap() -> None:
    assert list(migrations()) == list(range(1, NEWEST + 1))


async def test_an_old_database_becomes_like_a_new_one_and_keeps_its_rows(old: PostgresConnection) -> None:
    assert await schema_version(old) == 1
    await Catalogue(old).prepare(upgrade=True)
    assert await schema_version(old) == NEWEST
    whole = await columns(old, "pages")
    assert whole[-12:] == [
        *(("content", "bytea"), ("content_type", "text"), ("encoding", "text"), ("kind", "text")),
        *(("depth", "integer"), ("page_no", "integer"), ("origin", "bytea"), ("list", "bytea"), ("batch", "bigint")),
        *(("content_digest", "bytea"), ("stale", "boolean"), ("final_url", "text")),
    ]
    for table in (f"pages_r{FINISHED}", f"pages_r{UNFINISHED}", "pages_current"):
        assert await columns(old, table) == whole
    row = await old.fetchrow("SELECT key, body::text, content, content_type, encoding FROM pages_current")
    assert row is not None
    assert tuple(row) == ("before", '{"a": 1}', None, None, None)


async def test_an_old_run_that_nobody_sees_is_in_no_view_until_it_is_published(old: PostgresConnection) -> None:
    """Each corpus makes planning a query on a view longer, and an old database may have many runs."""
    await old.execute("INSERT INTO runs (name, spec, epoch) VALUES ('newer', '{}', $1)", EPOCH)
    await old.execute(query("make-pages-part", part="pages_r3", run_id=3))
    await old.execute(query("attach", table="pages", part="pages_r3", run_id=3))
    await copy_as_0_1_0_does(old, 3, "newer")
    await old.execute("UPDATE runs SET state = 'complete', counts = '{}', published_at = now() WHERE run_id = 3")
    await Catalogue(old).prepare(upgrade=True)

    async def shown() -> tuple[list[str], list[str]]:
        text = await old.fetchval("SELECT pg_get_viewdef('pages_current')")
        names = [name for name in ("finished", "newer", "unfinished") if f"'{name}'" in text]
        return names, [row["key"] for row in await old.fetch("SELECT key FROM pages_current ORDER BY key")]

    assert await shown() == (["newer", "unfinished"], ["newer"])
    await Corpora(old).publish("finished", RunTables(FINISHED), ())
    assert await shown() == (["finished", "newer", "unfinished"], ["before", "newer"])
    async with old.transaction():
        await Corpora(old).add("another", "", [])
    assert await shown() == (["finished", "newer", "unfinished"], ["before", "newer"])


async def test_both_runs_of_an_old_database_go_on(old: PostgresConnection, database: str) -> None:
    catalogue = Catalogue(old)
    await catalogue.prepare(upgrade=True)
    for run_id in (FINISHED, UNFINISHED):
        # Some keys are there already, so the batch is merged.
        await written(database, run_id, a_page("before"), a_picture("picture"), a_page("json"))
    await finished(old, RunTables(UNFINISHED), EPOCH)
    rows = await old.fetch("SELECT run_id, key, content, content_type FROM pages ORDER BY run_id, key")
    assert [tuple(row) for row in rows] == [
        (run_id, key, *picture)
        for run_id in (FINISHED, UNFINISHED)
        for key, *picture in (("before", None, None), ("json", None, None), ("picture", b"\x89PNG\0", "image/png"))
    ]
    assert {row["run_id"] for row in await old.fetch("SELECT run_id FROM pages_current")} == {FINISHED, UNFINISHED}
    failed = a_page("failed")
    failed.fail("why")
    await written(database, FINISHED, failed)
    assert await catalogue.reopen(RunTables(FINISHED), PagesToRetry()) == {Outcome.FAILED: 1}


async def test_a_worker_of_the_version_before_goes_on_after_the_migration(old: PostgresConnection) -> None:
    await Catalogue(old).prepare(upgrade=True)
    for run_id in (FINISHED, UNFINISHED):
        await copy_as_0_1_0_does(old, run_id, "after")
        assert await old.fetch(query("changed-parts"), ["pages"], [f"pages_r{run_id}"], run_id) == []
    await old.execute(query("attach", table="pages", part=f"pages_r{UNFINISHED}", run_id=UNFINISHED))
    assert await old.fetchval("SELECT count(*) FROM pages") == 4


async def test_a_page_that_an_old_staging_table_has_is_merged_after_the_migration(old: PostgresConnection) -> None:
    await old.execute(query("make-staging", staging="staging_r2", part="pages_r2"))
    await old.execute("ALTER TABLE staging_r2 RENAME TO old_staging")
    await Catalogue(old).prepare(upgrade=True)
    async with old.transaction():
        await old.execute("INSERT INTO old_staging SELECT 2, 'x', 'x', NULL, 'stored', NULL, 200, 1, now()")
        assert len(await old.fetch(query("merge-staging", staging="old_staging", part="pages_r2"))) == 1


async def test_other_commands_say_that_the_schema_is_older_and_change_nothing(
    old: PostgresConnection, database: str
) -> None:
    before = await columns(old, "pages")
    for call in (Catalogue(old).prepare(), Writer(database, RunTables(UNFINISHED), EPOCH, ()).open()):
        with pytest.raises(
            PostgresRefused, match=f"has version 1, and this shardcrawl needs {NEWEST}: `shardcrawl run`"
        ) as e:
            await call
        assert len(str(e.value).splitlines()) == 1
    assert await columns(old, "pages") == before
    assert await schema_version(old) == 1


@pytest.mark.parametrize("upgrade", [True, False], ids=["run", "other commands"])
async def test_a_newer_schema_is_refused_in_one_line(connection: PostgresConnection, upgrade: bool) -> None:
    await Catalogue(connection).prepare()
    await connection.execute("UPDATE schema_version SET version = 99")
    with pytest.raises(
        PostgresRefused, match=f"has version 99, and this shardcrawl knows {NEWEST} at most: install"
    ) as e:
        await Catalogue(connection).prepare(upgrade=upgrade)
    assert len(str(e.value).splitlines()) == 1


async def test_a_worker_goes_on_when_the_schema_becomes_newer(old: PostgresConnection, database: str) -> None:
    await Catalogue(old).prepare(upgrade=True)
    await old.execute("UPDATE schema_version SET version = 99")
    await written(database, UNFINISHED, a_page("a"))
    assert await old.fetchval("SELECT count(*) FROM pages_r2") == 2


@pytest.mark.parametrize("other", ["(version text)", "(version_rank integer, script text)", "(version integer)"])
async def test_a_schema_version_of_another_program_is_refused_in_one_line(
    connection: PostgresConnection, other: str
) -> None:
    await connection.execute(f"CREATE TABLE schema_version {other}")
    await connection.execute("INSERT INTO schema_version SELECT NULL")
    with pytest.raises(PostgresRefused, match="has other tables named") as e:
        await Catalogue(connection).prepare(upgrade=True)
    assert len(str(e.value).splitlines()) == 1
    assert await connection.fetchval("SELECT to_regclass('pages')") is None


async def test_machines_that_migrate_at_once_do_not_meet(old: PostgresConnection, database: str) -> None:
    connections = [await connect_postgres(database) for _ in range(4)]
    try:
        await asyncio.gather(*(Catalogue(connection).prepare(upgrade=True) for connection in connections))
    finally:
        for connection in connections:
            await connection.close()
    assert await schema_version(old) == NEWEST


async def test_a_migration_that_breaks_off_leaves_the_database_as_it_was(
    old: PostgresConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await columns(old, "pages")
    monkeypatch.setattr(schema, "migrations", lambda: {**migrations(), NEWEST + 1: "SELECT no_such_column"})
    with pytest.raises(PostgresRefused):
        await Catalogue(old).prepare(upgrade=True)
    assert await columns(old, "pages") == before
    assert await schema_version(old) == 1


async def test_a_reader_that_holds_a_migration_up_is_named_and_no_worker_waits_long(
    old: PostgresConnection, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        schema, "query", lambda name: "SET LOCAL lock_timeout = '20ms'" if name == "migration-timeout" else query(name)
    )
    reader = await connect_postgres(database)
    try:
        async with reader.transaction():
            await reader.fetch("SELECT * FROM pages_current")
            with pytest.raises(PostgresUnavailable, match="a query that somebody runs on pages holds it up") as e:
                await Catalogue(old).prepare(upgrade=True)
            assert len(str(e.value).splitlines()) == 1
    finally:
        await reader.close()
    await Catalogue(old).prepare(upgrade=True)
    assert await schema_version(old) == NEWEST


async def test_an_old_run_that_failed_pages_still_counts_them(old: PostgresConnection, database: str) -> None:
    await Catalogue(old).prepare(upgrade=True)
    page = a_picture("x")
    page.fail("why")
    await written(database, UNFINISHED, page)
    assert dict(await finished(old, RunTables(UNFINISHED), EPOCH)) == {Outcome.STORED: 1, Outcome.FAILED: 1}
