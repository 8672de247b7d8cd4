"""Pages that are carried over from a base, in a real Postgres: each once with its records, whatever happens."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from coordinator.errors import PostgresUnavailable
from coordinator.model import Epoch, FoundBatch, FoundKey, KeyContext, Outcome
from coordinator.queue.sharding import digest
from crawler.model import BasePage, Page
from crawler.parse.content import digest_of_records
from crawler.pipeline.batch import drop_seen
from crawler.runs.prune import delete_row
from crawler.store.catalogue import Catalogue
from crawler.store.postgres import PostgresConnection, connect_postgres
from crawler.store.queries import query
from crawler.store.reasons import PagesToRetry
from crawler.store.rows.base import LOST, BaseReader, CarriedPages
from crawler.store.tables import RunTables
from crawler.store.user_tables import UserTables
from crawler.store.writer import Writer
from tests.crawler.examples import MOMENT, a_document, a_page, a_table
from tests.crawler.store.rows.test_found import naming
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

TABLE = a_table(n="smallint", name_="text")
SCANS = """
SELECT sum(seq_scan)::bigint AS whole, sum(idx_scan)::bigint AS looked_up FROM pg_stat_user_tables
WHERE relname = ANY($1::text[])
"""
COLUMNS = "key, url, etag, last_modified, final_url, body_digest, content_digest, encoding, content_type, content, body"


@dataclass(frozen=True)
class Corpus:
    """A base and a run that refreshes it, and a connection that looks at both."""

    url: str
    base: RunTables
    run: RunTables
    epoch: Epoch
    eye: PostgresConnection
    reader: BaseReader
    follows: bool

    def writer(self, failpoint: Any = None, *, of_base: bool = False) -> Writer:
        run, base = (self.base, None) if of_base else (self.run, self.base)
        options = {} if failpoint is None else {"failpoint": failpoint}
        return Writer(self.url, run, self.epoch, [TABLE], follows=self.follows, base=base, **options)

    async def store(self, pages: Sequence[Page], *, of_base: bool = False) -> list[FoundBatch]:
        writer = self.writer(of_base=of_base)
        try:
            async with asyncio.timeout(60):
                return await writer.write(pages)
        finally:
            await writer.close()

    async def pages(self, of: RunTables | None = None) -> dict[str, Mapping[str, Any]]:
        rows = await self.eye.fetch(f"SELECT * FROM {(of or self.run).pages}")
        by_key = {row["key"]: row for row in rows}
        assert len(by_key) == len(rows)
        return by_key

    async def records(self, of: RunTables | None = None) -> list[tuple[Any, ...]]:
        rows = await self.eye.fetch(f"SELECT digest, n, name_ FROM {(of or self.run).part('facts')}")
        return sorted(map(tuple, rows))

    async def known(self, *keys: str) -> Mapping[bytes, BasePage]:
        return await self.reader.pages([digest(key) for key in keys])

    async def unmodified(self, key: str) -> Page:
        """The page of a 304."""
        page = a_page(key, body=None)
        page.outcome, page.status, page.unmodified = Outcome.UNCHANGED, 304, True
        page.base = (await self.known(key))[page.item.digest]
        return page

    async def failed(self, key: str) -> Page:
        page = a_page(key, body=None)
        page.base = (await self.known(key)).get(page.item.digest)
        page.fail("status 503\0")
        return page


@asynccontextmanager
async def a_corpus(database: str, schema: str = "", *, follows: bool = False) -> AsyncIterator[Corpus]:
    async with AsyncExitStack() as stack:
        connection = await connect_postgres(database)
        stack.push_async_callback(connection.close)
        catalogue = Catalogue(connection)
        await catalogue.prepare()
        epoch, document = Epoch(secrets.token_hex(4)), a_document(store={"schema": schema})
        base = await catalogue.make("base", document, epoch, [TABLE], corpus="facts", follows=follows)
        run = await catalogue.make("run", document, epoch, [TABLE], corpus="facts", base_run=base, follows=follows)
        reader = BaseReader(database, RunTables(base, schema), keeps=True)
        stack.callback(reader.close)
        yield Corpus(database, RunTables(base, schema), RunTables(run, schema), epoch, connection, reader, follows)


def fetched(key: str, *numbers: int) -> Page:
    page = a_page(key, records=[(number, f"{key} {number}") for number in numbers])
    page.etag, page.last_modified, page.final_url = f'"{key}"', "Thu, 01 Jan 2026 00:00:00 GMT", f"https://other/{key}"
    page.body_digest, page.content_digest = digest(f"body of {key}"), digest_of_records(page.records)
    page.encoding, page.content_type = "utf-8", None
    return page


@pytest.mark.parametrize("schema", ["", "afd"])
async def test_pages_and_their_records_are_carried_over_as_they_are(database: str, schema: str) -> None:
    async with a_corpus(database, schema) as corpus:
        await corpus.store([fetched("a", 1, 2), fetched("b"), fetched("c", 3)], of_base=True)
        await corpus.store(
            [await corpus.unmodified("a"), await corpus.unmodified("b"), a_page("new", records=[(4, "x")])]
        )
        before, after = await corpus.pages(corpus.base), await corpus.pages()
        assert sorted(after) == ["a", "b", "new"]
        for key in "ab":
            assert {name: after[key][name] for name in COLUMNS.split(", ")} == {
                name: before[key][name] for name in COLUMNS.split(", ")
            }
            assert (after[key]["outcome"], after[key]["status"], after[key]["stale"]) == ("unchanged", 304, None)
            assert after[key]["run_id"] == corpus.run.run_id
        assert await corpus.records() == sorted(
            [(digest("a"), 1, "a 1"), (digest("a"), 2, "a 2"), (digest("new"), 4, "x")]
        )


async def test_a_base_that_was_never_analyzed_is_not_read_whole(database: str) -> None:
    async with a_corpus(database) as corpus:
        await corpus.store([fetched(str(number), 1, 2) for number in range(500)], of_base=True)
        await UserTables(corpus.eye, corpus.base).index([TABLE])

        async def scans() -> tuple[int, int]:
            await corpus.eye.fetch("SELECT pg_stat_force_next_flush()")  # it counted its own scans with delay
            tables = [f"{name}_r{corpus.base.run_id}" for name in ("facts", "pages")]
            row = await corpus.eye.fetchrow(SCANS, tables)
            assert row is not None
            return row["whole"], row["looked_up"]

        before = await scans()
        await corpus.store([await corpus.unmodified(str(number)) for number in range(300)])

        async def looked_up() -> bool:
            return (await scans())[1] > before[1]

        await eventually(looked_up, "Postgres to count what its other process did")
        assert len(await corpus.records()) == 600
        assert (await scans())[0] == before[0]


async def test_the_base_says_what_it_has_of_keys(database: str) -> None:
    async with a_corpus(database) as corpus:
        plain = a_page("plain")
        plain.body_digest = digest("plain body")
        gone, given_away = a_page("gone"), fetched("given away", 1)
        gone.outcome, gone.body_digest, given_away.content_digest = Outcome.GONE, digest("gone"), b""
        await corpus.store([fetched("a", 1), plain, gone, given_away], of_base=True)
        failed = await corpus.failed("a")
        found = await corpus.known("a", "plain", "gone", "given away", "none")
    assert failed.is_carried
    modified = "Thu, 01 Jan 2026 00:00:00 GMT"
    assert found[digest("a")] == BasePage(
        "https://other/a", '"a"', modified, MOMENT, digest_of_records([(0, (1, "a 1"))]), is_kept=True
    )
    assert found[digest("plain")] == BasePage(plain.url, None, None, MOMENT, digest("plain body"), is_kept=True)
    assert found[digest("given away")].content == b""
    assert digest("gone") not in found
    assert digest("none") not in found


async def test_what_was_not_requested_keeps_when_it_was_fetched(database: str) -> None:
    async with a_corpus(database) as corpus:
        await corpus.store([fetched("a", 1)], of_base=True)
        base = (await corpus.known("a"))[digest("a")]
        item = a_page("a").item
        await corpus.store([Page(item, None, Outcome.UNCHANGED, base=base, unmodified=True)])
        before, after = (await corpus.pages(corpus.base))["a"], (await corpus.pages())["a"]
        assert (after["fetched_at"], after["status"], after["attempts"]) == (before["fetched_at"], 200, 0)


async def test_what_came_whole_and_keeps_its_records_has_the_validators_that_came(database: str) -> None:
    """Else it would be requested by those of an older response, or by none, and come whole each time."""
    async with a_corpus(database) as corpus:
        await corpus.store([fetched("a", 1), fetched("b", 2)], of_base=True)
        same, failed = await corpus.unmodified("a"), await corpus.failed("b")
        for page in (same, failed):
            page.etag, page.last_modified, page.final_url, page.body_digest = '"new"', None, None, digest("new body")
        await corpus.store([same, failed])
        after = await corpus.pages()
        names = ("etag", "last_modified", "final_url", "body_digest")
        assert [after["a"][name] for name in names] == ['"new"', None, None, digest("new body")]
        assert [after["b"][name] for name in names] == [None, None, None, digest("body of b")]


async def test_a_failed_key_keeps_rows_that_a_retry_deletes(database: str) -> None:
    async with a_corpus(database) as corpus:
        await corpus.store([fetched("a", 1), fetched("b", 2)], of_base=True)
        await corpus.store([await corpus.failed("a"), await corpus.unmodified("b"), other := a_page("c")])
        row = (await corpus.pages())["a"]
        assert (row["outcome"], row["reason"], row["stale"], row["etag"]) == ("failed", "status 503\\0", True, None)
        assert row["body"] is not None
        assert row["content_digest"] == digest_of_records([(0, (1, "a 1"))])
        assert [number for _, number, _ in await corpus.records()] in ([1, 2], [2, 1])
        assert other.outcome is Outcome.STORED
        # The next refresh has the rows of a stale page as its base, and asks for it whole.
        next_reader = BaseReader(corpus.url, corpus.run, keeps=True)
        (stale,) = (await next_reader.pages([digest("a")])).values()
        next_reader.close()
        assert stale.conditions == ()
        assert stale.fetched_at is None
        assert stale.content == row["content_digest"]
        deleted = await Catalogue(corpus.eye).reopen(corpus.run, PagesToRetry(), [TABLE])
        assert deleted == {Outcome.FAILED: 1}
        assert sorted(await corpus.pages()) == ["b", "c"]
        assert [number for _, number, _ in await corpus.records()] == [2]
        wanted = PagesToRetry(outcomes=(Outcome.UNCHANGED,))
        assert await Catalogue(corpus.eye).reopen(corpus.run, wanted, [TABLE]) == {Outcome.UNCHANGED: 1}
        assert await corpus.records() == []


@pytest.mark.parametrize("lists", [False, True])
async def test_rows_that_were_kept_stay_when_a_retry_could_not_bring_them_back(
    database: str, lists: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_corpus(database, follows=True) as corpus:
        await corpus.store([fetched("a", 1), fetched("b", 2)], of_base=True)
        (other := a_page("c", body=None)).fail("status 503")
        await corpus.store([await corpus.failed("a"), await corpus.unmodified("b"), other])
        await corpus.eye.execute("UPDATE pages_r2 SET reason = 'list incomplete: why' WHERE outcome = 'failed'")
        await corpus.eye.execute("UPDATE runs SET state = 'complete' WHERE run_id = 1")
        assert not await delete_row(corpus.eye, corpus.base.run_id), "a run that goes on keeps its base"
        await corpus.eye.execute("UPDATE runs SET state = 'complete'")
        assert await delete_row(corpus.eye, corpus.base.run_id)
        wanted = PagesToRetry(lists=lists)
        assert await Catalogue(corpus.eye).reopen(corpus.run, wanted, [TABLE]) == {Outcome.FAILED: 1}
        assert sorted(await corpus.pages()) == ["a", "b"]
        assert sorted(number for _, number, _ in await corpus.records()) == [1, 2]
        assert f"1 {'lists with stale pages' if lists else 'stale keys'} are left" in caplog.text
        assert await Catalogue(corpus.eye).reopen(corpus.run, wanted, [TABLE]) == {}


async def test_what_is_stored_already_is_not_carried_again(database: str) -> None:
    """As after a crash between the commit and the completion; another worker may have had other responses."""
    async with a_corpus(database) as corpus:
        keys = [f"{number}" for number in range(30)]
        await corpus.store([fetched(key, int(key)) for key in keys], of_base=True)
        await corpus.store([await corpus.unmodified(key) for key in keys[:10]])
        await corpus.store([fetched(key, 100) for key in keys[10:20]])
        again = [await corpus.unmodified(key) for key in keys]
        again[5] = fetched("5", 101)
        again[25] = fetched("25", 102)
        await corpus.store(again)
        await corpus.store(again)
        after = await corpus.pages()
        assert [after[key]["outcome"] for key in keys] == (
            ["unchanged"] * 10 + ["stored"] * 10 + ["unchanged"] * 5 + ["stored"] + ["unchanged"] * 4
        )
        numbers = {key: [n for at, n, _ in await corpus.records() if at == digest(key)] for key in keys}
        assert numbers == {key: [100 if 10 <= int(key) < 20 else 102 if key == "25" else int(key)] for key in keys}


async def test_a_crash_before_the_commit_leaves_nothing_and_the_batch_may_be_repeated(database: str) -> None:
    def fail(step: str) -> None:
        if step == "copied":
            raise PostgresUnavailable("gone")

    async with a_corpus(database) as corpus:
        await corpus.store([fetched("a", 1)], of_base=True)
        page = await corpus.unmodified("a")
        writer = corpus.writer(fail)
        with pytest.raises(PostgresUnavailable):
            await writer.write([page])
        await writer.close()
        assert await corpus.pages() == {}
        await corpus.store([page])
        assert await corpus.records() == await corpus.records(corpus.base)


@pytest.mark.parametrize("change", ["DELETE FROM pages_r1", "UPDATE pages_r1 SET content_digest = '\\x00'"])
async def test_a_page_that_the_base_has_no_longer_fails_and_says_so(database: str, change: str) -> None:
    async with a_corpus(database) as corpus:
        await corpus.store([fetched("a", 1), fetched("b", 1)], of_base=True)
        pages = [await corpus.unmodified("a"), await corpus.failed("b"), fetched("c", 3)]
        await corpus.eye.execute(change)
        await corpus.store(pages)
        after = await corpus.pages()
        assert [(after[key]["outcome"], after[key]["reason"], after[key]["stale"]) for key in "abc"] == [
            ("failed", LOST, None),
            ("failed", "status 503\\0", None),
            ("stored", None, None),
        ]
        assert await corpus.records() == [(digest("c"), 3, "c 3")]


async def test_a_page_that_was_not_requested_and_is_lost_failed_now(database: str) -> None:
    async with a_corpus(database) as corpus:
        await corpus.store([fetched("a", 1)], of_base=True)
        base = (await corpus.known("a"))[digest("a")]
        page = Page(a_page("a").item, base.url, Outcome.UNCHANGED, base=base, unmodified=True)
        await corpus.eye.execute("DELETE FROM pages_r1")
        begun = await corpus.eye.fetchval("SELECT now() - interval '1 minute'")
        await corpus.store([page])
        assert (await corpus.pages())["a"]["fetched_at"] > begun


async def test_a_base_is_read_by_the_intake_and_the_flush_at_once(database: str) -> None:
    async with a_corpus(database, follows=True) as corpus:
        await corpus.store([fetched("a", 1)], of_base=True)
        wanted = [digest("a")]
        for _ in range(3):
            pages, found = await asyncio.gather(corpus.reader.pages(wanted), corpus.reader.found(wanted))
            assert list(pages) == list(found) == wanted


async def test_a_new_key_of_which_nothing_is_new_is_not_called_carried(database: str) -> None:
    """Its parser says so, and the base does not have it."""
    async with a_corpus(database) as corpus:
        await corpus.store([fetched("a", 1)], of_base=True)
        await corpus.store([said_unchanged(a_page("new")), await corpus.unmodified("a")])
        unlike = query("pages-unlike-base", pages=corpus.run.pages, base=corpus.base.pages)
        row = await corpus.eye.fetchrow(unlike, 9)
        assert row is not None
        assert row["examples"] == []


async def test_a_retry_of_the_base_waits_for_who_carries_over(database: str) -> None:
    """Else a page would be carried over, and its records deleted before they are."""
    waiting = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)"
    async with a_corpus(database) as corpus:
        await corpus.store([fetched("a", 1)], of_base=True)
        pages, other = [await corpus.unmodified("a")], await connect_postgres(database)
        wanted = PagesToRetry(outcomes=(Outcome.STORED,))
        async with corpus.eye.transaction():
            await CarriedPages(corpus.run, corpus.base, [TABLE]).carry(corpus.eye, pages, None)
            retrying = asyncio.create_task(Catalogue(other).reopen(corpus.base, wanted, [TABLE]))
            await eventually(lambda: corpus.eye.fetchval(waiting), "retry to wait")
        assert await retrying == {Outcome.STORED: 1}
        await other.close()
        assert [number for _, number, _ in await corpus.records()] == [1]


async def test_a_page_that_is_stored_during_a_retry_keeps_its_records_or_goes_with_them(database: str) -> None:
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    async with a_corpus(database) as corpus:
        await corpus.store([fetched("a", 1)])
        other = await connect_postgres(database)
        wanted = PagesToRetry(outcomes=(Outcome.STORED,))
        async with corpus.eye.transaction():
            await corpus.eye.execute("SELECT FROM facts_r2 FOR UPDATE")
            retrying = asyncio.create_task(Catalogue(other).reopen(corpus.run, wanted, [TABLE]))
            await eventually(lambda: corpus.eye.fetchval(f"{waiting} HAVING count(*) = 1"), "retry to delete records")
            storing = asyncio.create_task(corpus.store([fetched("b", 2)]))

            async def is_stored_or_waits() -> bool:
                return storing.done() or bool(await corpus.eye.fetchval(f"{waiting} HAVING count(*) = 2"))

            await eventually(is_stored_or_waits, "the page to be stored, or to wait")
        await asyncio.gather(retrying, storing)
        await other.close()
        pages = {row["digest"] for row in await corpus.eye.fetch("SELECT digest FROM pages_r2")}
        assert {row["digest"] for row in await corpus.eye.fetch("SELECT digest FROM facts_r2")} == pages


async def test_records_that_a_constraint_of_the_users_refuses_fail_their_keys_alone(database: str) -> None:
    async with a_corpus(database) as corpus:
        keys = [f"{number}" for number in range(12)]
        await corpus.store([fetched(key, int(key)) for key in [*keys, "12", "13"]], of_base=True)
        await corpus.eye.execute("ALTER TABLE facts_r2 ADD CHECK (n NOT IN (3, 13))")
        await corpus.eye.execute("CREATE UNIQUE INDEX ON facts_r2 (n)")
        await corpus.store([fetched("1", 1), fetched("x", 40)])  # so that the next batch is merged
        taken = fetched("y", 5)
        batch = [fetched("x", 41), taken, fetched("13", 13), *[await corpus.unmodified(key) for key in keys]]
        batch[2].base = (await corpus.known("13"))[digest("13")]
        await corpus.store(batch)
        after = await corpus.pages()
        assert sorted(after) == sorted([*keys, "13", "x", "y"])
        bad = {key for key, row in after.items() if row["outcome"] == "failed"}
        assert bad in ({"3", "13", "y"}, {"3", "13", "5"})
        numbers = [number for _, number, _ in await corpus.records()]
        assert numbers.count(5) == 1
        assert sorted(numbers) == [0, 1, 2, *range(4, 12), 40]


async def test_without_its_base_everything_is_fetched(database: str, caplog: pytest.LogCaptureFixture) -> None:
    async with a_corpus(database) as corpus:
        await corpus.store([fetched("a", 1)], of_base=True)
        await corpus.eye.execute("DROP TABLE pages_r1")
        for _ in range(3):
            assert await corpus.known("a") == {}
        assert caplog.text.count("is gone") == 1


async def test_rows_that_postgres_refuses_leave_the_key_with_what_it_had(database: str) -> None:
    async with a_corpus(database) as corpus:
        await corpus.store([fetched("a", 1), fetched("b", 2)], of_base=True)
        bad = a_page("a", records=[(2**15, "too large")])
        bad.base = (await corpus.known("a"))[digest("a")]
        await corpus.store([bad, await corpus.unmodified("b")])
        after = await corpus.pages()
        assert (after["a"]["outcome"], after["a"]["stale"], after["b"]["outcome"]) == ("failed", True, "unchanged")
        assert sorted(number for _, number, _ in await corpus.records()) == [1, 2]


async def test_two_writers_of_the_same_keys_carry_each_once(database: str) -> None:
    async with a_corpus(database) as corpus:
        keys = [f"{number}" for number in range(200)]
        await corpus.store([fetched(key, int(key)) for key in keys], of_base=True)
        pages = [[await corpus.unmodified(key) for key in keys] for _ in range(3)]
        await asyncio.gather(*(corpus.store(one) for one in pages))
        assert len(await corpus.pages()) == len(keys)
        assert await corpus.records() == await corpus.records(corpus.base)


async def test_records_are_found_by_an_index_that_is_made_once(database: str) -> None:
    async with a_corpus(database) as corpus:
        other = await connect_postgres(database)
        await asyncio.gather(*(Catalogue(one).index_records(corpus.base, [TABLE]) for one in (corpus.eye, other)))
        await other.close()
        indexes = await corpus.eye.fetch("SELECT indexdef FROM pg_indexes WHERE tablename = 'facts_r1'")
        assert [row["indexdef"].partition(" USING ")[2] for row in indexes] == ["btree (digest)"]


class Nothing:
    """Found keys of a run in which nothing was seen before."""

    async def new(self, found: Iterable[FoundKey]) -> set[bytes]:
        return {one.digest for one in found}


def said_unchanged(page: Page) -> Page:
    """The page of a response of which the parser said that nothing is new."""
    page.outcome, page.unmodified, page.content_digest, page.body = Outcome.UNCHANGED, True, b"", None
    return page


async def test_a_list_that_postgres_refuses_still_names_its_next_page(database: str) -> None:
    """It keeps the rows that it had, and the keys behind it are no failures of their own."""
    async with a_corpus(database, follows=True) as corpus:
        await corpus.store([fetched("list", 1)], of_base=True)
        listed = naming("list", ["x"], records=[(2**15, "too large")])
        listed.base = (await corpus.known("list"))[digest("list")]
        (batch,) = await corpus.store([listed])
        row = (await corpus.pages())["list"]
    assert (row["outcome"], row["stale"], row["batch"]) == ("failed", True, batch.batch)
    assert [one.key for one in batch.keys] == ["x"]


@pytest.mark.parametrize("is_kept", [True, False])
async def test_a_list_that_is_kept_names_what_it_had_named(database: str, is_kept: bool) -> None:
    """Also one of which the parser says that it is unchanged, without looking for what it names."""
    async with a_corpus(database, follows=True) as corpus:
        origin = digest("list")
        listed = naming("list", [])
        listed.found = [
            one._replace(context=KeyContext(depth=1, origin=origin)) for one in naming("list", ["x", "y"]).found
        ]
        listed.body_digest = digest("body")
        other = naming("other", ["z"])
        await corpus.store([listed, other], of_base=True)
        page = await corpus.failed("list")
        if not is_kept:
            page = said_unchanged(await corpus.unmodified("list"))
        pages = [page]
        nothing: Any = Nothing()
        await drop_seen(pages, nothing, corpus.reader)
        (batch,) = await corpus.store(pages)
        row = (await corpus.pages())["list"]
    assert sorted(one.key for one in batch.keys) == ["x", "y"]
    assert (row["stale"], row["depth"], row["batch"]) == (True if is_kept else None, 0, batch.batch)


async def test_a_list_that_fails_twice_keeps_its_rows_and_what_it_had_named(database: str) -> None:
    async with a_corpus(database, follows=True) as corpus:
        origin = digest("list")
        nothing: Any = Nothing()
        listed = fetched("list", 1)
        found = naming("list", ["x"]).found[0]
        fields = {"lastmod": "2025-12-01", "level": "2"}
        listed.found = [found._replace(context=KeyContext(depth=1, origin=origin, fields=fields))]
        await corpus.store([listed], of_base=True)
        third_id = await Catalogue(corpus.eye).make(
            "third", a_document(), corpus.epoch, [TABLE], corpus="facts", base_run=corpus.run.run_id, follows=True
        )
        for base, run in ((corpus.base, corpus.run), (corpus.run, RunTables(third_id))):
            reader = BaseReader(corpus.url, base, keeps=True)
            page = a_page("list", body=None)
            page.base = (await reader.pages([origin]))[origin]
            page.fail("status 503")
            await drop_seen([page], nothing, reader)
            reader.close()
            writer = Writer(corpus.url, run, corpus.epoch, [TABLE], follows=True, base=base)
            (batch,) = await writer.write([page])
            await writer.close()
            assert [(one.key, one.context.fields) for one in batch.keys] == [("x", {"level": "2"})], "no lastmod of now"
            row = (await corpus.pages(run))["list"]
            assert (row["outcome"], row["stale"], row["content_digest"]) == ("failed", True, listed.content_digest)
            assert await corpus.records(run) == [(origin, 1, "list 1")]
        deleted = await Catalogue(corpus.eye).reopen(RunTables(third_id), PagesToRetry(), [TABLE])
        assert deleted == {Outcome.FAILED: 1}
        assert await corpus.records(RunTables(third_id)) == []
