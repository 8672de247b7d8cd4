"""The source that a job names: a query on a real Postgres, its columns, its cursor, and what it says when it cannot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any

import asyncpg
import pytest

from coordinator.errors import SourceError, UsageError
from coordinator.source import Cursor
from crawler.corpus import open_corpus, sample_corpus, survey_corpus, with_source_database
from crawler.job.job import Job, read_job
from crawler.store.rows import source_query

pytestmark = pytest.mark.anyio

QUERY = "select sku, land, price, born from goods order by sku, land;"


def job_with(address: str, **source: Any) -> Job:
    document = {
        "run": {"name": "test"},
        "source": {"query": QUERY, "key": "sku"} | source,
        "request": {"url": "https://upstream.example/{key}"},
    }
    return with_source_database(read_job(document), address, {"SHOP_URL": address})


@pytest.fixture
async def goods(database: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """A table of 12,000 goods, and a connection to it."""
    connection = await asyncpg.connect(database)
    await connection.execute(
        "CREATE TABLE goods (sku bigint, land text, price numeric, born timestamptz);"
        "INSERT INTO goods SELECT n, 'de', n * 1.10, CASE n % 2 WHEN 0 THEN 'epoch'::timestamptz END "
        "FROM generate_series(1, 12000) AS n"
    )
    yield connection
    await connection.execute("DROP TABLE IF EXISTS goods")
    await connection.close()


@pytest.mark.usefixtures("goods")
async def test_a_query_gives_keys_and_fields_as_postgres_writes_them(database: str) -> None:
    job = job_with(database, key=["sku", "land"], carry=["price", "born"], database="${SHOP_URL}")
    chunk = await asyncio.to_thread(sample_corpus, job)
    assert chunk.keys[:2] == ['["1","de"]', '["2","de"]']
    assert chunk.fields[chunk.keys[0]] == {"sku": "1", "land": "de", "price": "1.10"}
    assert set(chunk.fields[chunk.keys[1]]) == {"sku", "land", "price", "born"}
    assert await asyncio.to_thread(survey_corpus, job) == await asyncio.to_thread(survey_corpus, job)
    other = job_with(database, query="select sku from goods order by sku desc")
    assert (await asyncio.to_thread(survey_corpus, job))[0] != (await asyncio.to_thread(survey_corpus, other))[0] != ""


@pytest.mark.usefixtures("goods")
@pytest.mark.parametrize("limit", [5_000, 7_001])
async def test_a_query_resumes_at_every_cursor(database: str, limit: int) -> None:
    keys: list[str] = []
    cursor, exhausted = Cursor(), False
    while not exhausted:
        with closing(await asyncio.to_thread(open_corpus, job_with(database), cursor)) as source:
            chunk = await asyncio.to_thread(source.read, limit, 60)
        keys += chunk.keys
        cursor, exhausted = chunk.end, chunk.exhausted
    assert keys == [str(number) for number in range(1, 12_001)]


async def test_a_query_goes_on_when_its_connection_broke(
    database: str, goods: asyncpg.Connection[asyncpg.Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_query, "RECONNECT_SECONDS", 0.01)
    with closing(open_corpus(job_with(database), Cursor())) as source:
        first = await asyncio.to_thread(source.read, 5_000, 60)
        ended = await goods.fetchval(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'shardcrawl source'"
        )
        rest = await asyncio.to_thread(source.read, 50_000, 60)
    assert ended == 1
    assert first.keys + rest.keys == [str(number) for number in range(1, 12_001)]


async def test_a_query_that_returns_fewer_rows_than_before_is_an_error(
    database: str, goods: asyncpg.Connection[asyncpg.Record]
) -> None:
    await goods.execute("DELETE FROM goods WHERE sku > 10")
    source = open_corpus(job_with(database), Cursor(11, 11))
    with closing(source), pytest.raises(SourceError, match="returns 10 rows, but this run has read 11 before"):
        await asyncio.to_thread(source.read, 10, 60)


@pytest.mark.usefixtures("goods")
@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"key": "skus"}, r"\[source\] query has no column skus; did you mean sku\? it has sku, land, price, born$"),
        ({"query": "selec 1 order by 1"}, r'\[source\] query: syntax error at or near "selec"$'),
        ({"query": "select 1 from absent order by 1"}, r'\[source\] query: .*relation "absent" does not exist'),
        ({"query": "delete from goods where sku in (select 1 order by 1) order by 1"}, r"\[source\] query: syntax"),
        ({"query": "select 1 as sku; drop table goods; select 1 order by 1"}, r"\[source\] query: cannot insert mult"),
        (
            {"query": "select nextval('numbers')::text as sku order by 1"},
            r"\[source\] query: .*(read-only transaction|permission denied)",
        ),
        ({"query": "select 1/(sku - 5) as sku from goods order by goods.sku"}, r"\[source\] query: division by zero$"),
    ],
)
async def test_what_postgres_says_of_a_query_is_one_line(
    database: str, goods: asyncpg.Connection[asyncpg.Record], source: dict[str, Any], words: str
) -> None:
    await goods.execute("CREATE SEQUENCE IF NOT EXISTS numbers")
    with pytest.raises(SourceError, match=words) as caught:
        await asyncio.to_thread(sample_corpus, job_with(database, **source))
    assert "\n" not in str(caught.value)
    assert await goods.fetchval("SELECT count(*) FROM goods") == 12_000
    await goods.execute("DROP SEQUENCE numbers")


async def test_an_address_that_is_not_set_or_not_right_is_said_without_its_secret(database: str) -> None:
    job = job_with(database)
    named = read_job({**job.document, "source": {**job.document["source"], "database": "${SHOP_URL}"}})
    with pytest.raises(UsageError, match=r"\[source\] database: \$\{SHOP_URL\} is not set"):
        with_source_database(named, database, {})
    wrong = "postgresql://me:secret@127.0.0.1:1/none"
    with pytest.raises(SourceError, match=r"\[source\] query: ") as caught:
        await asyncio.to_thread(sample_corpus, with_source_database(job, wrong, {}))
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_closed_query_ends_its_read(database: str, goods: asyncpg.Connection[asyncpg.Record]) -> None:
    job = job_with(database, query="select sku, pg_sleep(600)::text from goods order by sku")
    source = await asyncio.to_thread(open_corpus, job, Cursor())
    reading = asyncio.create_task(asyncio.to_thread(source.read, 10, 60))
    active = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'shardcrawl source' AND state = 'active'"
    async with asyncio.timeout(60):
        while not await goods.fetchval(active):
            await asyncio.sleep(0.01)
        source.close()
        chunk = await reading
    assert (chunk.keys, chunk.exhausted) == ([], False)
