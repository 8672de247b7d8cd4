"""Which runs may go, and that nothing else does, on a real Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest
from redis.asyncio import Redis

from coordinator.errors import PostgresRefused, PostgresUnavailable, UsageError
from coordinator.model import Epoch
from coordinator.redis.keys import RUNS, RunKeys
from crawler.runs import cancel as cancel_module
from crawler.runs import prune as prune_module
from crawler.runs.cancel import cancel_run
from crawler.runs.prune import Part, drop_orphans, orphans, prunable, prune, run_sizes, to_prune
from crawler.store.catalogue import Catalogue
from crawler.store.corpora import Corpora
from crawler.store.postgres import PostgresConnection, connect_postgres
from crawler.store.reasons import PagesToRetry
from crawler.store.rows.stored_run import StoredRun
from crawler.store.tables import RunTables
from tests.crawler.examples import a_document, a_table, finished

pytestmark = pytest.mark.anyio

TODAY = datetime(2026, 11, 27, tzinfo=UTC)
FACTS = a_table(n="integer")


def a_run(number: int, state: str = "published", *, base: int | None = None, age: int = 0) -> StoredRun:
    ended = TODAY - timedelta(days=age)
    return StoredRun(
        run_id=number,
        name=f"run-{number}",
        document={},
        epoch=Epoch("e"),
        complete=state in ("published", "held back"),
        counts={},
        created_at=ended,
        finished_at=None if state == "running" else ended,
        base_run=base,
        published_at=ended if state == "published" else None,
        cancelled=state == "cancelled",
    )


@pytest.mark.parametrize(
    ("runs", "current", "keep", "pruned"),
    [
        pytest.param([a_run(1), a_run(2), a_run(3)], 3, 1, [1, 2], id="all but the newest"),
        pytest.param([a_run(1), a_run(2), a_run(3)], 3, 3, [], id="as many as are kept"),
        pytest.param([a_run(1), a_run(2), a_run(3)], 1, 1, [2], id="the current one is an old one"),
        pytest.param([a_run(1), a_run(2, "running", base=1)], None, 1, [], id="one under way, and its base"),
        pytest.param([a_run(1), a_run(2), a_run(3, "running", base=1)], 2, 1, [], id="the base of one under way"),
        pytest.param([a_run(1), a_run(2, "cancelled", base=1), a_run(3)], 3, 1, [1, 2], id="cancelled, and its base"),
        pytest.param([a_run(1), a_run(2), a_run(3, "cancelled")], 2, 2, [3], id="a cancelled one is none to keep"),
        pytest.param([a_run(1), a_run(2, "held back"), a_run(3)], 3, 2, [2], id="one that was never published"),
        pytest.param([a_run(1), a_run(2), a_run(3, "held back")], 2, 1, [1], id="one that waits to be published"),
    ],
)
def test_what_may_go_of_a_corpus_when_some_are_kept(
    runs: list[StoredRun], current: int | None, keep: int, pruned: list[int]
) -> None:
    assert [run.run_id for run in to_prune(runs, current, keep=keep)] == pruned


def test_what_may_go_of_a_corpus_by_its_age() -> None:
    runs = [a_run(1, age=100), a_run(2, age=80), a_run(3, "cancelled", age=95), a_run(4, age=99)]
    assert [run.run_id for run in to_prune(runs, 4, before=TODAY - timedelta(days=90))] == [1, 3]
    after_a_rollback = [a_run(1, age=100), a_run(2, age=95), a_run(3, "held back", age=94)]
    assert [run.run_id for run in to_prune(after_a_rollback, 1, before=TODAY - timedelta(days=90))] == [2, 3]


@pytest.fixture
async def catalogue(connection: PostgresConnection) -> Catalogue:
    catalogue = Catalogue(connection)
    await catalogue.prepare()
    return catalogue


@dataclass(frozen=True)
class Place:
    """Redis and Postgres, and the runs in it."""

    catalogue: Catalogue
    connection: PostgresConnection
    redis: Redis
    database: str

    async def prune(self, *, keep: int) -> tuple[list[StoredRun], list[Part]]:
        """Prune corpus c."""
        return await prune(self.connection, self.redis, self.database, "c", keep=keep)


@pytest.fixture
def place(catalogue: Catalogue, connection: PostgresConnection, redis: Redis, database: str) -> Place:
    return Place(catalogue, connection, redis, database)


@pytest.fixture
async def reader(database: str) -> AsyncIterator[PostgresConnection]:
    connection = await connect_postgres(database)
    yield connection
    await connection.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prune_module, "READERS_SECONDS", 0.5)


async def published(catalogue: Catalogue, connection: PostgresConnection, *names: str, schema: str = "") -> list[int]:
    """Runs of corpus c, each of them published when it was made, with two pages and a record."""
    made = []
    for name in names:
        document = a_document(tables=[{"name": "facts", "columns": {"n": "integer"}}], store={"schema": schema})
        run_id = await catalogue.make(name, document, Epoch("e"), [FACTS], corpus="c", follows=True)
        of_run = RunTables(run_id, schema)
        await connection.execute(
            f"INSERT INTO {of_run.pages} (run_id, digest, key, outcome, attempts, fetched_at) "
            f"SELECT {run_id}, decode(lpad(to_hex(i), 32, '0'), 'hex'), 'k' || i, 'stored', 1, now() "
            f"FROM generate_series(1, 2) i; INSERT INTO {of_run.part('facts')} SELECT {run_id}, '\\x01', 7"
        )
        await finished(connection, of_run, Epoch("e"), [FACTS])
        made.append(run_id)
    return made


async def tables(connection: PostgresConnection) -> set[str]:
    rows = await connection.fetch(
        "SELECT relname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE relkind IN ('r', 'p') "
        "AND nspname NOT LIKE 'pg\\_%' AND nspname <> 'information_schema'"
    )
    return {row["relname"] for row in rows} - {"runs", "pages", "facts", "corpora", "schema_version"}


@pytest.mark.parametrize("schema", ["", "own"])
async def test_old_runs_go_with_their_tables_and_with_what_redis_has(place: Place, schema: str) -> None:
    await published(place.catalogue, place.connection, "first", "second", "third", schema=schema)
    for name in ("first", "third"):
        await place.redis.hset(RunKeys(name).state, mapping={"state": "complete", "epoch": "e"})
        await place.redis.hset(RunKeys(name).limits, "x", "y")
    await place.redis.sadd(RUNS, "first")
    assert [run.name for run in await prunable(place.connection, "c", keep=2)] == ["first"]
    sizes = await run_sizes(place.connection)
    assert {run_id: current for run_id, (_, current) in sizes.items()} == {1: False, 2: False, 3: True}
    assert all(size > 8192 for size, _ in sizes.values())
    runs, parts = await place.prune(keep=2)
    assert [run.name for run in runs] == ["first"]
    assert sorted(part.name for part in parts) == ["facts_r1", "pages_found_r1", "pages_r1"]
    assert sum(part.size for part in parts) == sizes[1][0]
    assert await tables(place.connection) == {
        f"{name}_r{n}" for name in ("pages", "facts", "pages_found") for n in (2, 3)
    }
    assert {key.decode() async for key in place.redis.scan_iter()} == {RunKeys("third").state, RunKeys("third").limits}
    assert await place.connection.fetchval("SELECT count(*) FROM pages") == 4
    assert await place.prune(keep=2) == ([], [])


async def test_the_base_of_a_run_that_goes_on_stays_and_of_a_complete_one_it_may_go(place: Place) -> None:
    await published(place.catalogue, place.connection, "first")
    run_id = await place.catalogue.make("next", a_document(), Epoch("e"), [], corpus="c", base_run=1)
    await published(place.catalogue, place.connection, "newest")
    assert (await place.prune(keep=1))[0] == []
    await finished(place.connection, RunTables(run_id), Epoch("e"))
    await place.connection.execute("UPDATE corpora SET current_run = 3")
    assert [run.name for run in (await place.prune(keep=1))[0]] == [
        "first",
        "next",
    ]


async def test_a_cancelled_run_with_which_another_one_began_keeps_its_rows_and_says_so(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancel_module, "QUIET_SECONDS", 0.0)
    await published(place.catalogue, place.connection, "first", "second")
    await place.catalogue.make("third", a_document(), Epoch("e"), [], corpus="c", base_run=1)
    await place.connection.execute("UPDATE runs SET base_run = 1 WHERE name = 'second'")
    await place.connection.execute("UPDATE runs SET state = 'running' WHERE name = 'first'")
    with pytest.raises(UsageError, match="its rows stay"):
        await cancel_run(place.redis, place.database, "first", drop=True)
    assert await place.connection.fetchval("SELECT state FROM runs WHERE name = 'first'") == "cancelled"
    assert await place.connection.fetchval("SELECT base_run FROM runs WHERE name = 'second'") == 1
    assert await orphans(place.connection) == []


async def test_a_new_run_that_has_got_the_name_of_a_pruned_one_meanwhile_keeps_what_redis_has(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    await published(place.catalogue, place.connection, "first", "second")

    async def begin(*_: object) -> list[Part]:
        await place.catalogue.make("first", a_document(), Epoch("new"), [], corpus="c")
        await place.redis.hset(RunKeys("first").state, mapping={"state": "running", "epoch": "new"})
        return []

    monkeypatch.setattr(prune_module, "drop_orphans", begin)
    assert [run.name for run in (await place.prune(keep=1))[0]] == ["first"]
    assert await place.redis.exists(RunKeys("first").state)


async def test_a_table_of_somebody_else_stays_whatever_its_name_is(place: Place) -> None:
    await published(place.catalogue, place.connection, "first")
    others = {
        "pages_r7": "(a integer)",
        "facts_r2024": "(run_id integer NOT NULL, digest bytea NOT NULL, n integer)",
        "facts_r8": "(run_id integer NOT NULL, digest bytea NOT NULL, other text, CHECK (run_id = 8))",
        "facts_r9": "(run_id integer NOT NULL, digest bytea NOT NULL, n bigint, CHECK (run_id = 9))",
        "others_r10": "(run_id integer NOT NULL, digest bytea NOT NULL, CHECK (run_id = 10))",
        "pages_found_r11": "(digest bytea PRIMARY KEY, mine text)",
        "facts_r12x": "(LIKE facts, CHECK (run_id = 12))",
        "facts_r012": "(LIKE facts, CHECK (run_id = 12))",
    }
    for name, columns in others.items():
        await place.connection.execute(f"CREATE TABLE {name} {columns}")
    await place.connection.execute("CREATE ROLE somebody; CREATE TABLE facts_r13 (LIKE facts, CHECK (run_id = 13))")
    try:
        assert [part.name for part in await orphans(place.connection)] == ["facts_r13"]
        await place.connection.execute("CREATE TABLE facts_r14 (LIKE facts, CHECK (run_id = 14))")
        await place.connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO somebody; SET ROLE somebody")
        assert await orphans(place.connection) == []
    finally:
        await place.connection.execute("RESET ROLE; DROP OWNED BY somebody; DROP ROLE somebody")
    await place.prune(keep=1)
    assert await tables(place.connection) == {"pages_r1", "facts_r1", "pages_found_r1", *others}


async def test_a_run_whose_row_was_deleted_by_hand_is_cleaned_up_with_any_corpus(place: Place) -> None:
    await published(place.catalogue, place.connection, "first", "second")
    await place.catalogue.make("lost", a_document(), Epoch("e"), [], corpus="another")
    await place.connection.execute("DELETE FROM runs WHERE name IN ('lost', 'first')")
    for name in ("lost", "used"):
        await place.redis.sadd(RUNS, name)
        await place.redis.hset(RunKeys(name).state, mapping={"state": "running", "epoch": "e"})
    await place.redis.set(RunKeys("used").leader, "of another database", ex=10)
    await place.redis.sadd(RUNS, "*")  # no name of a run, and a pattern for the keys of all
    runs, parts = await place.prune(keep=5)
    assert runs == []
    assert sorted(part.name for part in parts) == ["facts_r1", "pages_found_r1", "pages_r1", "pages_r3"]
    assert await place.redis.smembers(RUNS) == {b"used", b"*"}
    assert await place.redis.exists(RunKeys("used").leader)
    assert not await place.redis.exists(RunKeys("lost").state)


@pytest.mark.parametrize("touched", ["SELECT count(*) FROM facts_current", "SELECT 1"])
async def test_a_reader_in_a_transaction_is_waited_for_and_sees_all_that_it_saw(
    place: Place, reader: PostgresConnection, touched: str
) -> None:
    """Also one whose snapshot is older than the publishing, and that has not read the corpus yet."""
    await published(place.catalogue, place.connection, "first")
    transaction = reader.transaction(isolation="repeatable_read")
    await transaction.start()
    await reader.fetchval(touched)
    await published(place.catalogue, place.connection, "second")
    with pytest.raises(PostgresUnavailable, match="prune` again"):
        await place.prune(keep=1)
    joined = "SELECT count(*), min(p.run_id), max(f.n) FROM pages_current p CROSS JOIN facts_current f"
    assert tuple(await reader.fetchrow(joined)) == (2, 1, 7)
    # Who comes meanwhile does not wait, although a partition may be half detached.
    async with asyncio.timeout(5):
        assert tuple(await place.connection.fetchrow(joined)) == (2, 2, 7)
    await transaction.rollback()
    assert len((await place.prune(keep=1))[1]) == 3
    assert await tables(place.connection) == {"pages_r2", "facts_r2", "pages_found_r2"}
    assert tuple(await reader.fetchrow(joined)) == (2, 2, 7)


async def test_a_table_on_which_something_else_depends_is_named(
    catalogue: Catalogue, connection: PostgresConnection, database: str
) -> None:
    await published(catalogue, connection, "first", "second")
    await connection.execute("CREATE VIEW mine AS SELECT * FROM facts_r1; DELETE FROM runs WHERE name = 'first'")
    with pytest.raises(PostgresRefused, match="facts_r1"):
        await drop_orphans(connection, database)
    await connection.execute("DROP VIEW mine")
    await drop_orphans(connection, database)
    assert await Corpora(connection).current("c") == 2
    assert await tables(connection) == {"pages_r2", "facts_r2", "pages_found_r2"}


@pytest.mark.parametrize("drop", [False, True], ids=["cancel", "drop"])
async def test_a_run_that_another_command_drops_while_it_is_cancelled_is_said_to_be_gone(
    place: Place, monkeypatch: pytest.MonkeyPatch, drop: bool
) -> None:
    """And a new run that has got its name meanwhile keeps what Redis has."""
    monkeypatch.setattr(cancel_module, "QUIET_SECONDS", 0.0)
    wait, left = cancel_module._wait_until_left, [True]

    async def other_command(redis: Redis, name: str) -> None:
        await wait(redis, name)
        if left:
            left.clear()
            await cancel_run(redis, place.database, name, drop=True)
            await place.catalogue.make("first", a_document(), Epoch("new"), [], corpus="c")
            await redis.hset(RunKeys("first").state, mapping={"state": "running", "epoch": "new"})

    monkeypatch.setattr(cancel_module, "_wait_until_left", other_command)
    await place.catalogue.make("first", a_document(), Epoch("e"), [], corpus="c")
    with pytest.raises(UsageError, match="run first is gone: another command deleted it"):
        await cancel_run(place.redis, place.database, "first", drop=drop)
    assert await place.redis.exists(RunKeys("first").state)


async def test_what_a_run_is_that_cannot_be_cancelled_is_looked_up_at_that_moment(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    await published(place.catalogue, place.connection, "first")
    run = await place.catalogue.find("first")
    assert run is not None
    before = replace(run, complete=False)

    async def found(*_: object) -> StoredRun:
        return before

    monkeypatch.setattr(Catalogue, "find", found)
    with pytest.raises(UsageError, match="run first is complete"):
        await cancel_run(place.redis, place.database, "first")


async def test_a_run_that_is_pruned_meanwhile_is_neither_published_nor_retried(place: Place) -> None:
    await published(place.catalogue, place.connection, "first", "second")
    await place.prune(keep=1)
    for late in (
        Corpora(place.connection).publish("c", RunTables(1), [FACTS]),
        place.catalogue.reopen(RunTables(1), PagesToRetry(), [FACTS]),
    ):
        with pytest.raises(UsageError, match="run 1 is gone: another command deleted it"):
            await late
