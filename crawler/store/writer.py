"""Writes batches of pages and their records into one run's tables. A page is stored once; a bad row fails its key only.

A batch is one transaction of COPYs. When it meets a page that is stored already, the batch is merged through a staging
table. Only Postgres says which row is bad, so what becomes of a key does not depend on its neighbours: the page whose
row it names is failed, and the batch goes on in parts, each as long as its bad rows allow. When the error names no row,
the part is halved until the row is alone.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from typing import Any

import asyncpg

from coordinator.errors import EpochLost, PostgresRefused, RunCancelled, first_line
from coordinator.failpoints import Failpoint, no_failpoint
from coordinator.model import BATCH_BITS, Epoch, FoundBatch
from crawler.job.tables import OWN_COLUMNS, TableSettings
from crawler.model import Page
from crawler.store.catalogue import Catalogue
from crawler.store.postgres import PostgresConnection, connect_postgres, postgres_errors, refuse_planted
from crawler.store.queries import query
from crawler.store.rows import copyformat
from crawler.store.rows.base import CarriedPages
from crawler.store.rows.found import FoundTable
from crawler.store.rows.row_errors import ROW_ERRORS, copy_position, decode_anew, is_bare, reason_of
from crawler.store.schema import refuse_older
from crawler.store.tables import PAGES, RunTables, quoted, table_names

logger = logging.getLogger(__name__)


class Writer:
    """One worker's connection to Postgres for one run. A lost connection is opened again at the next write."""

    def __init__(
        self,
        url: str,
        run: RunTables,
        epoch: Epoch,
        tables: Sequence[TableSettings],
        failpoint: Failpoint = no_failpoint,
        *,
        follows: bool = False,
        base: RunTables | None = None,
    ) -> None:
        """Pages are carried over from the `base` of a refresh."""
        self._found = FoundTable(run) if follows else None
        self._carried = CarriedPages(run, base, tables) if base is not None else None
        self._url = url
        self._run = run
        self._epoch = epoch
        self._tables = tables
        self._failpoint = failpoint
        self._wholes = [run.whole(name) for name in (PAGES, *table_names(tables))]
        self._parts = [run.part(name) for name in (PAGES, *table_names(tables))]
        self._base_parts = [base.part(name) for name in (PAGES, *table_names(tables))] if base is not None else []
        self._connection: PostgresConnection | None = None
        # The pages of the last COPY, in its order. When it fails, the error names the position of a row.
        self._copied: Sequence[Page] = ()

    async def open(self) -> None:
        """Connect, and check that Postgres has this run with this epoch.

        Raises PostgresUnavailable, PostgresRefused, EpochLost.
        """
        await self._connected()

    async def close(self) -> None:
        """Close the connection, if there is one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    async def write(self, pages: Sequence[Page]) -> list[FoundBatch]:
        """Store the pages with their records. On return each is committed, if need be as a `failed` page.

        A page that the run has already is left as it is, and its records are not added again. Returns what is to be
        published of the keys that the pages have named.
        Raises PostgresUnavailable: then it is unknown what was stored, and the same call may be repeated. Raises
        PostgresRefused when the tables were changed during the run, EpochLost when the run was given another epoch, and
        RunCancelled when it was cancelled and closed.
        """
        by_digest = {page.item.digest: page for page in pages}
        # Sorted, so that two writers lock the same rows in the same order.
        rest = [by_digest[digest] for digest in sorted(by_digest)]
        size = len(rest)
        merging = bodies_checked = False
        found: list[FoundBatch] = []
        while rest:
            part = rest[:size]
            try:
                found += await self._commit(part, merging=merging)
            except ROW_ERRORS as error:
                named = self._named_page(error)
                if isinstance(error, asyncpg.UniqueViolationError) and not merging and not (named and named[1]):
                    merging = True  # a page is stored already
                    continue
                with postgres_errors():
                    await self._check_columns(await self._connected())
                if (named is None or named[1] is None) and decode_anew(part):
                    continue
                if named is None or is_bare(named[0]):
                    found += await self._isolate(part, error)
                else:
                    page, table = named
                    page.fail(f"{table.name}: {reason_of(error)}" if table else reason_of(error))
                    if table is None and not bodies_checked:
                        bodies_checked = True
                        await self._fail_refused_bodies(part)
                    else:  # Postgres has read all rows before this one: they are committed with it, not sent again
                        size = part.index(page) + 1
                    continue
            rest = rest[size:]
            size *= 2
        return found

    # -- a batch is one transaction

    async def _commit(self, pages: Sequence[Page], *, merging: bool) -> list[FoundBatch]:
        """Write the pages, their records and found keys in one transaction. Raises what Postgres says of a row."""
        connection = await self._connected()
        batch = None if self._found is None else secrets.randbits(BATCH_BITS)
        found: list[FoundBatch] = []
        try:
            with postgres_errors():
                async with connection.transaction():
                    await connection.execute(query("batch-timeouts"))
                    carried, stored = await self._carry(connection, pages, batch)
                    if merging:
                        stored = await self._merge(connection, stored, batch)
                    elif stored:
                        await self._copy_pages(connection, self._run.part_name(PAGES), stored, batch, self._run.schema)
                    self._copied = stored
                    for index, table in enumerate(self._tables):
                        await self._copy_records(connection, table, self._records(stored, index))
                    await self._check_columns(connection)
                    if self._found is not None and batch is not None:
                        stored = [*carried, *stored]
                        new = {page.item.digest for page in stored}
                        before = [page.item.digest for page in pages if page.item.digest not in new]
                        found = await self._found.store(connection, stored, before, batch)
                    self._failpoint("copied")
        except ROW_ERRORS:
            raise
        except BaseException:
            await self.close()
            raise
        return found

    async def _carry(
        self, connection: PostgresConnection, pages: Sequence[Page], batch: int | None
    ) -> tuple[Sequence[Page], Sequence[Page]]:
        """Carry over pages whose content the base has; returns those that were, and those that are to be written."""
        carried = [] if self._carried is None else [page for page in pages if page.is_carried]
        if self._carried is None or not carried:
            return (), pages
        new = await self._carried.carry(connection, carried, batch)
        return [page for page in carried if page.item.digest in new], [page for page in pages if not page.is_carried]

    async def _merge(self, connection: PostgresConnection, pages: Sequence[Page], batch: int | None) -> Sequence[Page]:
        """Insert the pages that are not stored yet, through a staging table; returns those."""
        staging, part = quoted(self._run.staging_name), self._run.pages
        await connection.execute(query("hide-notices"))
        await connection.execute(query("make-staging", staging=staging, part=part))
        await self._copy_pages(connection, self._run.staging_name, pages, batch)
        inserted = {row["digest"] for row in await connection.fetch(query("merge-staging", staging=staging, part=part))}
        logger.info("%s of %s pages of a batch were stored before; merged", len(pages) - len(inserted), len(pages))
        return [page for page in pages if page.item.digest in inserted]

    async def _copy_pages(
        self, connection: PostgresConnection, table: str, pages: Sequence[Page], batch: int | None, schema: str = ""
    ) -> None:
        self._copied = pages
        stream = copyformat.joined(copyformat.encode_pages(pages, self._run.run_id, batch))
        columns = copyformat.COLUMNS if batch is None else copyformat.COLUMNS + copyformat.WHERE_FOUND
        await connection.copy_to_table(
            table, source=stream, columns=columns, format="binary", schema_name=schema or None
        )

    async def _copy_records(
        self, connection: PostgresConnection, table: TableSettings, records: Sequence[tuple[Any, ...]]
    ) -> None:
        if records:
            columns = [*OWN_COLUMNS, *(name for name, _ in table.columns)]
            await connection.copy_records_to_table(
                self._run.part_name(table.name),
                records=records,
                columns=columns,
                schema_name=self._run.schema or None,
            )

    def _records(self, pages: Sequence[Page], table: int) -> list[tuple[Any, ...]]:
        return [
            (self._run.run_id, page.item.digest, *values)
            for page in pages
            for index, values in page.records
            if index == table
        ]

    async def _check_columns(self, connection: PostgresConnection) -> None:
        """Raise RunCancelled when the run is closed, PostgresRefused when parts have other columns than their tables.

        A binary COPY does not compare types: if somebody changed a column's type, wrong bytes can fit. The COPY's locks
        keep the columns as they are until the commit.
        """
        rows = await connection.fetch(query("changed-parts"), self._wholes, self._parts, self._run.run_id)
        changed = [row["part"] for row in rows]
        if None in changed:
            raise RunCancelled("the run was cancelled: what comes so late is not stored")
        if changed:
            shown = ", ".join(changed)
            raise PostgresRefused(f"Postgres: columns of {shown} were changed during the run; change them back")

    # -- a row that Postgres refuses is found, or isolated

    def _named_page(self, error: Exception) -> tuple[Page, TableSettings | None] | None:
        """The page whose row the error names, and the table of a record; None when the error names no row."""
        position = copy_position(error)
        if position is None:
            return None
        name, index = position
        if name in (self._run.part_name(PAGES), self._run.staging_name):
            return self._copied[index], None
        for number, table in enumerate(self._tables):
            if name == self._run.part_name(table.name):
                page_of_record = [page for page in self._copied for which, _ in page.records if which == number]
                return page_of_record[index], table
        return None

    async def _fail_refused_bodies(self, pages: Sequence[Page]) -> None:
        """Ask Postgres which bodies it refuses, all at once: an upstream that sends one that is no JSON sends many."""
        with_body = [page for page in pages if page.body is not None]
        connection = await self._connected()
        try:
            with postgres_errors():
                async with connection.transaction():
                    await connection.execute(query("make-body-fault"))
                    rows = await connection.fetch(query("body-faults"), [page.body for page in with_body])
        except PostgresRefused:  # no right to make the function: the COPY names one row after the other
            return
        for row in rows:
            with_body[row["number"] - 1].fail(row["fault"])

    async def _isolate(self, pages: Sequence[Page], error: Exception) -> list[FoundBatch]:
        """Write the two halves of the batch apart, because the error names no row; a page that is alone fails."""
        if len(pages) == 1:
            if is_bare(pages[0]) and not pages[0].is_carried:
                raise PostgresRefused(
                    f"Postgres takes no page at all: {first_line(error)}; was the schema changed during the run?"
                ) from error
            pages[0].base = None if pages[0].is_carried else pages[0].base
            pages[0].fail(reason_of(error))
            return await self.write(pages)
        middle = len(pages) // 2
        return await self.write(pages[:middle]) + await self.write(pages[middle:])

    async def _connected(self) -> PostgresConnection:
        """The open connection, or a new one. Raises PostgresUnavailable, PostgresRefused, EpochLost."""
        if self._connection is None or self._connection.is_closed():
            connection = await connect_postgres(self._url)
            try:
                await refuse_older(connection)
                await refuse_planted(connection, self._parts + self._base_parts)
                found = await Catalogue(connection).epoch(self._run.run_id)
                if found != self._epoch:
                    name = await connection.fetchval(query("name-of-run"), self._run.run_id)
                    raise EpochLost(
                        f"run {name or self._run.run_id} in Postgres belongs to another beginning of the run than "
                        "Redis does; run `shardcrawl run` again to rebuild"
                    )
            except BaseException:
                connection.terminate()
                raise
            self._connection = connection
        return self._connection
