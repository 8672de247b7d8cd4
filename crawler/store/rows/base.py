"""The base of a refresh in Postgres: what it has of keys, and what is carried over from it into the run.

Workers do not write to the base while a run is made from it; `retry` does, and waits for who carries pages over.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence

import asyncpg

from coordinator.model import FoundKey, Outcome
from crawler.job.tables import TableSettings
from crawler.model import BasePage, Page
from crawler.store.postgres import PostgresConnection, connect_postgres, postgres_errors, refuse_planted
from crawler.store.queries import query
from crawler.store.rows.copyformat import storable
from crawler.store.rows.found import decode_context
from crawler.store.tables import RunTables, quoted

logger = logging.getLogger(__name__)

LOST = "what the base had of it is no longer there; `shardcrawl retry` fetches it"


class BaseReader:
    """Reads the base's pages of some keys, through a connection that is opened when it is needed.

    With `keeps` a key that fails keeps what the base has of it. Its methods raise PostgresUnavailable, PostgresRefused.
    """

    def __init__(self, database: str, base: RunTables, *, keeps: bool) -> None:
        self._database = database
        self._base = base
        self._keeps = keeps
        self._connection: PostgresConnection | None = None
        self._one_query = asyncio.Lock()
        self._is_gone = False

    async def pages(self, digests: Sequence[bytes]) -> Mapping[bytes, BasePage]:
        """What the base has of these keys, by digest; nothing when the base itself is gone."""
        base = self._base
        if self._is_gone:
            return {}
        with postgres_errors():
            try:
                rows = await self._fetch(query("base-pages", part=base.pages, run_id=base.run_id), digests)
            except asyncpg.UndefinedTableError:
                logger.warning("run %s, from which unchanged pages are carried over, is gone", base.run_id)
                self._is_gone = True
                return {}
        keeps = self._keeps
        return {
            digest: BasePage(url, etag, modified, None if failed else at, content, keeps)
            for digest, url, etag, modified, at, content, failed in rows
        }

    async def found(self, digests: Sequence[bytes]) -> Mapping[bytes, list[FoundKey]]:
        """What these pages had found in the base, by the page's digest."""
        base = self._base
        statement = query("found-by-pages", found=base.found, part=base.pages, run_id=base.run_id)
        with postgres_errors():
            rows = await self._fetch(statement, digests)
        by_page: dict[bytes, list[FoundKey]] = {digest: [] for digest in digests}
        for digest, key, encoded, rule, refusal in rows:
            context = decode_context(encoded)
            if context.origin in by_page:
                by_page[context.origin].append(FoundKey(digest, key, context, rule, refusal))
        return by_page

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            self._connection.terminate()

    async def _fetch(self, statement: str, digests: Sequence[bytes]) -> list[asyncpg.Record]:
        async with self._one_query:  # the intake and the flush read at the same time
            rows: list[asyncpg.Record] = await (await self._connected()).fetch(statement, digests)
        return rows

    async def _connected(self) -> PostgresConnection:
        if self._connection is None or self._connection.is_closed():
            connection = await connect_postgres(self._database)
            try:
                await refuse_planted(connection, [self._base.pages, self._base.found])
            except BaseException:
                connection.terminate()
                raise
            self._connection = connection
        return self._connection


class CarriedPages:
    """Carries pages and their records from the base over into a run, in the caller's transaction."""

    def __init__(self, run: RunTables, base: RunTables, tables: Sequence[TableSettings]) -> None:
        self._hold = query("hold-base", base_run=base.run_id)
        self._carry = query("carry-pages", part=run.pages, run_id=run.run_id, base=base.pages, base_run=base.run_id)
        self._stored = query("stored-digests", part=run.pages, run_id=run.run_id)
        self._records = []
        for table in tables:
            part, old = run.part(table.name), base.part(table.name)
            columns = "".join(f", {quoted(name)}" for name, _ in table.columns)
            self._records.append(query("carry-records", part=part, run_id=run.run_id, base=old, columns=columns))

    async def carry(self, connection: PostgresConnection, pages: Sequence[Page], batch: int | None) -> set[bytes]:
        """Carry these pages over, in the order of their digests; returns the digests of those that are stored now.

        One that was stored before stays as it is. A page of which the base has not that content any more fails, and is
        to be stored as it is. Raises asyncpg's errors.
        """
        await connection.execute(self._hold)
        rows = await connection.fetch(self._carry, *_arguments(pages, batch))
        new = {row["digest"] for row in rows}
        if new:
            for statement in self._records:
                await connection.execute(statement, list(new))
        if missing := [page.item.digest for page in pages if page.item.digest not in new]:
            before = {row["digest"] for row in await connection.fetch(self._stored, missing)}
            for page in pages:
                if page.item.digest not in new and page.item.digest not in before:
                    page.base, page.fetched_at = None, page.fetched_at or time.time()
                    page.fail(page.reason or LOST)
        return new


def _arguments(pages: Sequence[Page], batch: int | None) -> Sequence[object]:
    """What `carry-pages` takes: a list for each column, and the number of the batch. What a list lacks is null."""
    contexts = [page.item.context for page in pages] if batch is not None else []
    return (
        [page.item.digest for page in pages],
        [page.base and page.base.content for page in pages],
        [page.outcome is Outcome.FAILED for page in pages],
        [None if page.reason is None else storable(page.reason).decode() for page in pages],
        [page.status for page in pages],
        [page.attempts for page in pages],
        [page.fetched_at or None for page in pages],
        [context.depth for context in contexts],
        [context.page_no for context in contexts],
        batch,
        [context.origin or None for context in contexts],
        [None if page.outcome is Outcome.FAILED else page.body_digest for page in pages],
        [page.etag for page in pages],
        [page.last_modified for page in pages],
        [page.final_url for page in pages],
    )
