from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
import orjson
import pytest

from coordinator.errors import EpochLost, PostgresRefused, PostgresUnavailable
from coordinator.model import Epoch, Outcome
from crawler.job.models import TableSettings
from crawler.model import MAX_REASON_CHARACTERS, Page
from crawler.parse.columns import Table
from crawler.store import writer as writer_module
from crawler.store.postgres import Connection, connect, translated
from crawler.store.writer import Writer
from tests.conftest import eventually
from tests.crawler.examples import MOMENT, LoadingRun, a_loading_run, a_page, a_table

pytestmark = pytest.mark.anyio

FACTS = a_table(n="numeric(5,2)")


async def store(run: LoadingRun, pages: Sequence[Page]) -> None:
    async with run.writer() as writer, asyncio.timeout(60):
        await writer.write(pages)


async def test_every_field_of_a_page_is_stored_as_it_is(database: str) -> None:
    full = a_page("Zoë 日本 \U0001f600 /|\\ \x01\x7f")
    full.reason = "why not"
    full.status, full.attempts = 999, 32_000
    full.etag, full.last_modified = 'W/"é"', "Thu, 01 Jan 2026 00:00:00 GMT"
    full.body_digest = bytes(range(16))
    full.body = '{"b": [1.10, "é😀\\n"], "a": null}'.encode()
    empty = Page(full.item._replace(key="", digest=bytes(16)), None, Outcome.REFUSED)
    async with a_loading_run(database) as run:
        await store(run, [full, empty])
        stored = await run.pages()
    row = stored[full.item.key]
    assert row["run_id"] == run.run_id
    assert row["digest"] == full.item.digest
    assert row["url"] == full.url
    assert (row["outcome"], row["reason"]) == ("stored", "why not")
    assert (row["status"], row["attempts"]) == (999, 32_000)
    assert row["fetched_at"] == datetime(2026, 1, 1, 0, 0, 0, 123457, tzinfo=UTC)
    assert (row["etag"], row["last_modified"]) == ('W/"é"', "Thu, 01 Jan 2026 00:00:00 GMT")
    assert row["body_digest"] == bytes(range(16))
    assert orjson.loads(row["json"]) == orjson.loads(full.body)
    assert "1.10" in row["json"], "numbers keep their digits"
    row = stored[""]
    assert (row["outcome"], row["attempts"], row["fetched_at"]) == ("refused", 0, datetime(1970, 1, 1, tzinfo=UTC))
    nulls = ("url", "reason", "status", "etag", "last_modified", "body_digest", "body")
    assert [row[name] for name in nulls] == [None] * len(nulls)


@pytest.mark.parametrize("outcome", Outcome)
async def test_every_outcome_is_stored_under_its_name(database: str, outcome: Outcome) -> None:
    page = a_page("a", body=None)
    page.outcome = outcome
    async with a_loading_run(database) as run:
        await store(run, [page])
        assert (await run.pages())["a"]["outcome"] == outcome.value
    assert page.outcome is outcome


async def test_microseconds_are_kept_whatever_binary_fractions_make_of_them(database: str) -> None:
    pages = []
    for number in range(1000):
        page = a_page(str(number), body=None)
        page.fetched_at = 1_767_225_600 + number / 1_000_000
        pages.append(page)
    async with a_loading_run(database) as run:
        await store(run, pages)
        stored = await run.pages()
    assert [row["fetched_at"].microsecond for _, row in sorted(stored.items(), key=lambda item: int(item[0]))] == list(
        range(1000)
    )


async def test_bodies_of_megabytes_arrive_whole(database: str) -> None:
    pages = [a_page(str(number), body=orjson.dumps(str(number) * 700_000)) for number in range(5)]
    async with a_loading_run(database) as run:
        await store(run, pages)
        rows = await run.eye.fetch(f"SELECT key, body #>> '{{}}' AS body FROM pages_r{run.run_id}")
    assert {row["key"]: row["body"] for row in rows} == {str(number): str(number) * 700_000 for number in range(5)}


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
    settings = TableSettings(name="facts", column_types={f"c{number}": kind for number, kind in enumerate(EVERY_TYPE)})
    row = Table(settings).row([value for value, _ in EVERY_TYPE.values()])
    empty = Table(settings).row({})
    async with a_loading_run(database, settings) as run:
        await store(run, [a_page("a", records=[row]), a_page("b", records=[empty])])
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
        await store(run, [page])
        assert await run.records() == [(1,)]
        notes = await run.eye.fetch(f"SELECT t FROM notes_r{run.run_id} ORDER BY t")
    assert [row["t"] for row in notes] == ["x", "y"]


async def test_a_key_twice_in_a_batch_is_stored_once_with_its_records_once(database: str) -> None:
    pages = [a_page(key, records=[(1,)]) for key in ("a", "b", "a", "c", "a")]
    async with a_loading_run(database, FACTS) as run:
        await store(run, pages)
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
        await store(run, [])
        assert await run.pages() == {}


POISONS = {
    "no JSON": (b'{"a": tru}', "invalid input syntax for type json"),
    "not a word of JSON": (b"\xff\xfe", "invalid byte sequence"),
    "a NUL escape": (rb'["\u0000"]', "cannot be converted to text"),
    "a lone surrogate": (rb'["\ud800"]', "surrogate"),
    "a number that is too large": (b"1e1000000", "overflow"),
    "nesting that is too deep": (b"[" * 100_000, "stack depth"),
    # The words of an error quote the body: they must not blame the key in line 1.
    "an error message": (rb'["COPY pages_r1, line 1, \u0000"]', "cannot be converted to text"),
    "an error message in a line of its own": (b'["a",\nCOPY pages_r1, line 1, column body]', "invalid input syntax"),
}


@pytest.mark.parametrize("merging", [False, True], ids=["new keys", "merged"])
@pytest.mark.parametrize("poison", POISONS)
async def test_a_poisoned_body_costs_its_key_alone(database: str, poison: str, merging: bool) -> None:
    body, words = POISONS[poison]
    pages = [a_page(str(number), records=[(number % 100,)]) for number in range(400)]
    culprit = pages[211]
    culprit.body = body
    async with a_loading_run(database, FACTS) as run:
        if merging:
            await store(run, [a_page(str(number), records=[(number % 100,)]) for number in range(100)])
        await store(run, pages)
        stored = await run.pages()
        assert len(await run.records()) == 399
    assert len(stored) == 400
    assert [key for key, row in stored.items() if row["outcome"] != "stored"] == ["211"]
    row = stored["211"]
    assert (row["outcome"], row["body"]) == ("failed", None)
    assert words in row["reason"]
    assert [page for page in pages if page.outcome is not Outcome.STORED] == [culprit]
    assert (culprit.outcome, culprit.reason) == (Outcome.FAILED, row["reason"])


async def test_many_poisons_of_many_kinds_leave_the_rest_of_a_full_batch(database: str) -> None:
    pages = [a_page(str(number)) for number in range(1000)]
    poisoned = set(range(7, 1000, 97))
    for number, (body, _) in zip(sorted(poisoned), list(POISONS.values()) * 2, strict=False):
        pages[number].body = body
    async with a_loading_run(database) as run:
        await store(run, pages)
        stored = await run.pages()
    assert {int(key) for key, row in stored.items() if row["outcome"] == "failed"} == poisoned
    assert len(stored) == 1000
    assert all(row["reason"] for row in stored.values() if row["outcome"] == "failed")
    assert {int(page.item.key) for page in pages if page.outcome is Outcome.FAILED} == poisoned


@pytest.mark.parametrize("merging", [False, True], ids=["new keys", "merged"])
async def test_a_record_that_postgres_refuses_costs_its_key_alone(database: str, merging: bool) -> None:
    pages = [a_page(str(number), records=[(1,), (2,)]) for number in range(200)]
    pages[77].records.append((0, (99_999,)))
    pages[155].records.insert(0, (0, (-1000,)))
    async with a_loading_run(database, FACTS) as run:
        if merging:
            # Stored keys come with records that are not copied again: lines are counted without them.
            await store(run, [a_page(str(number), records=[(1,), (2,)]) for number in range(0, 200, 2)])
        await store(run, pages)
        stored = await run.pages()
        assert len(await run.records()) == 2 * 198
    failed = {key: row["reason"] for key, row in stored.items() if row["outcome"] == "failed"}
    assert sorted(failed) == ["155", "77"]
    for reason in failed.values():
        assert reason.startswith("facts: numeric field overflow")
        assert "precision 5, scale 2" in reason
    assert sorted(page.item.key for page in pages if page.outcome is Outcome.FAILED) == ["155", "77"]
    assert all(page.records == [] for page in pages if page.outcome is Outcome.FAILED)


async def test_a_stored_key_is_not_blamed_for_a_record_that_was_not_copied(database: str) -> None:
    async with a_loading_run(database, FACTS) as run:
        await store(run, [a_page("a", records=[(1,)])])
        again = a_page("a", records=[(99_999,)])
        await store(run, [again, a_page("b", records=[(1,)])])
        assert (await run.pages())["a"]["outcome"] == "stored"
        assert len(await run.records()) == 2
    assert again.outcome is Outcome.STORED


@pytest.mark.parametrize("merging", [False, True], ids=["new keys", "merged"])
@pytest.mark.parametrize("value", ["text", 2**40, object()], ids=["type", "range", "object"])
async def test_an_error_that_names_no_line_costs_its_key_alone(database: str, value: Any, merging: bool) -> None:
    pages = [a_page(str(number), records=[(number,)]) for number in range(40)]
    pages[23].records = [(0, (value,))]
    async with a_loading_run(database, a_table(n="integer")) as run:
        if merging:
            await store(run, [a_page(str(number), records=[(number,)]) for number in range(0, 40, 2)])
        await store(run, pages)
        stored = await run.pages()
        assert [n for (n,) in await run.records()] == [number for number in range(40) if number != 23]
    assert [key for key, row in stored.items() if row["outcome"] != "stored"] == ["23"]
    assert stored["23"]["reason"]


async def test_a_body_without_a_line_in_its_error_is_isolated_too(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Writer, "_culprits", lambda self, error: [])
    pages = [a_page(str(number)) for number in range(20)]
    for number in (0, 13, 19):
        pages[number].body = b"{"
    async with a_loading_run(database) as run:
        await store(run, pages)
        stored = await run.pages()
    assert sorted(key for key, row in stored.items() if row["outcome"] == "failed") == ["0", "13", "19"]
    assert len(stored) == 20


async def test_a_users_unique_index_costs_the_keys_that_break_it(database: str) -> None:
    async with a_loading_run(database, a_table(n="bigint")) as run:
        await run.eye.execute(f"CREATE UNIQUE INDEX ON facts_r{run.run_id} (n)")
        await store(run, [a_page("first", records=[(5,)])])
        pages = [a_page(str(number), records=[(number,)]) for number in range(10)]
        await store(run, pages)
        stored = await run.pages()
        assert [n for (n,) in await run.records()] == list(range(10))
    assert [key for key, row in stored.items() if row["outcome"] == "failed"] == ["5"]
    assert "Key (n)=(5) already exists" in stored["5"]["reason"]


async def test_an_error_that_no_failed_page_heals_is_raised_and_not_repeated_for_ever(database: str) -> None:
    async with a_loading_run(database) as run:
        await run.eye.execute(f"ALTER TABLE pages_r{run.run_id} ADD CHECK (key <> 'unwanted')")
        with pytest.raises(PostgresRefused, match="was the schema changed during the run"):
            await store(run, [a_page("a"), a_page("unwanted"), a_page("z")])


@pytest.mark.parametrize(
    ("reason", "stored_as"),
    [
        ("a\0b", "a\\0b"),
        ("tab\t newline\n bell\x07 esc\x1b", "tab\t newline\n bell\x07 esc\x1b"),
        ("lone \ud800 surrogate", "lone \\ud800 surrogate"),
        ("x" * 10_000, "x" * MAX_REASON_CHARACTERS),
    ],
)
async def test_every_reason_can_be_stored(database: str, reason: str, stored_as: str) -> None:
    page = a_page("a")
    page.fail(reason)
    async with a_loading_run(database) as run:
        await store(run, [page])
        assert (await run.pages())["a"]["reason"] == stored_as


async def test_two_writers_that_store_the_same_keys_store_each_once(database: str) -> None:
    keys = [str(number) for number in range(500)]
    async with a_loading_run(database, FACTS) as run:
        pages = [[a_page(key, records=[(number,)]) for key in keys] for number in (1, 2)]
        # The second comes while the first's transaction is open: it waits, and merges what is left.
        await asyncio.gather(store(run, pages[0]), store(run, pages[1]))
        stored = await run.pages()
        records = await run.eye.fetch(f"SELECT digest, count(*) AS times FROM facts_r{run.run_id} GROUP BY digest")
    assert sorted(stored) == sorted(keys)
    assert [row["times"] for row in records] == [1] * 500
    assert {page.outcome for batch in pages for page in batch} == {Outcome.STORED}


async def test_writers_whose_keys_overlap_in_another_order_do_not_deadlock(database: str) -> None:
    keys = [str(number) for number in range(300)]
    async with a_loading_run(database, FACTS) as run:
        batches = [[a_page(key, records=[(1,)]) for key in keys[start:] + keys[:start]] for start in (0, 75, 150, 225)]
        await asyncio.gather(*(store(run, batch) for batch in batches))
        assert len(await run.pages()) == 300
        assert len(await run.records()) == 300


async def test_rows_go_in_the_order_of_their_digests_so_that_two_writers_lock_them_in_one_order(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[list[bytes]] = []
    copy_pages = Writer._copy_pages

    async def seen(self: Writer, connection: Connection, table: str, pages: Sequence[Page]) -> None:
        sent.append([page.item.digest for page in pages])
        await copy_pages(self, connection, table, pages)

    monkeypatch.setattr(Writer, "_copy_pages", seen)
    pages = [a_page(str(number)) for number in range(100)]
    async with a_loading_run(database) as run, run.writer() as writer:
        await writer.write(pages)
        await writer.write(pages[:50] + [a_page(str(number)) for number in range(100, 150)])
    assert [len(digests) for digests in sent] == [100, 100, 100]
    assert all(digests == sorted(digests) for digests in sent)


async def test_a_merge_leaves_nothing_in_the_staging_table(database: str) -> None:
    async with a_loading_run(database) as run, run.writer() as writer:
        for _ in range(3):
            await writer.write([a_page(str(number)) for number in range(10)])
        assert writer._connection is not None
        assert await writer._connection.fetchval(f"SELECT count(*) FROM staging_r{run.run_id}") == 0


async def ended_backend(run: LoadingRun, victim: Connection) -> None:
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

        async def killed(self: Writer, connection: Connection, *arguments: Any) -> None:
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


async def test_a_commit_whose_answer_was_lost_is_not_doubled(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = [a_page(str(number), records=[(1,)]) for number in range(50)]
    async with a_loading_run(database, FACTS) as run, run.writer() as writer:
        transact = Writer._transact

        async def unheard(self: Writer, *arguments: Any, **options: Any) -> None:
            monkeypatch.setattr(Writer, "_transact", transact)
            await transact(self, *arguments, **options)
            raise PostgresUnavailable("the connection was lost")

        monkeypatch.setattr(Writer, "_transact", unheard)
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

        async def slow(self: Writer, connection: Connection, *arguments: Any) -> None:
            monkeypatch.setattr(Writer, "_copy_pages", copy_pages)
            await connection.execute("SET LOCAL statement_timeout = 1")
            await connection.execute("SELECT pg_sleep(30)")

        monkeypatch.setattr(Writer, "_copy_pages", slow)
        with pytest.raises(PostgresUnavailable, match="statement timeout"):
            await writer.write([a_page("a")])
        await writer.write([a_page("a")])
        assert sorted(await run.pages()) == ["a"]


async def test_a_postgres_of_another_beginning_is_refused_before_anything_is_stored(database: str) -> None:
    async with a_loading_run(database) as run:
        writer = Writer(database, run.run_id, Epoch("another"), ())
        for call in (writer.open(), writer.write([a_page("a")])):
            with pytest.raises(EpochLost, match="rebuild"):
                await call
        assert await run.pages() == {}
        with pytest.raises(EpochLost):
            await Writer(database, run.run_id + 1, run.epoch, ()).open()


async def test_a_postgres_that_changed_meanwhile_is_noticed_at_the_next_connection(database: str) -> None:
    async with a_loading_run(database) as run, run.writer() as writer:
        await writer.write([a_page("a")])
        await run.eye.execute("UPDATE runs SET epoch = 'another'")
        await writer.close()
        with pytest.raises(EpochLost):
            await writer.write([a_page("b")])


async def test_a_postgres_without_the_schema_is_refused_and_leaves_no_connection(database: str) -> None:
    eye = await connect(database)
    try:
        for _ in range(3):
            with pytest.raises(PostgresRefused) as caught:
                await Writer(database, 1, Epoch("a"), ()).open()
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
        with pytest.raises(PostgresRefused, match="was the schema changed") as caught:
            await writer.write([a_page("a")])
    assert len(str(caught.value).splitlines()) == 1


async def test_a_database_that_cannot_hold_every_key_is_refused(database: str) -> None:
    admin = await connect(database)
    name = database.split("/")[3].split("?")[0] + "_latin"
    try:
        await admin.execute(f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
        with pytest.raises(PostgresRefused, match="has encoding LATIN1; create one with ENCODING 'UTF8'"):
            await connect(database.replace(name.removesuffix("_latin"), name))
    finally:
        await admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await admin.close()


async def test_a_postgres_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(PostgresUnavailable, match="does not answer") as caught:
        await connect("postgresql://user:s3cret@127.0.0.1:1/db")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("address", ["nonsense", "mysql://user:s3cret@host/db"])
async def test_an_address_of_something_else_is_refused_without_its_password(address: str) -> None:
    with pytest.raises(PostgresRefused, match="postgresql://USER@HOST/DATABASE") as caught:
        await connect(address)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "ours"),
    [
        *(
            (kind("the\nwords"), PostgresUnavailable)
            for kind in (
                asyncpg.AdminShutdownError,
                asyncpg.CannotConnectNowError,
                asyncpg.ConnectionDoesNotExistError,
                asyncpg.CrashShutdownError,
                asyncpg.DeadlockDetectedError,
                asyncpg.DiskFullError,
                asyncpg.InternalClientError,
                asyncpg.LockNotAvailableError,
                asyncpg.OutOfMemoryError,
                asyncpg.QueryCanceledError,
                asyncpg.SerializationError,
                asyncpg.TooManyConnectionsError,
                ConnectionResetError,
                TimeoutError,
            )
        ),
        (asyncpg.InterfaceError("connection is closed"), PostgresUnavailable),
        *(
            (kind("the\nwords"), PostgresRefused)
            for kind in (
                asyncpg.InsufficientPrivilegeError,
                asyncpg.InvalidAuthorizationSpecificationError,
                asyncpg.InvalidCatalogNameError,
                asyncpg.InvalidPasswordError,
                asyncpg.ReadOnlySQLTransactionError,
                asyncpg.UndefinedTableError,
            )
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_error_of_the_library_is_one_line_of_ours(error: Exception, ours: type[Exception]) -> None:
    with pytest.raises(ours) as caught, translated("host/db"):
        raise error
    assert "Postgres at host/db" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [asyncpg.DataError("row"), asyncpg.UniqueViolationError("row"), asyncpg.InterfaceError("a bug"), KeyError("a bug")],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_one_row_or_of_ours_goes_through_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, translated():
        raise error
    assert caught.value is error


async def test_what_is_sent_at_once_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "SEND_BYTES", 10)
    pieces = [b"12345", b"67890", b"1" * 30, b"2", b""]
    sent = [part async for part in writer_module._stream(pieces)]
    assert sent == [b"1234567890", b"1" * 30, b"2"]


def test_the_moment_of_the_examples_has_microseconds() -> None:
    assert round(MOMENT * 1_000_000) % 1_000_000 == 123457
