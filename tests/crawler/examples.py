"""Jobs, pages and runs as the tests of this folder need them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg

from coordinator.model import NO_ATTEMPTS, Attempts, EntryId, Epoch, FoundBatch, Outcome, ShardId
from coordinator.queue.sharding import digest
from coordinator.url import parse
from crawler.job.job import Job, read_job
from crawler.job.tables import TableSettings
from crawler.model import Item, OpenBlock, Page, Request
from crawler.store.catalogue import Catalogue
from crawler.store.corpora import Corpora
from crawler.store.postgres import PostgresConnection, connect_postgres
from crawler.store.tables import RunTables
from crawler.store.writer import Writer

# A moment that binary fractions of a second cannot hold exactly.
MOMENT = 1_767_225_600.123457


def a_document(**sections: Any) -> dict[str, Any]:
    return {"run": {"name": "test"}, "source": {"path": "keys.txt"}} | sections


def a_job(**sections: Any) -> Job:
    return read_job(a_document(**sections))


def a_table(name: str = "facts", **columns: str) -> TableSettings:
    return TableSettings(name=name, column_settings=columns)


def a_page(key: str, *, body: bytes | None = b'{"a":1}', records: Sequence[tuple[Any, ...]] = ()) -> Page:
    """A stored page; its records are rows of the job's first table."""
    return Page(
        Item(key, digest(key), OpenBlock(ShardId(0), EntryId("1-0"), 1, 1)),
        f"https://upstream.example/{key}",
        Outcome.STORED,
        status=200,
        attempts=1,
        fetched_at=MOMENT,
        body=body,
        records=[(0, tuple(record)) for record in records],
    )


def a_request(key: str, upstream: str = "upstream.example", attempts: Attempts = NO_ATTEMPTS) -> Request:
    """A request for one key."""
    item = Item(key, digest(key), OpenBlock(ShardId(0), EntryId("1-0"), 1, 1))
    return Request(parse(f"https://{upstream}/{key}"), [item], upstream, attempts)


async def finished(
    connection: PostgresConnection, run: RunTables, epoch: Epoch, tables: Sequence[TableSettings] = ()
) -> Mapping[Outcome, int]:
    """Complete a run and publish it; returns its keys by outcome."""
    catalogue = Catalogue(connection)
    counts = await catalogue.complete(run, epoch, tables)
    found = next(one for one in await catalogue.all() if one.run_id == run.run_id)
    if found.shortfall is None:
        await Corpora(connection).publish(found.corpus, run, tables)
    return counts


@dataclass(frozen=True)
class LoadingRun:
    """A run in an empty database, and a connection that looks at it."""

    url: str
    run_id: int
    epoch: Epoch
    tables: tuple[TableSettings, ...]
    eye: PostgresConnection
    follows: bool = False

    @asynccontextmanager
    async def writer(self) -> AsyncIterator[Writer]:
        writer = Writer(self.url, RunTables(self.run_id), self.epoch, self.tables, follows=self.follows)
        try:
            yield writer
        finally:
            await writer.close()

    async def store(self, pages: Sequence[Page]) -> list[FoundBatch]:
        """Write the pages with a writer of their own."""
        async with self.writer() as writer, asyncio.timeout(60):
            return await writer.write(pages)

    async def pages(self) -> dict[str, asyncpg.Record]:
        """The run's pages by key."""
        rows = await self.eye.fetch(f"SELECT *, body::text AS json FROM pages_r{self.run_id}")
        by_key = {row["key"]: row for row in rows}
        assert len(by_key) == len(rows)
        return by_key

    async def records(self) -> list[tuple[Any, ...]]:
        """The first table's records, without run_id and digest, sorted."""
        rows = await self.eye.fetch(f"SELECT * FROM {self.tables[0].name}_r{self.run_id}")
        return sorted(tuple(row)[2:] for row in rows)


@asynccontextmanager
async def a_loading_run(database: str, *tables: TableSettings, follows: bool = False) -> AsyncIterator[LoadingRun]:
    connection = await connect_postgres(database)
    try:
        catalogue = Catalogue(connection)
        await catalogue.prepare()
        epoch = Epoch(secrets.token_hex(4))
        named = [{"name": table.name, "columns": dict(table.columns)} for table in tables]
        run_id = await catalogue.make("test", a_document(tables=named), epoch, tables, follows=follows)
        yield LoadingRun(database, run_id, epoch, tables, connection, follows)
    finally:
        await connection.close()
