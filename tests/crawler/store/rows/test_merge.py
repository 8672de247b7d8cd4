"""Records with the same unique columns, and records of the run before that stay when a table merges."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from coordinator.model import Epoch, Outcome
from coordinator.tasks import cancel_and_wait
from crawler.job.tables import TableSettings
from crawler.model import Page
from crawler.store.catalogue import Catalogue
from crawler.store.corpora import Corpora
from crawler.store.postgres import PostgresConnection, connect_postgres
from crawler.store.reasons import PagesToRetry
from crawler.store.tables import RunTables
from crawler.store.writer import Writer
from tests.crawler.examples import MOMENT, a_document, a_page
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

EPOCH = Epoch("first")
COLUMNS = {"id": "bigint", "t": "text"}
UNIQUE = TableSettings(name="facts", column_settings=COLUMNS, unique=("id",))
MERGED = TableSettings(name="facts", column_settings=COLUMNS, unique=("id",), mode="merge")
MERGED_BY_KEY = TableSettings(name="facts", column_settings=COLUMNS, mode="merge")
PAIRS = TableSettings(name="facts", column_settings=COLUMNS, unique=("id", "t"))

Records = Sequence[tuple[Any, ...]]


@pytest.fixture
async def catalogue(connection: PostgresConnection) -> Catalogue:
    catalogue = Catalogue(connection)
    await catalogue.prepare()
    return catalogue


class Versions:
    """Runs of one corpus with one table."""

    def __init__(self, database: str, connection: PostgresConnection, table: TableSettings) -> None:
        self.database, self.connection, self.table = database, connection, table
        self.catalogue, self.corpora = Catalogue(connection), Corpora(connection)

    async def begin(self) -> RunTables:
        name = f"run-{len(await self.catalogue.all()) + 1}"
        return RunTables(await self.catalogue.make(name, a_document(), EPOCH, [self.table], corpus="test"))

    async def store(self, run: RunTables, *pages: Page) -> None:
        writer = Writer(self.database, run, EPOCH, [self.table])
        await writer.write(pages)
        await writer.close()

    async def complete(self, run: RunTables) -> None:
        await self.catalogue.complete(run, EPOCH, [self.table])

    async def publish(self, run: RunTables) -> None:
        await self.corpora.publish("test", run, [self.table])

    async def add(self, *pages: Page) -> RunTables:
        """A run from its beginning to its publication."""
        run = await self.begin()
        await self.store(run, *pages)
        await self.complete(run)
        await self.publish(run)
        return run

    async def retry(self, run: RunTables, *pages: Page, wanted: PagesToRetry = PagesToRetry()) -> None:  # noqa: B008
        """Let what failed go back into the run, and store it; the run has a new epoch."""
        await self.catalogue.reopen(run, wanted, [self.table])
        await self.catalogue.change_epoch(run.run_id, EPOCH)
        await self.store(run, *pages)

    async def current(self) -> list[tuple[Any, ...]]:
        rows = await self.connection.fetch("SELECT id, t FROM facts_current")
        return sorted((tuple(row) for row in rows), key=str)


Corpus = Callable[[TableSettings], Versions]


@pytest.fixture
async def corpus(catalogue: Catalogue, database: str, connection: PostgresConnection) -> Corpus:
    """Makes the runs of a corpus with this table."""
    return lambda table: Versions(database, connection, table)


def at(page: Page, seconds: float) -> Page:
    """The page, fetched so many seconds after the others."""
    page.fetched_at = MOMENT + seconds
    return page


def ended(key: str, outcome: Outcome) -> Page:
    page = a_page(key, body=None)
    page.outcome, page.reason = outcome, "why"
    return page


async def test_of_records_with_the_same_unique_columns_the_newest_page_keeps_its_own(
    corpus: Corpus, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    versions = corpus(UNIQUE)
    run = await versions.begin()
    pages = [
        at(a_page("a", records=[(1, "a"), (2, "a")]), 1),
        at(a_page("b", records=[(1, "b"), (3, "b")]), 2),
        at(a_page("c", records=[(1, "c"), (4, "c")]), 0),
    ]
    await versions.store(run, *pages)
    await versions.complete(run)
    await versions.publish(run)
    assert await versions.current() == [(1, "b"), (2, "a"), (3, "b"), (4, "c")]
    assert "2 records of table facts gave way to newer ones" in caplog.text
    rows = await versions.connection.fetch("SELECT key, content_digest FROM pages_current ORDER BY key")
    assert [(row["key"], row["content_digest"] == b"") for row in rows] == [("a", True), ("b", False), ("c", True)]


async def test_of_one_page_the_last_record_stays_and_the_page_is_whole(corpus: Corpus) -> None:
    versions = corpus(UNIQUE)
    run = await versions.begin()
    await versions.store(run, a_page("a", records=[(1, "first"), (1, "second"), (1, "last")]))
    await versions.complete(run)
    await versions.publish(run)
    assert await versions.current() == [(1, "last")]
    assert await versions.connection.fetchval("SELECT content_digest FROM pages_current") != b""


async def test_pages_of_the_same_moment_have_an_order_of_their_own(corpus: Corpus) -> None:
    versions = corpus(UNIQUE)
    keys = [str(number) for number in range(20)]
    await versions.add(*(a_page(key, records=[(1, key)]) for key in keys))
    newest = max(keys, key=lambda key: a_page(key).item.digest)
    assert await versions.current() == [(1, newest)]


@pytest.mark.parametrize(
    ("table", "stay"),
    [
        (UNIQUE, [(1, "b"), (None, "a"), (None, "a")]),
        (PAIRS, [(1, "a"), (1, "b"), (1, None), (1, None), (None, "a"), (None, "a")]),
    ],
)
async def test_a_null_is_the_same_as_no_other(corpus: Corpus, table: TableSettings, stay: Records) -> None:
    versions = corpus(table)
    pair: Records = [(None, "a"), (1, None)]
    pages = [at(a_page("a", records=[*pair, (1, "a")]), 1), at(a_page("b", records=[*pair, (1, "b")]), 2)]
    await versions.add(*pages)
    assert await versions.current() == sorted(stay, key=str)


async def test_records_of_a_key_that_has_failed_are_older_than_any_page(corpus: Corpus) -> None:
    versions = corpus(UNIQUE)
    run = await versions.begin()
    await versions.store(run, at(a_page("new", records=[(1, "new")]), 1), at(a_page("old", records=[(1, "old")]), 2))
    await versions.connection.execute(f"UPDATE {run.pages} SET outcome = 'failed', stale = true WHERE key = 'old'")
    await versions.complete(run)
    await versions.publish(run)
    assert await versions.current() == [(1, "new")]


async def test_records_of_earlier_runs_stay_until_they_are_replaced(corpus: Corpus) -> None:
    versions = corpus(MERGED)
    await versions.add(a_page("list", records=[(1, "first"), (2, "first"), (None, "first")]))
    assert await versions.current() == [(1, "first"), (2, "first"), (None, "first")]
    await versions.add(a_page("list", records=[(2, "second"), (3, "second")]))
    assert await versions.current() == [(1, "first"), (2, "second"), (3, "second"), (None, "first")]
    run = await versions.add(a_page("list", records=[(1, "third")]))
    whole = [(1, "third"), (2, "second"), (3, "second"), (None, "first")]
    assert await versions.current() == whole
    await versions.publish(run)
    assert await versions.current() == whole, "nothing is doubled when it is published again"
    same = a_page("list", records=[(1, "third")])
    same.outcome, same.body_digest = Outcome.UNCHANGED, b"same"
    await versions.add(same)
    assert await versions.current() == whole, "what was kept stays beside a page that a refresh found unchanged"


async def test_without_unique_columns_a_key_keeps_its_records_until_it_has_content(corpus: Corpus) -> None:
    versions = corpus(MERGED_BY_KEY)
    keys = ("changed", "empty", "failed", "refused", "gone", "left out")
    await versions.add(*(a_page(key, records=[(1, key), (2, key)]) for key in keys))
    for _ in range(2):
        await versions.add(
            a_page("changed", records=[(3, "new")]),
            a_page("empty"),
            *(ended(key, Outcome(key)) for key in ("failed", "refused", "gone")),
        )
        stay = [(number, key) for key in ("failed", "refused", "left out") for number in (1, 2)]
        assert await versions.current() == sorted([(3, "new"), *stay], key=str)


async def test_what_a_refresh_has_carried_is_not_kept_beside_it(corpus: Corpus) -> None:
    versions = corpus(MERGED_BY_KEY)
    await versions.add(a_page("same", records=[(1, "same")]), a_page("failed", records=[(2, "failed")]))
    run = await versions.begin()
    await versions.store(run, a_page("same", records=[(1, "same")]), a_page("failed", records=[(2, "failed")]))
    await versions.connection.execute(f"UPDATE {run.pages} SET outcome = 'failed', stale = true WHERE key = 'failed'")
    await versions.complete(run)
    await versions.publish(run)
    assert await versions.current() == [(1, "same"), (2, "failed")]


@pytest.mark.parametrize("table", [MERGED, MERGED_BY_KEY])
@pytest.mark.parametrize("content", [None, b""], ids=["304", "parser"])
async def test_a_key_of_which_nothing_is_new_keeps_its_records(
    corpus: Corpus, table: TableSettings, content: bytes | None
) -> None:
    """As an incremental job has it: nothing is carried over, so what the run before has is all that there is."""
    versions = corpus(table)
    await versions.add(a_page("a", records=[(1, "a"), (None, "a")]), a_page("b", records=[(2, "b")]))
    unchanged = ended("a", Outcome.UNCHANGED)
    unchanged.content_digest = content
    await versions.add(unchanged, a_page("b", records=[(2, "new")]))
    assert await versions.current() == [(1, "a"), (2, "new"), (None, "a")]


@pytest.mark.parametrize("table", [MERGED, MERGED_BY_KEY])
async def test_what_retry_brings_replaces_what_was_kept(corpus: Corpus, table: TableSettings) -> None:
    versions = corpus(table)
    await versions.add(a_page("a", records=[(1, "old")]), a_page("b", records=[(2, "old")]))
    run = await versions.add(ended("a", Outcome.FAILED))
    assert await versions.current() == [(1, "old"), (2, "old")]
    await versions.retry(run, a_page("a", records=[(1, "new")]))
    await versions.complete(run)
    await versions.publish(run)
    assert await versions.current() == [(1, "new"), (2, "old")]
    await versions.add(a_page("c", records=[(3, "c")]))
    assert await versions.current() == [(1, "new"), (2, "old"), (3, "c")]


@pytest.mark.parametrize("ends", ["outcome = 'failed', stale = true", "outcome = 'unchanged', body_digest = 'x'"])
@pytest.mark.parametrize("ends_so_again", [False, True])
@pytest.mark.parametrize("table", [MERGED, MERGED_BY_KEY])
async def test_a_stale_or_unchanged_key_that_is_requested_again_takes_no_record_of_the_run_before_away(
    corpus: Corpus, table: TableSettings, ends_so_again: bool, ends: str
) -> None:
    versions = corpus(table)
    old = [(1, "old"), (2, "old"), (None, "old")]
    await versions.add(a_page("a", records=old))
    run = await versions.begin()

    async def store_kept() -> None:
        await versions.store(run, a_page("a", records=old))
        await versions.connection.execute(f"UPDATE {run.pages} SET {ends}")
        await versions.connection.execute("UPDATE runs SET base_run = 1 WHERE run_id = 2")

    for _ in range(3 if ends_so_again else 1):
        await store_kept()
        await versions.complete(run)
        await versions.publish(run)
        assert await versions.current() == old
        await versions.retry(run, wanted=PagesToRetry((Outcome.FAILED, Outcome.UNCHANGED)))
        assert await versions.current() == old, "readers have them meanwhile"
    if ends_so_again:
        await store_kept()
    else:
        await versions.store(run, a_page("a", records=[(1, "new"), (3, "new")]))
    await versions.complete(run)
    stays = [] if table == MERGED_BY_KEY else [(2, "old"), (None, "old")]
    assert await versions.current() == (old if ends_so_again else sorted([(1, "new"), (3, "new"), *stays], key=str))


async def test_what_is_kept_is_no_record_of_a_page_of_the_run(corpus: Corpus) -> None:
    versions = corpus(MERGED)
    await versions.add(a_page("list", records=[(1, "first")]))
    await versions.add(a_page("list", records=[(2, "second")]))
    run = await versions.add(a_page("list", records=[(3, "third")]))
    rows = await versions.connection.fetch(f"SELECT id FROM {run.part('facts')} JOIN {run.pages} USING (digest)")
    assert [row["id"] for row in rows] == [3]
    key = a_page("list").item.digest
    digests = await versions.connection.fetch("SELECT DISTINCT digest FROM facts_current")
    assert {row["digest"] for row in digests} == {key, key + b"\x00"}


async def test_a_table_that_the_run_before_did_not_have_begins_empty(corpus: Corpus) -> None:
    versions = corpus(MERGED)
    await versions.add(a_page("a", records=[(1, "a")]))
    other = TableSettings(name="others", column_settings=COLUMNS, mode="merge")
    versions.table = other
    await versions.add(a_page("b", records=[(2, "b")]))
    rows = await versions.connection.fetch("SELECT id FROM others_current")
    assert [row["id"] for row in rows] == [2]


async def test_two_runs_that_end_at_once_lose_no_record(corpus: Corpus, database: str) -> None:
    """The second waits for the first, and keeps what that has brought."""
    versions = corpus(MERGED)
    await versions.add(a_page("a", records=[(1, "a")]))
    first, second = await versions.begin(), await versions.begin()
    await versions.store(first, a_page("b", records=[(2, "b")]))
    await versions.store(second, a_page("c", records=[(3, "c")]))
    for run in (first, second):
        await versions.complete(run)
    other = await connect_postgres(database)
    held = versions.connection.transaction()
    await held.start()
    await versions.connection.fetchval("SELECT current_run FROM corpora FOR UPDATE")
    publishing = asyncio.create_task(Corpora(other).publish("test", second, [MERGED]))
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    try:

        async def waiting() -> bool:
            return bool(await versions.connection.fetchval(waits))

        await eventually(waiting, "the second run's publication to wait")
        await versions.connection.execute("UPDATE corpora SET current_run = $1", first.run_id)
        await held.commit()
        await publishing
    finally:
        await cancel_and_wait(publishing)
        await other.close()
    assert await versions.current() == [(2, "b"), (3, "c")]
