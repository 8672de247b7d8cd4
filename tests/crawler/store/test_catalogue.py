from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta

import pytest

from coordinator.errors import EpochLost, PostgresRefused
from coordinator.model import Epoch, Outcome
from coordinator.tasks import cancel_and_wait
from crawler.job.tables import TableSettings
from crawler.model import Page
from crawler.store import catalogue as catalogue_module
from crawler.store import corpora
from crawler.store.catalogue import Catalogue
from crawler.store.postgres import PostgresConnection, connect_postgres
from crawler.store.reasons import PagesToRetry
from crawler.store.tables import RESERVED_WORDS, RunTables
from crawler.store.writer import Writer
from tests.crawler.examples import a_document, a_page, a_table, finished
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

EPOCH = Epoch("first")
FACTS = a_table(n="numeric(10, 2)", t="varchar(5)", c="char", at="timestamptz(3)", many="numeric(5,2)[]")


@pytest.fixture
async def reader(database: str) -> AsyncIterator[PostgresConnection]:
    """Somebody else's connection."""
    connection = await connect_postgres(database)
    yield connection
    await connection.close()


@pytest.fixture
async def second_reader(database: str) -> AsyncIterator[PostgresConnection]:
    connection = await connect_postgres(database)
    yield connection
    await connection.close()


@pytest.fixture
async def catalogue(connection: PostgresConnection) -> Catalogue:
    catalogue = Catalogue(connection)
    await catalogue.prepare()
    return catalogue


async def made(catalogue: Catalogue, name: str = "test", *tables: TableSettings) -> int:
    return await catalogue.make(name, a_document(), EPOCH, tables, corpus="test")


async def written(database: str, run_id: int, pages: list[Page], *tables: TableSettings) -> None:
    writer = Writer(database, RunTables(run_id), EPOCH, tables)
    try:
        await writer.write(pages)
    finally:
        await writer.close()


async def refusal(catalogue: Catalogue, *tables: TableSettings) -> str:
    """The one line with which a run with these tables is refused; nothing of it is left."""
    before = [run.name for run in await catalogue.all()]
    with pytest.raises(PostgresRefused) as caught:
        await made(catalogue, "refused", *tables)
    assert [run.name for run in await catalogue.all()] == before
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


async def test_a_run_is_found_as_it_was_made(catalogue: Catalogue) -> None:
    document = a_document(request={"headers": {"A": "${TOKEN} é"}}, limits={"x.example": {"rate": 0.5}})
    run_id = await catalogue.make("test", document, EPOCH, ())
    run = await catalogue.find("test")
    assert run is not None
    assert (run.run_id, run.name, run.document, run.epoch) == (run_id, "test", document, EPOCH)
    assert (run.complete, run.counts, run.finished_at) == (False, {}, None)
    assert abs(run.created_at - datetime.now(UTC)) < timedelta(minutes=10)
    assert await catalogue.find("Test") is None
    assert await catalogue.epoch(run_id) == EPOCH
    assert await catalogue.epoch(run_id + 1) is None


async def test_runs_are_listed_in_the_order_they_were_made(catalogue: Catalogue) -> None:
    for name in ("b", "a", "c"):
        await made(catalogue, name)
    assert [run.name for run in await catalogue.all()] == ["b", "a", "c"]


async def test_the_epoch_of_one_run_is_changed(catalogue: Catalogue) -> None:
    first, second = await made(catalogue, "a"), await made(catalogue, "b")
    await catalogue.change_epoch(first, Epoch("second"))
    assert (await catalogue.epoch(first), await catalogue.epoch(second)) == (Epoch("second"), EPOCH)


async def test_preparing_again_changes_nothing_and_waits_for_no_reader(
    catalogue: Catalogue, reader: PostgresConnection
) -> None:
    await made(catalogue)
    async with reader.transaction():
        await reader.fetch("SELECT * FROM pages_current")
        async with asyncio.timeout(5):
            await catalogue.prepare()
    assert await catalogue.find("test") is not None


async def test_a_new_run_with_the_same_tables_waits_for_no_reader(
    catalogue: Catalogue, reader: PostgresConnection
) -> None:
    await made(catalogue, "first", FACTS)
    async with reader.transaction():
        await reader.fetch("SELECT * FROM facts_current")
        async with asyncio.timeout(5):
            await made(catalogue, "second", FACTS)


async def test_machines_that_prepare_at_once_do_not_meet(database: str) -> None:
    connections = [await connect_postgres(database) for _ in range(4)]
    try:
        await asyncio.gather(*(Catalogue(connection).prepare() for connection in connections))
        assert await Catalogue(connections[0]).all() == []
    finally:
        for connection in connections:
            await connection.close()


async def test_readers_see_nothing_of_a_run_until_it_is_finished_and_then_all_of_it(
    catalogue: Catalogue,
    connection: PostgresConnection,
    reader: PostgresConnection,
    second_reader: PostgresConnection,
    database: str,
) -> None:
    facts = a_table(n="integer")
    run_id = await made(catalogue, "test", facts)
    pages = [a_page(str(number), records=[(number,), (-number,)]) for number in range(100)]
    gone = a_page("gone", body=None)
    gone.outcome = Outcome.GONE
    await written(database, run_id, [*pages, gone], facts)
    seen: set[tuple[int, ...]] = set()
    raw: set[tuple[int, ...]] = set()

    async def watch(connection: PostgresConnection, found: set[tuple[int, ...]], counts: Sequence[str]) -> None:
        columns = ", ".join(f"(SELECT count(*) FROM {count})" for count in counts)
        while True:
            found.add(tuple(await connection.fetchrow(f"SELECT {columns}")))

    current = ("pages_current", "facts_current", "runs WHERE published_at IS NOT NULL")
    watchers = [
        asyncio.create_task(watch(reader, seen, current)),
        asyncio.create_task(watch(second_reader, raw, ("pages", "facts"))),
    ]
    try:
        await eventually(lambda: bool(seen and raw), "readers read")
        assert (seen, raw) == ({(0, 0, 0)}, {(0, 0)})
        counts = await finished(connection, RunTables(run_id), EPOCH, [facts])
        await eventually(lambda: (101, 200, 1) in seen and (101, 200) in raw, "the run is seen whole")
    finally:
        await cancel_and_wait(watchers)
    assert seen == {(0, 0, 0), (101, 200, 1)}
    # Either table of every run is there whole; only the views promise that both came at once.
    assert raw <= {(0, 0), (101, 0), (0, 200), (101, 200)}
    assert counts == {Outcome.STORED: 100, Outcome.GONE: 1}
    run = await catalogue.find("test")
    assert run is not None
    assert (run.complete, run.counts) == (True, counts)
    assert run.finished_at is not None
    assert run.finished_at >= run.created_at


async def test_the_current_views_move_to_the_newest_run_and_the_older_one_stays(
    catalogue: Catalogue, connection: PostgresConnection, reader: PostgresConnection, database: str
) -> None:
    facts = a_table(n="integer")
    older, newer = await made(catalogue, "older", facts), await made(catalogue, "newer", facts)
    for number, run_id in enumerate((older, newer)):
        await written(database, run_id, [a_page(f"key-{number}", records=[(number,)])], facts)
    for run_id in (older, newer):
        await finished(connection, RunTables(run_id), EPOCH, [facts])
        assert [row["run_id"] for row in await reader.fetch("SELECT run_id FROM pages_current")] == [run_id]
        assert [row["run_id"] for row in await reader.fetch("SELECT run_id FROM facts_current")] == [run_id]
    everything = await reader.fetch("SELECT run_id, key FROM pages ORDER BY run_id")
    assert [tuple(row) for row in everything] == [(older, "key-0"), (newer, "key-1")]


async def test_a_run_that_is_finished_again_keeps_its_counts_and_its_place(
    catalogue: Catalogue, connection: PostgresConnection, reader: PostgresConnection, database: str
) -> None:
    older = await made(catalogue, "older")
    await written(database, older, [a_page("a"), a_page("b")])
    counts = await finished(connection, RunTables(older), EPOCH)
    newer = await made(catalogue, "newer")
    await written(database, newer, [a_page("c")])
    await finished(connection, RunTables(newer), EPOCH)
    await reader.execute(f"DELETE FROM pages_r{older} WHERE key = 'a'")
    before = await catalogue.find("older")
    assert await finished(connection, RunTables(older), EPOCH) == counts == {Outcome.STORED: 2}
    assert await catalogue.find("older") == before
    assert [row["key"] for row in await reader.fetch("SELECT key FROM pages_current")] == ["c"]


async def test_a_finish_that_was_cut_off_between_its_steps_is_carried_through(
    catalogue: Catalogue,
    connection: PostgresConnection,
    reader: PostgresConnection,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    facts = a_table(n="integer")
    run_id = await made(catalogue, "test", facts)
    await written(database, run_id, [a_page("a", records=[(1,)])], facts)
    with monkeypatch.context() as patch:
        patch.setattr(corpora, "PUBLISH_DELAY_SECONDS", 3600)
        finishing = asyncio.create_task(finished(connection, RunTables(run_id), EPOCH, [facts]))

        async def attached() -> bool:
            return bool(await reader.fetchval("SELECT count(*) FROM pages"))

        await eventually(attached, "the parts are attached")
        await cancel_and_wait([finishing])
    run = await catalogue.find("test")
    assert run is not None
    assert (run.complete, run.shortfall) == (True, None)
    assert await reader.fetch("SELECT * FROM pages_current") == []
    assert await finished(connection, RunTables(run_id), EPOCH, [facts]) == {Outcome.STORED: 1}
    assert await reader.fetchval("SELECT n FROM facts_current") == 1


async def test_an_open_transaction_of_a_reader_does_not_hold_a_run_back(
    catalogue: Catalogue, connection: PostgresConnection, reader: PostgresConnection
) -> None:
    run_id = await made(catalogue)
    async with reader.transaction():
        await reader.fetch("SELECT * FROM pages_current")
        async with asyncio.timeout(30):
            await finished(connection, RunTables(run_id), EPOCH)


async def test_workers_that_finish_a_run_at_once_finish_it_once(
    catalogue: Catalogue, connection: PostgresConnection, database: str
) -> None:
    run_id = await made(catalogue)
    await written(database, run_id, [a_page("a")])
    connections = [await connect_postgres(database) for _ in range(4)]
    try:
        ends = await asyncio.gather(*(finished(connection, RunTables(run_id), EPOCH) for connection in connections))
    finally:
        for connection in connections:
            await connection.close()
    assert ends == [{Outcome.STORED: 1}] * 4


async def test_a_run_whose_failed_keys_were_put_back_while_it_ended_is_not_finished(
    catalogue: Catalogue, connection: PostgresConnection, reader: PostgresConnection, database: str
) -> None:
    run_id = await made(catalogue)
    failed = a_page("a")
    failed.fail("out of attempts")
    await written(database, run_id, [failed, a_page("b")])
    async with reader.transaction():
        await reader.execute("SELECT pg_advisory_xact_lock(7310579, $1)", run_id)
        finishing = asyncio.create_task(finished(connection, RunTables(run_id), EPOCH))
        assert await Catalogue(reader).reopen(RunTables(run_id), PagesToRetry()) == {Outcome.FAILED: 1}
    with pytest.raises(EpochLost, match="run test was changed"):
        await finishing
    run = await catalogue.find("test")
    assert run is not None
    assert (run.complete, run.counts) == (False, {})
    assert await reader.fetch("SELECT * FROM pages_current") == []
    await catalogue.change_epoch(run_id, Epoch("second"))
    await finished(connection, RunTables(run_id), Epoch("second"))
    with pytest.raises(EpochLost):
        await finished(connection, RunTables(run_id), EPOCH)


async def test_an_empty_run_is_finished_too(catalogue: Catalogue, connection: PostgresConnection) -> None:
    run_id = await made(catalogue)
    assert await finished(connection, RunTables(run_id), EPOCH) == {}
    run = await catalogue.find("test")
    assert run is not None
    assert run.complete


async def test_a_late_page_of_a_finished_run_is_still_stored_once(
    catalogue: Catalogue, connection: PostgresConnection, reader: PostgresConnection, database: str
) -> None:
    run_id = await made(catalogue)
    await written(database, run_id, [a_page("a", body=b'"first"')])
    await finished(connection, RunTables(run_id), EPOCH)
    await written(database, run_id, [a_page("a", body=b'"late"')])
    assert [row["body"] for row in await reader.fetch("SELECT body FROM pages")] == ['"first"']


async def test_digests_come_in_batches_by_outcome(
    catalogue: Catalogue, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue_module, "DIGESTS_PER_FETCH", 7)
    run_id = await made(catalogue)
    other = await made(catalogue, "other")
    pages = [a_page(str(number), body=None) for number in range(30)]
    for page in pages[:10]:
        page.outcome = Outcome.GONE
    await written(database, run_id, pages)
    await written(database, other, [a_page("not this one")])
    found: list[tuple[Outcome, bytes]] = []
    batches = 0
    async for batch in catalogue.digests(RunTables(run_id)):
        batches += 1
        assert sum(map(len, batch.values())) <= 7
        found += [(outcome, digest) for outcome, digests in batch.items() for digest in digests]
    assert batches == 5
    assert sorted(found) == sorted((page.outcome, page.item.digest) for page in pages)


async def test_a_table_of_every_type_serves_one_run_after_another(
    catalogue: Catalogue, connection: PostgresConnection, reader: PostgresConnection
) -> None:
    tables = [FACTS, a_table("t" * 40, n="integer")]
    first = await made(catalogue, "first", *tables)
    await finished(connection, RunTables(first), EPOCH, tables)
    second = await made(catalogue, "second", *tables)
    await finished(connection, RunTables(second), EPOCH, tables)
    for table in tables:
        assert await reader.fetch(f"SELECT * FROM {table.name}_current") == []


@pytest.mark.parametrize(
    "table",
    [
        a_table(n="bigint"),
        a_table(t="integer"),
        a_table(n="integer[]"),
    ],
    ids=["type", "name", "array"],
)
async def test_a_table_that_exists_with_other_columns_is_refused(catalogue: Catalogue, table: TableSettings) -> None:
    await made(catalogue, "first", a_table(n="integer"))
    message = await refusal(catalogue, table)
    assert "table facts exists with other columns" in message
    assert "n integer" in message


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"n": "bigint", "t": "text"}, "column n is integer there, and bigint in the job"),
        ({"n": "int", "t": "varchar(5)"}, "column t is text there, and character varying(5) in the job"),
        ({"n": "bigint", "t": "text", "more": "text"}, "column n is integer there, and bigint in the job"),
        (
            {"n": "integer", "more": "text"},
            'no column t text (it had it, or another one has; add t = "text" to columns)',
        ),
        ({"n": "integer"}, "the job has no column t text"),
    ],
)
async def test_the_column_that_differs_is_named_when_a_run_begins_and_when_it_is_rehearsed(
    catalogue: Catalogue, columns: dict[str, str], says: str
) -> None:
    await made(catalogue, "first", a_table(n="integer", t="text"))
    assert says in await refusal(catalogue, a_table(**columns))
    with pytest.raises(PostgresRefused, match=re.escape(says)):
        await catalogue.rehearse("second", [a_table(**columns)])


async def test_a_rehearsal_leaves_nothing_behind_and_finds_the_run(connection: PostgresConnection) -> None:
    count = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    catalogue = Catalogue(connection)
    assert await catalogue.rehearse("first", [a_table(n="integer")]) == (None, [])
    assert await connection.fetchval(count) == 0
    await catalogue.prepare()
    await made(catalogue, "first", a_table(n="integer"))
    there = await connection.fetchval(count)
    wider = [a_table(m="float", n="int"), a_table("others", t="text")]
    nothing, added = await catalogue.rehearse("second", wider)
    assert [str(column) for column in added] == ["adds column m double precision to table facts"]
    assert nothing is None
    found, added = await catalogue.rehearse("first", wider)
    assert (found and found.name, added) == ("first", ())
    assert await connection.fetchval(count) == there


async def test_a_rehearsal_refuses_what_a_run_of_the_corpus_would(catalogue: Catalogue) -> None:
    await made(catalogue, "first", a_table(n="integer"))
    with pytest.raises(PostgresRefused, match="corpus test has its tables in the schema that the address names; leave"):
        await catalogue.rehearse("second", [a_table(n="integer")], "shop", "test")
    with pytest.raises(PostgresRefused, match="schema public is the one that the address names anyway; leave it out"):
        await catalogue.rehearse("second", [a_table(n="integer")], "public", "other")


async def test_a_table_that_exists_with_another_size_is_refused(catalogue: Catalogue) -> None:
    await made(catalogue, "first", a_table(n="numeric(5,2)"))
    assert "n numeric(5,2)" in await refusal(catalogue, a_table(n="numeric(6,2)"))


async def test_somebody_elses_table_of_that_name_is_refused(catalogue: Catalogue, reader: PostgresConnection) -> None:
    await reader.execute("CREATE TABLE facts (id integer, n integer)")
    assert "table facts exists with other columns" in await refusal(catalogue, a_table(n="integer"))


async def test_a_table_that_could_not_be_published_is_refused_at_the_beginning(
    catalogue: Catalogue, reader: PostgresConnection
) -> None:
    await reader.execute("CREATE TABLE facts (run_id integer NOT NULL, digest bytea NOT NULL, n integer)")
    assert "unpartitioned" in await refusal(catalogue, a_table(n="integer"))


@pytest.mark.parametrize("foreign", ["TABLE facts_current (n integer)", "VIEW facts_current AS SELECT 1 AS n"])
async def test_what_has_the_name_of_a_view_is_named_also_by_a_rehearsal(
    catalogue: Catalogue, connection: PostgresConnection, foreign: str
) -> None:
    await connection.execute(f"CREATE {foreign}")
    assert 'cannot make the view "facts_current"' in await refusal(catalogue, a_table(n="integer"))
    with pytest.raises(PostgresRefused, match='cannot make the view "facts_current"'):
        await catalogue.rehearse("second", [a_table(n="integer")])


@pytest.mark.parametrize(
    "columns", [{"n": "numeric(2000)"}, {"n": "varchar(0)"}, {f"c{number}": "integer" for number in range(1_600)}]
)
async def test_columns_that_postgres_refuses_are_one_line(catalogue: Catalogue, columns: dict[str, str]) -> None:
    assert "correct its columns" in await refusal(catalogue, a_table(**columns))


async def test_a_column_of_a_type_that_no_job_has_is_not_proposed(
    catalogue: Catalogue, connection: PostgresConnection
) -> None:
    await made(catalogue, "first", a_table(n="integer"))
    await connection.execute("ALTER TABLE facts ADD more text, ADD words tsvector")
    says = "the job has no column words tsvector, and cannot have one of this type; drop it there"
    assert says in await refusal(catalogue, a_table(n="integer"))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ("ALTER TABLE facts ADD CONSTRAINT large CHECK (n > 5)", 'child table is missing constraint "large"'),
        ("CREATE UNIQUE INDEX ON facts (run_id, n)", "could not create unique index"),
    ],
)
async def test_rows_that_a_changed_table_does_not_take_are_not_published(
    catalogue: Catalogue, connection: PostgresConnection, database: str, changed: str, says: str
) -> None:
    table = a_table(n="integer")
    run = RunTables(await made(catalogue, "first", table))
    writer = Writer(database, run, EPOCH, [table])
    await writer.write([a_page("a", records=[(1,), (1,)])])
    await writer.close()
    await connection.execute(changed)
    with pytest.raises(PostgresRefused, match=f"{says}.*; a table was changed since run_id {run.run_id} began"):
        await finished(connection, run, EPOCH, [table])


async def test_what_a_deleted_run_left_behind_is_not_taken_for_the_new_runs(
    catalogue: Catalogue, reader: PostgresConnection, database: str
) -> None:
    run_id = await made(catalogue)
    await written(database, run_id, [a_page("old")])
    await reader.execute("TRUNCATE runs, corpora RESTART IDENTITY")
    assert f'"pages_r{run_id}" already exists' in await refusal(catalogue)


@pytest.mark.parametrize(
    "foreign",
    [
        "CREATE TABLE pages (id integer, url text)",
        "CREATE TABLE pages (runid integer, url text)",  # Postgres adds a HINT, in a line of its own
        "CREATE TABLE pages (run_id integer, url text)",
        "CREATE TABLE runs (id integer)",
        "CREATE TABLE corpora (corpus text PRIMARY KEY, language text)",
        "CREATE TABLE runs (run_id integer, publishedat text)",
    ],
)
async def test_other_peoples_tables_are_refused_in_one_line(connection: PostgresConnection, foreign: str) -> None:
    await connection.execute(foreign)
    with pytest.raises(PostgresRefused, match="has other tables named runs or pages") as caught:
        await Catalogue(connection).prepare()
    assert len(str(caught.value).splitlines()) == 1
    assert await connection.fetchval("SELECT to_regclass('pages_current')") is None, "nothing is left half made"


async def test_a_user_without_rights_is_refused_in_one_line(connection: PostgresConnection) -> None:
    await connection.execute("CREATE ROLE reader_only; SET ROLE reader_only")
    try:
        with pytest.raises(PostgresRefused, match="grant the rights") as caught:
            await Catalogue(connection).prepare()
        assert len(str(caught.value).splitlines()) == 1
    finally:
        await connection.execute("RESET ROLE; DROP ROLE reader_only")


async def test_words_of_sql_are_known(connection: PostgresConnection) -> None:
    """Earlier versions of Postgres have fewer."""
    reserved = "SELECT word FROM pg_get_keywords() WHERE catcode IN ('R', 'T')"
    assert {row["word"] for row in await connection.fetch(reserved)} <= RESERVED_WORDS


@pytest.mark.parametrize(
    "change", ["counts = '{\"lost\": 1}'", "counts = '[1]'", "layout = '7'", "spec = '[]'", "reasons = '{\"a\": 1}'"]
)
async def test_a_row_of_runs_with_other_json_is_refused_in_one_line(
    catalogue: Catalogue, connection: PostgresConnection, change: str
) -> None:
    await made(catalogue)
    await connection.execute(f"UPDATE runs SET {change}")
    with pytest.raises(PostgresRefused, match="the row of run test in `runs` cannot be read: .+; restore"):
        await catalogue.all()
