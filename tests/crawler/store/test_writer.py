"""Batches: each page is stored once with its records, whatever happens to the connection."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from coordinator.errors import EpochLost, PostgresRefused, PostgresUnavailable, RunCancelled
from coordinator.model import Epoch, Outcome
from crawler.job.tables import TableSettings
from crawler.model import Page
from crawler.parse.columns import Table
from crawler.store.postgres import PostgresConnection, connect_postgres
from crawler.store.tables import RunTables
from crawler.store.writer import Writer
from tests.crawler.examples import LoadingRun, a_loading_run, a_page, a_table
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

FACTS = a_table(n="numeric(5,2)")


NOON = datetime(2026, 1, 1, 12, 0, 0, 123457, tzinfo=UTC)
EVERY_TYPE: dict[str, tuple[Any, Any]] = {
    "smallint": (-(2**15), -(2**15)),
    "integer": (2**31 - 1, 2**31 - 1),
    "bigint": (-(2**63), -(2**63)),
    "numeric": (0.1, Decimal("0.1")),
    "numeric(10, 2)": ("19.99", Decimal("19.99")),
    "real": (1.5, 1.5),
    "double precision": (0.1, 0.1),
    "text": ("Zoë \x01", "Zoë \x01"),
    "varchar(3)": ("Zoë", "Zoë"),
    "char(3)": ("Zoë", "Zoë"),
    "boolean": (False, False),
    "uuid": ("12345678-1234-5678-1234-567812345678", UUID("12345678-1234-5678-1234-567812345678")),
    "bytea": (b"\0\xff", b"\0\xff"),
    "date": ("9999-12-30", date(9999, 12, 30)),
    "time": ("23:59:59.999999", time(23, 59, 59, 999_999)),
    "timestamp": ("0001-01-01T00:00:00.000001", datetime(1, 1, 1, 0, 0, 0, 1)),
    "timestamptz": ("2026-01-01T14:00:00.123457+02:00", NOON),
    "interval": (timedelta(days=-1, microseconds=1), timedelta(days=-1, microseconds=1)),
    "jsonb": ({"a": [1, "é"]}, '{"a": [1, "é"]}'),
    "json": ([1.5, None], "[1.5,null]"),
    "bigint[]": ([1, None], [1, None]),
    "text[]": (["a,b", '"'], ["a,b", '"']),
    "numeric(5,2)[]": ([0.25], [Decimal("0.25")]),
}


async def test_a_record_of_every_type_is_stored_as_it_is(database: str) -> None:
    settings = TableSettings(
        name="facts", column_settings={f"c{number}": kind for number, kind in enumerate(EVERY_TYPE)}
    )
    row = Table(settings).row([value for value, _ in EVERY_TYPE.values()])
    empty = Table(settings).row({})
    async with a_loading_run(database, settings) as run:
        await run.store([a_page("a", records=[row]), a_page("b", records=[empty])])
        rows = await run.eye.fetch(f"SELECT * FROM facts_r{run.run_id} ORDER BY c0")
    assert dict(zip(EVERY_TYPE, tuple(rows[0])[2:], strict=True)) == {
        kind: stored for kind, (_, stored) in EVERY_TYPE.items()
    }
    assert set(tuple(rows[1])[2:]) == {None}
    assert [row["run_id"] for row in rows] == [run.run_id] * 2
    assert rows[0]["digest"] == a_page("a").item.digest


async def test_records_of_several_tables_go_where_they_belong(database: str) -> None:
    page = a_page("a")
    page.records = [(1, ("x",)), (0, (1,)), (1, ("y",))]
    async with a_loading_run(database, a_table("facts", n="bigint"), a_table("notes", t="text")) as run:
        await run.store([page])
        assert await run.records() == [(1,)]
        notes = await run.eye.fetch(f"SELECT t FROM notes_r{run.run_id} ORDER BY t")
    assert [row["t"] for row in notes] == ["x", "y"]


async def test_a_key_twice_in_a_batch_is_stored_once_with_its_records_once(database: str) -> None:
    pages = [a_page(key, records=[(1,)]) for key in ("a", "b", "a", "c", "a")]
    async with a_loading_run(database, FACTS) as run:
        await run.store(pages)
        assert sorted(await run.pages()) == ["a", "b", "c"]
        assert await run.records() == [(1,)] * 3


async def test_a_batch_with_stored_keys_adds_the_others_and_no_record_again(database: str) -> None:
    async with a_loading_run(database, FACTS) as run, run.writer() as writer:
        await writer.write([a_page(str(number), body=b'"first"', records=[(1,)]) for number in range(10)])
        again = [a_page(str(number), body=b'"second"', records=[(2,)]) for number in range(20)]
        await writer.write(again)
        await writer.write(again)
        stored = await run.pages()
        assert len(stored) == 20
        assert [row["json"] for _, row in sorted(stored.items(), key=lambda item: int(item[0]))] == (
            ['"first"'] * 10 + ['"second"'] * 10
        )
        assert await run.records() == [(Decimal(1),)] * 10 + [(Decimal(2),)] * 10
    assert all(page.outcome is Outcome.STORED for page in again)


async def test_a_merge_takes_a_key_that_is_twice_in_the_batch_once(database: str) -> None:
    async with a_loading_run(database, FACTS) as run, run.writer() as writer:
        await writer.write([a_page("old")])
        await writer.write([a_page(key, records=[(1,)]) for key in ("new", "old", "new")])
        assert sorted(await run.pages()) == ["new", "old"]
        assert len(await run.records()) == 1


async def test_an_empty_batch_changes_nothing(database: str) -> None:
    async with a_loading_run(database, FACTS) as run:
        await run.store([])
        assert await run.pages() == {}


async def test_two_writers_that_store_the_same_keys_store_each_once(database: str) -> None:
    keys = [str(number) for number in range(500)]
    async with a_loading_run(database, FACTS) as run:
        pages = [[a_page(key, records=[(number,)]) for key in keys] for number in (1, 2)]
        # The second comes while the first's transaction is open: it waits, and merges what is left.
        await asyncio.gather(run.store(pages[0]), run.store(pages[1]))
        stored = await run.pages()
        records = await run.eye.fetch(f"SELECT digest, count(*) AS times FROM facts_r{run.run_id} GROUP BY digest")
    assert sorted(stored) == sorted(keys)
    assert [row["times"] for row in records] == [1] * 500
    assert {page.outcome for batch in pages for page in batch} == {Outcome.STORED}


async def test_writers_whose_keys_overlap_in_another_order_do_not_deadlock(database: str) -> None:
    keys = [str(number) for number in range(300)]
    async with a_loading_run(database, FACTS) as run:
        batches = [[a_page(key, records=[(1,)]) for key in keys[start:] + keys[:start]] for start in (0, 75, 150, 225)]
        await asyncio.gather(*(run.store(batch) for batch in batches))
        assert len(await run.pages()) == 300
        assert len(await run.records()) == 300


async def test_rows_go_in_the_order_of_their_digests_so_that_two_writers_lock_them_in_one_order(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[list[bytes]] = []
    copy_pages = Writer._copy_pages

    async def recorded(
        self: Writer,
        connection: PostgresConnection,
        table: str,
        pages: Sequence[Page],
        batch: int | None,
        schema: str = "",
    ) -> None:
        sent.append([page.item.digest for page in pages])
        await copy_pages(self, connection, table, pages, batch, schema)

    monkeypatch.setattr(Writer, "_copy_pages", recorded)
    pages = [a_page(str(number)) for number in range(100)]
    async with a_loading_run(database) as run, run.writer() as writer:
        await writer.write(pages)
        await writer.write(pages[:50] + [a_page(str(number)) for number in range(100, 150)])
    assert [len(digests) for digests in sent] == [100, 100, 100]
    assert all(digests == sorted(digests) for digests in sent)


async def test_a_merge_leaves_nothing_in_the_staging_table_which_is_no_table_of_the_users(database: str) -> None:
    async with a_loading_run(database, a_table("staging", n="bigint")) as run, run.writer() as writer:
        for more in range(3):
            await writer.write([a_page(str(number), records=[(number,)]) for number in range(10 + more)])
        assert await run.records() == [(number,) for number in range(12)]
        assert writer._connection is not None
        assert await writer._connection.fetchval(f"SELECT count(*) FROM staging_{run.run_id}_r0") == 0


async def test_a_worker_that_comes_back_after_its_run_was_cancelled_stores_nothing(database: str) -> None:
    async with a_loading_run(database) as run, run.writer() as writer:
        await writer.write([a_page("before")])
        await run.eye.execute("UPDATE runs SET state = 'cancelled'")
        await writer.write([a_page("in flight")])
        await run.eye.execute("UPDATE runs SET finished_at = now()")
        with pytest.raises(RunCancelled):
            await writer.write([a_page("late")])
        assert set(await run.pages()) == {"before", "in flight"}


async def ended_backend(run: LoadingRun, victim: PostgresConnection) -> None:
    """End a connection's backend and wait until it is gone."""
    pid = victim.get_server_pid()
    await run.eye.fetchval("SELECT pg_terminate_backend($1)", pid)

    async def gone() -> bool:
        return not await run.eye.fetchval("SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)", pid)

    await eventually(gone, "the backend is gone")


async def test_a_backend_that_dies_within_a_batch_loses_and_doubles_nothing(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = [a_page(str(number), records=[(1,)]) for number in range(50)]
    async with a_loading_run(database, FACTS) as run, run.writer() as writer:
        copy_records = Writer._copy_records

        async def killed(self: Writer, connection: PostgresConnection, *arguments: Any) -> None:
            monkeypatch.setattr(Writer, "_copy_records", copy_records)
            await ended_backend(run, connection)
            await copy_records(self, connection, *arguments)

        monkeypatch.setattr(Writer, "_copy_records", killed)
        with pytest.raises(PostgresUnavailable) as caught:
            await writer.write(pages)
        assert len(str(caught.value).splitlines()) == 1
        assert await run.pages() == {}
        await writer.write(pages)
        assert len(await run.pages()) == 50
        assert len(await run.records()) == 50
    assert {page.outcome for page in pages} == {Outcome.STORED}


async def test_a_commit_that_was_not_confirmed_is_not_doubled(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = [a_page(str(number), records=[(1,)]) for number in range(50)]
    async with a_loading_run(database, FACTS) as run, run.writer() as writer:
        transact = Writer._commit

        async def unconfirmed(self: Writer, *arguments: Any, **options: Any) -> None:
            monkeypatch.setattr(Writer, "_commit", transact)
            await transact(self, *arguments, **options)
            raise PostgresUnavailable("the connection was lost")

        monkeypatch.setattr(Writer, "_commit", unconfirmed)
        with pytest.raises(PostgresUnavailable):
            await writer.write(pages)
        await writer.write(pages)
        assert len(await run.pages()) == 50
        assert len(await run.records()) == 50


async def test_an_idle_connection_that_was_ended_is_opened_again(database: str) -> None:
    async with a_loading_run(database) as run, run.writer() as writer:
        await writer.write([a_page("a")])
        assert writer._connection is not None
        await ended_backend(run, writer._connection)

        async def written() -> bool:
            try:
                await writer.write([a_page("b")])
            except PostgresUnavailable:
                return False
            return True

        await eventually(written, "the second batch is stored")
        assert sorted(await run.pages()) == ["a", "b"]


async def test_a_statement_that_was_cancelled_is_unavailable_and_can_be_repeated(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_loading_run(database) as run, run.writer() as writer:
        copy_pages = Writer._copy_pages

        async def slow(self: Writer, connection: PostgresConnection, *arguments: Any) -> None:
            monkeypatch.setattr(Writer, "_copy_pages", copy_pages)
            await connection.execute("SET LOCAL statement_timeout = 1")
            await connection.execute("SELECT pg_sleep(30)")

        monkeypatch.setattr(Writer, "_copy_pages", slow)
        with pytest.raises(PostgresUnavailable, match="statement timeout"):
            await writer.write([a_page("a")])
        await writer.write([a_page("a")])
        assert sorted(await run.pages()) == ["a"]


async def test_a_postgres_with_another_epoch_is_refused_before_anything_is_stored(database: str) -> None:
    async with a_loading_run(database) as run:
        writer = Writer(database, RunTables(run.run_id), Epoch("another"), ())
        for call in (writer.open(), writer.write([a_page("a")])):
            with pytest.raises(EpochLost, match="rebuild"):
                await call
        assert await run.pages() == {}
        with pytest.raises(EpochLost):
            await Writer(database, RunTables(run.run_id + 1), run.epoch, ()).open()


async def test_an_epoch_that_changed_meanwhile_is_noticed_at_the_next_connection(database: str) -> None:
    async with a_loading_run(database) as run, run.writer() as writer:
        await writer.write([a_page("a")])
        await run.eye.execute("UPDATE runs SET epoch = 'another'")
        await writer.close()
        with pytest.raises(EpochLost):
            await writer.write([a_page("b")])


async def test_a_postgres_without_the_schema_is_refused_and_leaves_no_connection(database: str) -> None:
    eye = await connect_postgres(database)
    try:
        for _ in range(3):
            with pytest.raises(PostgresRefused) as caught:
                await Writer(database, RunTables(1), Epoch("a"), ()).open()
            assert len(str(caught.value).splitlines()) == 1

        async def alone() -> bool:
            count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            return bool(await eye.fetchval(count) == 1)

        await eventually(alone, "no connection is left open")
    finally:
        await eye.close()


async def test_a_part_that_was_dropped_is_refused_in_one_line(database: str) -> None:
    async with a_loading_run(database) as run, run.writer() as writer:
        await run.eye.execute(f"DROP TABLE pages_r{run.run_id}")
        with pytest.raises(PostgresRefused, match="was it dropped, or the run pruned[?] Restore it") as caught:
            await writer.write([a_page("a")])
    assert len(str(caught.value).splitlines()) == 1
