"""The keys that the pages of one run named, in Postgres: stored with their pages, and read when there is room for them.

A page's found keys are committed with it, and only those of a page that is stored now: one that was stored before has
its found keys already. Of two pages that name the same key, the first one to be committed has found it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import NamedTuple

import msgpack

from coordinator.model import FoundBatch, FoundKey, KeyContext, Outcome
from coordinator.queue.wire import context_from
from crawler.job.tables import TableSettings
from crawler.model import Page
from crawler.store.postgres import PostgresConnection, connect_postgres, postgres_errors
from crawler.store.queries import query
from crawler.store.reasons import PagesToRetry
from crawler.store.rows import copyformat
from crawler.store.rows.merge import loosen_records
from crawler.store.tables import RunTables, quoted

logger = logging.getLogger(__name__)

ROWS_PER_FETCH = 50_000
LIST_REPEATS = "list incomplete: the next page is one that the list had before"


class FoundCounts(NamedTuple):
    """The pages of one kind: all, those of lists behind their first, followed keys, and those that brought nothing."""

    pages: int
    list_pages: int
    followed: int
    unread: int


class FoundTable:
    """The found keys of one run. Its methods work in the caller's transaction, and raise asyncpg's errors."""

    def __init__(self, tables: RunTables) -> None:
        self._found, self._part = tables.found, tables.pages
        self._staging = tables.found_staging_name

    async def make(self, connection: PostgresConnection) -> None:
        """Make the table of a new run."""
        await connection.execute(query("make-found", found=self._found))
        await connection.execute(query("index-found", found=self._found))

    async def store(
        self, connection: PostgresConnection, pages: Sequence[Page], before: Sequence[bytes], batch: int
    ) -> list[FoundBatch]:
        """Store what these pages have named, under the number of their batch; returns what is to be published.

        `before` are digests of pages that were stored before. A page whose list goes on with a page that the list had
        before gets a reason that says so.
        """
        batches = await self._stored_before(connection, before) if before else []
        found = {one.digest: one for page in reversed(pages) for one in page.found}
        if not found:
            return batches
        staging = quoted(self._staging)
        await connection.execute(query("hide-notices"))
        await connection.execute(query("make-found-staging", staging=staging, found=self._found))
        stream = copyformat.joined(copyformat.encode_found(found.values(), batch))
        await connection.copy_to_table(self._staging, source=stream, columns=copyformat.FOUND_COLUMNS, format="binary")
        rows = await connection.fetch(query("merge-found", found=self._found, staging=staging))
        new = {row["digest"] for row in rows}
        repeated = [
            (page, one) for page in pages for one in page.found if one.context.list_key and one.digest not in new
        ]
        if repeated:
            await self._end_lists(connection, repeated)
        by_depth: dict[int, list[FoundKey]] = {}
        for digest in new:
            by_depth.setdefault(found[digest].context.depth, []).append(found[digest])
        return batches + [FoundBatch(batch, depth, len(keys), tuple(keys)) for depth, keys in by_depth.items()]

    async def _end_lists(self, connection: PostgresConnection, repeated: Sequence[tuple[Page, FoundKey]]) -> None:
        """Say of pages that their list goes on with one that it had before, unless that had the same place in the list.

        Then the page itself named it before it failed, was kept by a refresh, and went back by `retry`.
        """
        rows = await connection.fetch(query("found-contexts", found=self._found), [one.digest for _, one in repeated])
        places = {row["digest"]: decode_context(row["context"]).page_no for row in rows}
        ended = [page.item.digest for page, one in repeated if places.get(one.digest) != one.context.page_no]
        if ended:
            await connection.execute(query("end-lists", part=self._part), ended, LIST_REPEATS)

    async def _stored_before(self, connection: PostgresConnection, digests: Sequence[bytes]) -> list[FoundBatch]:
        statement = query("stored-batches", found=self._found, part=self._part)
        rows = await connection.fetch(statement, digests)
        return [FoundBatch(row["batch"], row["depth"], row["size"], example=row["example"]) for row in rows]

    async def counts(self, connection: PostgresConnection) -> Mapping[str, FoundCounts]:
        """What was found of each kind, "" for that of the source."""
        rows = await connection.fetch(query("count-found", part=self._part))
        return {kind: FoundCounts(*counts) for kind, *counts in rows}

    async def read(self, connection: PostgresConnection, batch: FoundBatch) -> list[FoundKey]:
        """The keys of a batch."""
        rows = await connection.fetch(query("read-found", found=self._found), batch.batch, batch.depth)
        contexts = {encoded: decode_context(encoded) for encoded in {row["context"] for row in rows}}  # one a page
        return [FoundKey(digest, key, contexts[encoded], *rest) for digest, key, encoded, *rest in rows]

    async def unfetched(self, connection: PostgresConnection) -> tuple[list[FoundBatch], Mapping[int, int]]:
        """The batches that have keys without a page, with the number of these; and {rule: keys of it with a page}."""
        batches = await connection.fetch(query("unfetched-batches", found=self._found, part=self._part))
        by_rule = await connection.fetch(query("fetched-by-rule", found=self._found, part=self._part))
        return [FoundBatch(*row) for row in batches], {row["rule"]: row["keys"] for row in by_rule}

    async def unfetched_digests(self, connection: PostgresConnection) -> AsyncIterator[list[bytes]]:
        """The digests of the keys that have no page, part by part."""
        cursor = await connection.cursor(query("unfetched-digests", found=self._found, part=self._part))
        while rows := await cursor.fetch(ROWS_PER_FETCH):
            yield [row["digest"] for row in rows]


def decode_context(encoded: bytes) -> KeyContext:
    """The context of these bytes. Raises ValueError when they are not of one of ours."""
    return context_from(msgpack.unpackb(encoded, use_list=False))


async def delete_pages(
    connection: PostgresConnection, of_run: RunTables, wanted: PagesToRetry, tables: Sequence[TableSettings]
) -> Mapping[Outcome, int]:
    """Delete pages that are wanted again; returns how many, by outcome.

    Of lists all pages are deleted. Records go with their pages. What is stale stays when its base was pruned.
    """
    part, found = of_run.pages, of_run.found
    await connection.execute(query("stop-batches", part=part))
    has_base = await connection.fetchval(query("has-base"), of_run.run_id)
    if wanted.lists:
        broken = await connection.fetch(query("broken-lists", part=part))
        lists = [row["list"] for row in broken if has_base or not row["stale"]]
        _say_left(len(broken) - len(lists), "lists with stale pages")
        for table in tables:
            records = of_run.part(table.name)
            await loosen_records(connection, of_run, table, query("of-lists"), lists)
            await connection.execute(query("delete-list-records", records=records, part=part), lists)
        await connection.execute(query("delete-list-found", found=found, part=part), lists)
        await connection.execute(query("keep-links-of-lists", part=part), lists)
        rows = await connection.fetch(query("delete-list-pages", part=part), lists)
    else:
        condition = query("wanted-again")
        if not has_base:
            stale = query("count-stale", part=part, wanted=condition)
            _say_left(await connection.fetchval(stale, *wanted.arguments), "stale keys")
            condition = query("not-stale", wanted=condition)
        for table in tables:
            await loosen_records(connection, of_run, table, condition, *wanted.arguments)
            statement = query("delete-records", records=of_run.part(table.name), part=part, wanted=condition)
            await connection.execute(statement, *wanted.arguments)
        rows = await connection.fetch(query("delete-pages", part=part, wanted=condition), *wanted.arguments)
    return {Outcome(row["outcome"]): row["keys"] for row in rows}


def _say_left(left: int, what: str) -> None:
    if left:
        logger.warning(
            "%s %s are left as they are: the run from which their rows were kept was pruned, so they would be lost "
            "if the keys failed again; the next refresh requests them",
            *(f"{left:,}", what),
        )


class FoundReader:
    """Reads the found keys of a run, through a connection that is opened when it is needed.

    Its methods raise PostgresUnavailable, PostgresRefused.
    """

    def __init__(self, database: str, tables: RunTables) -> None:
        self._database = database
        self._table = FoundTable(tables)
        self._connection: PostgresConnection | None = None

    async def read(self, batch: FoundBatch) -> list[FoundKey]:
        """The keys of a batch."""
        connection = await self._connected()
        with postgres_errors():
            return await self._table.read(connection, batch)

    async def unfetched(self) -> tuple[list[FoundBatch], Mapping[int, int]]:
        """The batches that have keys without a page, with the number of these; and {rule: keys of it with a page}."""
        connection = await self._connected()
        with postgres_errors():
            return await self._table.unfetched(connection)

    async def unfetched_digests(self) -> AsyncIterator[list[bytes]]:
        """The digests of the keys that have no page, part by part."""
        connection = await self._connected()
        with postgres_errors():
            async with connection.transaction(readonly=True):
                async for part in self._table.unfetched_digests(connection):
                    yield part

    async def _connected(self) -> PostgresConnection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await connect_postgres(self._database)
        return self._connection

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            self._connection.terminate()
