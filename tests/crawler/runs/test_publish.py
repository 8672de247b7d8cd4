"""Whether a complete run is published by itself, in a real Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from coordinator.errors import EpochLost, UsageError
from coordinator.model import Epoch, Outcome
from crawler.model import Page
from crawler.runs.publish import finish_run, publish_run, roll_back
from crawler.store.catalogue import Catalogue
from crawler.store.corpora import Corpora
from crawler.store.postgres import PostgresConnection, connect_postgres
from crawler.store.queries import query
from crawler.store.reasons import PagesToRetry
from crawler.store.rows.stored_run import StoredRun
from crawler.store.tables import RunTables
from crawler.store.writer import Writer
from tests.crawler.examples import a_document, a_job, a_page
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

EPOCH = Epoch("x")


async def made(connection: PostgresConnection, name: str, base_run: int | None = None) -> StoredRun:
    catalogue = Catalogue(connection)
    await catalogue.prepare()
    await catalogue.make(name, a_document(), EPOCH, (), corpus="afd", base_run=base_run)
    run = await catalogue.find(name)
    assert run is not None
    return run


async def store(database: str, run: RunTables, page: Page) -> None:
    writer = Writer(database, run, EPOCH, ())
    await writer.write([page])
    await writer.close()


async def test_a_refresh_does_not_undo_a_rollback(connection: PostgresConnection, database: str) -> None:
    """Who went back behind its base did not want what the base has."""
    for name in ("first", "second"):
        base = await finish_run(database, await made(connection, name), a_job())
        assert base.published_at
    refresh = await made(connection, "third", base.run_id)
    await roll_back(connection, "afd")
    third = await finish_run(database, refresh, a_job())
    assert third.complete
    assert third.published_at is None
    assert "went back" in (third.shortfall or "")
    assert "`shardcrawl publish third`" in (third.shortfall or "")
    assert (await publish_run(connection, "third"))[1] == ""
    current = await Catalogue(connection).current("afd")
    assert current is not None
    assert current.name == "third"


async def test_a_run_that_readers_see_by_force_is_published_again_without(
    connection: PostgresConnection, database: str
) -> None:
    """As who has to write its files says."""
    run, page = await made(connection, "first"), a_page("a")
    page.fail("why")
    await store(database, RunTables.of(run), page)
    await connection.execute('UPDATE runs SET spec = spec || \'{"publish": {"max_failed": 0.1}}\'')
    assert (await finish_run(database, run, a_job(publish={"max_failed": 0.1}))).falls_short
    assert (await publish_run(connection, "first"))[1]
    assert (await publish_run(connection, "first", force=True))[1] == ""
    assert (await publish_run(connection, "first"))[1] == ""


async def test_the_run_to_which_readers_go_back_is_not_held_back_any_more(
    connection: PostgresConnection, database: str
) -> None:
    runs = [await finish_run(database, await made(connection, name), a_job()) for name in ("first", "second")]
    catalogue, of_first = Catalogue(connection), RunTables.of(runs[0])
    await connection.execute("UPDATE runs SET state = 'running', shortfall = NULL, counts = NULL WHERE name = 'first'")
    first = await finish_run(database, runs[0], a_job())
    assert "newer run that is published" in (first.shortfall or "")
    assert await roll_back(connection, "afd") == ("first", "second")
    first, second = await catalogue.all()
    assert (first.shortfall, second.shortfall) == ("", "")
    assert await Corpora(connection).current("afd") == of_first.run_id


@pytest.mark.parametrize(
    ("corpus", "message"),
    [("first", "no corpus first; known corpora: afd"), ("afd", "corpus afd has no run that readers see")],
)
async def test_a_rollback_of_no_corpus_names_those_that_are_there(
    connection: PostgresConnection, corpus: str, message: str
) -> None:
    await made(connection, "first")
    with pytest.raises(UsageError, match=message):
        await roll_back(connection, corpus)


async def test_a_rollback_beside_a_command_that_publishes_waits_for_it_and_says_so(
    connection: PostgresConnection, database: str
) -> None:
    """They lock the corpus before the run: else each would wait for the other."""
    for name in ("first", "second"):
        await finish_run(database, await made(connection, name), a_job())
    publishing = await connect_postgres(database)
    async with publishing.transaction():
        await publishing.fetchval(query("lock-corpus"), "afd")
        going_back = asyncio.create_task(roll_back(connection, "afd"))
        waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"

        async def is_waited_for() -> bool:
            return bool(await publishing.fetchval(waits))

        await eventually(is_waited_for, "the rollback waits")
        await publishing.fetchval(query("mark-published"), 1)
        await publishing.execute(query("point-corpus"), "afd", 1)
    await publishing.close()
    with pytest.raises(UsageError, match="another command has just changed which run readers see"):
        await going_back
    assert await Corpora(connection).current("afd") == 1


def meanwhile(monkeypatch: pytest.MonkeyPatch, run: StoredRun, happens: Callable[[], Awaitable[object]]) -> None:
    """Let something happen once, when this run is on its way to its readers and they do not see it yet."""
    attach, left = Corpora._attach, [happens]

    async def attach_and_wait(self: Corpora, of_run: RunTables, tables: Sequence[str]) -> bool:
        found = await attach(self, of_run, tables)
        if of_run.run_id == run.run_id and left:
            await left.pop()()
        return found

    monkeypatch.setattr(Corpora, "_attach", attach_and_wait)


async def test_a_run_is_not_published_over_a_newer_one_that_was_published_meanwhile(
    connection: PostgresConnection, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = [await made(connection, name) for name in ("old", "new")]
    meanwhile(monkeypatch, old, lambda: finish_run(database, new, a_job()))
    assert "newer run that is published" in ((await finish_run(database, old, a_job())).shortfall or "")
    assert await Corpora(connection).current("afd") == new.run_id


async def test_a_run_whose_keys_were_put_back_meanwhile_is_not_published(
    connection: PostgresConnection, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, tables = await made(connection, "first"), RunTables(1)
    page = a_page("a")
    page.fail("why")
    await store(database, tables, page)
    meanwhile(monkeypatch, run, lambda: Catalogue(connection).reopen(tables, PagesToRetry()))
    with pytest.raises(EpochLost):
        await finish_run(database, run, a_job())
    await Corpora(connection).refuse(run.run_id, "why")
    (found,) = await Catalogue(connection).all()
    assert (found.unfinished, found.published_at, found.shortfall) == (True, None, None)
    assert await Corpora(connection).current("afd") is None


@pytest.mark.parametrize(
    ("outcome", "sections", "is_published"),
    [
        (None, {}, False),
        (Outcome.FAILED, {}, False),
        (Outcome.STORED, {}, True),
        (None, {"publish": {"min_keys": 0.0}}, True),
        (None, {"run": {"name": "test", "since": "2026-01-01T00:00:00Z"}}, True),
    ],
)
async def test_a_run_without_any_rows_does_not_take_the_place_of_one_that_has_some(
    connection: PostgresConnection, database: str, outcome: Outcome | None, sections: dict[str, Any], is_published: bool
) -> None:
    for name in ("first", "second"):
        run = await made(connection, name)
        if name == "first" or outcome is not None:
            page = a_page("a")
            page.outcome = outcome if name == "second" and outcome else Outcome.STORED
            await store(database, RunTables.of(run), page)
        run = await finish_run(database, run, a_job(**sections))
    assert run.complete
    assert run.falls_short is not is_published
    assert (run.published_at is not None) is is_published
