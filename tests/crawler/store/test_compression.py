"""`[store] compression`: how a run's wide values are compressed, and that runs of a corpus may differ in it."""

from __future__ import annotations

import re

import pytest

from coordinator.errors import PostgresRefused
from coordinator.model import Epoch
from crawler.model import Page
from crawler.store.catalogue import Catalogue
from crawler.store.postgres import PostgresConnection
from crawler.store.tables import RunTables
from crawler.store.writer import Writer
from tests.crawler.examples import a_document, a_page, a_table, finished

pytestmark = pytest.mark.anyio

EPOCH = Epoch("first")
TABLE = a_table(n="numeric", title="text", tags="jsonb", column="bytea")
WIDE = "wide " * 2000


@pytest.fixture
async def catalogue(connection: PostgresConnection) -> Catalogue:
    catalogue = Catalogue(connection)
    await catalogue.prepare()
    return catalogue


@pytest.fixture
async def has_lz4(connection: PostgresConnection) -> bool:
    values = await connection.fetchval("SELECT enumvals FROM pg_settings WHERE name = 'default_toast_compression'")
    return "lz4" in values


async def begun(catalogue: Catalogue, compression: str, name: str = "test") -> RunTables:
    document = a_document(store={"compression": compression})
    return RunTables(await catalogue.make(name, document, EPOCH, [TABLE], corpus="test"))


def a_wide_page(key: str) -> Page:
    page = a_page(key, records=[(1, WIDE, f'["{WIDE}"]', WIDE.encode())])
    page.body, page.content = f'"{WIDE}"'.encode(), WIDE.encode()
    return page


@pytest.mark.parametrize("compression", ["auto", "lz4", "pglz", "none"])
async def test_wide_values_of_a_run_are_compressed_as_the_job_says(
    catalogue: Catalogue, connection: PostgresConnection, database: str, has_lz4: bool, compression: str
) -> None:
    """Also those of a batch with a page that is stored already; and the parts are attached to tables of another run."""
    if compression == "lz4" and not has_lz4:
        says = '[store] compression is "lz4", and this Postgres was built without it; write "auto"'
        with pytest.raises(PostgresRefused, match=re.escape(says)):
            await begun(catalogue, compression)
        with pytest.raises(PostgresRefused, match=re.escape(says)):
            await catalogue.rehearse("test", [TABLE], compression=compression)
        return
    expected = {"none": None, "auto": "lz4" if has_lz4 else "pglz"}.get(compression, compression)
    await finished(connection, await begun(catalogue, "pglz", "before"), EPOCH, [TABLE])
    run = await begun(catalogue, compression)
    writer = Writer(database, run, EPOCH, [TABLE])
    try:
        await writer.write([a_wide_page("a")])
        await writer.write([a_wide_page("a"), a_wide_page("b")])
    finally:
        await writer.close()
    await finished(connection, run, EPOCH, [TABLE])
    pages = await connection.fetch("SELECT pg_column_compression(body), pg_column_compression(content) FROM pages")
    facts = await connection.fetch(
        'SELECT pg_column_compression(title), pg_column_compression(tags), pg_column_compression("column") FROM facts'
    )
    assert [set(row) for row in [*pages, *facts]] == [{expected}] * 4
    assert await connection.fetchval("SELECT title FROM facts_current LIMIT 1") == WIDE


async def test_auto_keeps_what_somebody_set_for_a_column(catalogue: Catalogue, connection: PostgresConnection) -> None:
    await begun(catalogue, "auto", "before")
    await connection.execute(
        "ALTER TABLE facts ALTER title SET COMPRESSION pglz, ALTER tags SET STORAGE EXTERNAL, ALTER n SET STORAGE PLAIN"
    )
    run = await begun(catalogue, "auto")
    rows = await connection.fetch(
        "SELECT attname, attstorage, attcompression FROM pg_attribute "
        "WHERE attrelid = $1::text::regclass AND attname IN ('title', 'tags', 'n')",
        run.part("facts"),
    )
    assert {row["attname"]: (row["attstorage"], row["attcompression"]) for row in rows} == {
        "title": (b"x", b"p"),
        "tags": (b"e", b"\0"),
        "n": (b"p", b"\0"),
    }
