"""`changes` in Postgres: every pair of what a key was in one run, and is in another."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from typing import NamedTuple

import asyncpg
import pytest

from coordinator.errors import PostgresRefused
from coordinator.model import Epoch
from coordinator.queue.sharding import digest
from crawler.cli.inspect import query_rows
from crawler.store.catalogue import Catalogue
from crawler.store.corpora import Corpora
from crawler.store.postgres import PostgresConnection, connect_postgres
from crawler.store.tables import RunTables
from tests.crawler.examples import a_document

pytestmark = pytest.mark.anyio


class Was(NamedTuple):
    """A key's page in a run."""

    outcome: str
    body: bytes | None = b"one"
    records: bytes | None = None
    stale: bool | None = None


NO_PAGE = None
ONE, OTHER = Was("stored"), Was("stored", b"other")
SAME, KEPT, KEPT_OTHER = Was("unchanged"), Was("failed", stale=True), Was("failed", b"other", stale=True)
GONE, REFUSED, FAILED = Was("gone", None), Was("refused", None), Was("failed", None)
# What a key was, then what it has become for each of what it may be now.
NOW = (ONE, OTHER, SAME, KEPT, KEPT_OTHER, GONE, REFUSED, FAILED, NO_PAGE)
OF_CONTENT = ("unchanged", "changed", "unchanged", "stale", "changed", "gone", "gone", "failed", "removed")
OF_NONE = ("added", "added", "added", "added", "added", "absent", "absent", "failed", "absent")
TABLE: Mapping[Was | None, tuple[str, ...]] = {
    ONE: OF_CONTENT,
    SAME: OF_CONTENT,
    KEPT: OF_CONTENT,
    GONE: OF_NONE,
    REFUSED: OF_NONE,
    FAILED: OF_NONE,
    NO_PAGE: (*OF_NONE[:-1], ""),
}
BY_RECORDS = (
    (Was("stored", b"a", b"records"), Was("stored", b"b", b"records"), "unchanged"),
    (Was("stored", b"a", b"records"), Was("stored", b"a", b"others"), "changed"),
    (Was("stored", b"a", b"records"), Was("stored", b"a"), "changed"),
    (Was("stored", b"a", b"records"), Was("stored", b"a", b""), "unchanged"),
    (Was("stored", b"a", b""), Was("stored", b"a", b"records"), "unchanged"),
    (Was("stored", b"a", b""), Was("stored", b"b", b""), "changed"),
    (Was("stored", None, b"records"), Was("stored", None, b"records"), "unchanged"),
    (Was("stored", None), Was("stored", None), "unchanged"),
    (Was("stored", None), Was("stored", b"a"), "changed"),
)


async def a_run(connection: PostgresConnection, name: str, pages: Mapping[str, Was | None], schema: str = "") -> int:
    """A complete run that is not published, with these pages by key."""
    store = {"store": {"schema": schema}} if schema else {}
    run_id = await Catalogue(connection).make(name, a_document(**store), Epoch("x"), (), corpus=f"test{schema}")
    await connection.executemany(
        f"INSERT INTO {RunTables(run_id, schema).pages} (run_id, digest, key, outcome, body_digest, content_digest, "
        f"stale, attempts, fetched_at) VALUES ({run_id}, $1, $2, $3, $4, $5, $6, 1, now())",
        [(digest(key), key, one.outcome, one.body, one.records, one.stale) for key, one in pages.items() if one],
    )
    await connection.execute("UPDATE runs SET state = 'complete', counts = '{}' WHERE run_id = $1", run_id)
    return run_id


async def changes(connection: PostgresConnection, old: str | int, new: str | int) -> dict[str, str]:
    kind = "integer" if isinstance(old, int) else "text"
    rows = await connection.fetch(f"SELECT * FROM changes($1::{kind}, $2::{kind})", old, new)
    assert all(row["digest"] == digest(row["key"]) for row in rows)
    assert len({row["key"] for row in rows}) == len(rows)
    return {row["key"]: row["change"] for row in rows}


@pytest.fixture
async def schema(connection: PostgresConnection) -> PostgresConnection:
    await Catalogue(connection).prepare()
    return connection


@pytest.mark.parametrize("in_schema", ["", "own"])
async def test_every_pair_of_then_and_now_has_one_change(schema: PostgresConnection, in_schema: str) -> None:
    pairs = [(then, now, change) for then, row in TABLE.items() for now, change in zip(NOW, row, strict=True)] + list(
        BY_RECORDS
    )
    old = await a_run(schema, "old", {f"{n}": then for n, (then, _, _) in enumerate(pairs)}, in_schema)
    new = await a_run(schema, "new", {f"{n}": now for n, (_, now, _) in enumerate(pairs)}, in_schema)
    expected = {f"{number}": change for number, (_, _, change) in enumerate(pairs) if change}
    found = await changes(schema, "old", "new")
    assert {key: (pairs[int(key)], change) for key, change in found.items()} == {
        key: (pairs[int(key)], change) for key, change in expected.items()
    }
    assert await changes(schema, old, new) == expected
    await Corpora(schema).publish(f"test{in_schema}", RunTables(old, in_schema), ())
    assert await changes(schema, "old", "new") == expected, "one is a partition, and the other is not"
    assert set((await changes(schema, "old", "old")).values()) == {"unchanged", "stale", "failed", "absent"}


async def test_a_run_that_is_not_there_or_not_complete_is_an_error(schema: PostgresConnection) -> None:
    await a_run(schema, "old", {"a": ONE})
    await Catalogue(schema).make("new", a_document(), Epoch("x"), ())
    for old, new, message in (
        ("old", "new", "run new is not complete"),
        ("nobody", "old", "no run nobody"),
        (1, 77, "no run of that run_id"),
        ("old", None, "no run of that run_id"),
    ):
        with pytest.raises(asyncpg.InvalidParameterValueError, match=message):
            await changes(schema, old, new)  # type: ignore[arg-type]


async def test_who_may_only_read_reads_changes_and_nothing_of_other_schemas(
    schema: PostgresConnection, database: str
) -> None:
    """Tables and functions that come first in a reader's search_path are not taken for ours."""
    await a_run(schema, "old", {"a": ONE})
    await a_run(schema, "new", {"a": OTHER})
    reader = f"reader_{secrets.token_hex(4)}"
    await schema.execute(f"""
        CREATE ROLE {reader} LOGIN; GRANT USAGE ON SCHEMA public TO {reader};
        GRANT SELECT ON ALL TABLES IN SCHEMA public TO {reader};
        CREATE SCHEMA {reader} AUTHORIZATION {reader};
    """)
    as_reader = database.replace("postgres@", f"{reader}@", 1)
    connection = await asyncpg.connect(as_reader)
    await connection.execute("""
        CREATE TABLE runs (run_id integer, name text, corpus text, state text);
        CREATE TABLE pages_r1 (a int);
        CREATE FUNCTION format(text, text, text) RETURNS text LANGUAGE sql AS $$ SELECT 'planted' $$;
    """)
    statement = "SELECT key, change FROM public.changes('old', 'new')"
    assert [tuple(row) for row in await connection.fetch(statement)] == [("a", "changed")]
    await connection.execute("DROP FUNCTION format(text, text, text)")
    await connection.close()
    assert (await query_rows(as_reader, statement))[1] == [("a", "changed")]


async def test_a_function_changes_of_another_role_is_refused(database: str) -> None:
    outsider = f"outsider_{secrets.token_hex(4)}"
    admin = await asyncpg.connect(database)
    await admin.execute(f"CREATE ROLE {outsider}; GRANT CREATE ON SCHEMA public TO PUBLIC; SET ROLE {outsider}")
    await admin.execute("CREATE FUNCTION changes(varchar, varchar) RETURNS text LANGUAGE sql AS $$ SELECT 'x' $$")
    with pytest.raises(PostgresRefused, match=f"function changes belongs to role {outsider}"):
        await connect_postgres(database)
    await admin.close()


async def test_readers_compare_while_a_run_is_published(schema: PostgresConnection, database: str) -> None:
    old = await a_run(schema, "old", {f"{number}": ONE for number in range(1000)})
    await a_run(schema, "new", {f"{number}": OTHER for number in range(1000)})
    reader = await connect_postgres(database)
    publishing = asyncio.create_task(Corpora(schema).publish("test", RunTables(old), ()))
    while not publishing.done():
        assert set((await changes(reader, "old", "new")).values()) == {"changed"}
        await asyncio.sleep(0)
    await publishing
    await reader.close()
