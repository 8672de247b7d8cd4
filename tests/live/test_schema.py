"""A corpus whose tables are in a Postgres schema of its own, beside one that has none."""

from __future__ import annotations

import asyncpg
import pytest

from crawler.sample.upstream import Upstream
from tests.live.examples import job
from tests.live.shell import Shell
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

TABLE = """
[[tables]]
name = "items"
columns = { id = "text" }
"""
FOLLOWS = """
[kinds.item.request]
url = "UPSTREAM/item/{key}"
[[follow]]
from = "id"
kind = "item"
"""


@pytest.mark.slow
async def test_two_corpora_have_tables_of_one_name_in_two_schemas(
    shell: Shell, upstream: Upstream, environ: dict[str, str]
) -> None:
    shell.write("keys.txt", [f"{number}" for number in range(50)])
    mine = job(upstream, '[store]\nschema = "mine"' + TABLE + FOLLOWS.replace("UPSTREAM", upstream.url), name="mine")
    await shell.run("check", shell.write("mine.toml", mine), environ=environ)
    await shell.run("run", "mine.toml", environ=environ)
    await shell.run("audit", "mine", environ=environ)
    assert await shell.sql("select count(*) as n from mine.items_current", environ=environ) == [{"n": 50}]
    assert await shell.sql("select count(*) as n from mine.pages_current", environ=environ) == [{"n": 100}]
    await shell.run("run", shell.write("other.toml", job(upstream, TABLE, name="other")), environ=environ)
    await shell.run("audit", "other", environ=environ)
    for view, rows in (("items_current", 50), ("mine.pages_current", 100), ("pages_current", 150)):
        assert await shell.sql(f"select count(*) as n from {view}", environ=environ) == [{"n": rows}], view
    ours = (
        "select relname as name from pg_class where relnamespace = 'mine'::regnamespace and relkind <> 'i' order by 1"
    )
    assert [row["name"] for row in await shell.sql(ours, environ=environ)] == [
        *("items", "items_current", "items_r1", "pages_current", "pages_found_r1", "pages_r1"),
    ]


@pytest.mark.slow
async def test_a_corpus_stays_in_its_schema(shell: Shell, upstream: Upstream, environ: dict[str, str]) -> None:
    shell.write("keys.txt", ["1"])
    path = shell.write("job.toml", job(upstream, TABLE).replace('name = "test"', ""))
    await shell.run("run", path, environ=environ)
    path.write_text(path.read_text() + '\n[store]\nschema = "mine"\n')
    ended = await shell.run("run", path, environ=environ, code=1)
    assert "corpus job has its tables in the schema that the address names" in ended.err
    assert len(ended.err.strip().splitlines()) == 1
    assert (await shell.run("check", path, environ=environ, code=1)).err == ended.err


@pytest.mark.slow
async def test_a_query_on_a_view_holds_up_no_new_corpus(
    shell: Shell, upstream: Upstream, environ: dict[str, str]
) -> None:
    """Its run begins, and its end waits for the query."""
    shell.write("keys.txt", ["1"])
    await shell.run("run", shell.write("first.toml", job(upstream, name="first")), environ=environ)
    connection = await asyncpg.connect(environ["DATABASE_URL"])
    try:
        async with connection.transaction():
            await connection.fetch("SELECT * FROM pages_current")
            second = await shell.start("run", shell.write("second.toml", job(upstream, name="second")), environ=environ)

            async def stored() -> bool:
                return bool(await connection.fetchval("SELECT state = 'complete' FROM runs WHERE name = 'second'"))

            await eventually(stored, "the second run is complete", seconds=60)
            assert second.process.returncode is None
        assert (await second.end()).code == 0
        assert await connection.fetchval("SELECT count(*) FROM pages_current") == 2
    finally:
        await connection.close()
