"""Writes batches of pages and their records into one run's tables. A page is stored once; a bad row fails its key only.

A batch is one transaction of COPYs. When it meets a page that is stored already, the batch is merged through a staging
table. When Postgres refuses a row, the row is found, its page is failed, and the batch is sent again. When the error
names no row, the batch is halved until the row is alone.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

import asyncpg

from coordinator.errors import EpochLost, PostgresRefused, first_line
from coordinator.failpoints import Failpoint, no_failpoint
from coordinator.model import Epoch
from crawler.job.models import TableSettings
from crawler.job.names import OWN_COLUMNS
from crawler.model import Page
from crawler.store import copyformat
from crawler.store.catalogue import Catalogue
from crawler.store.postgres import PostgresConnection, connect_postgres, postgres_errors
from crawler.store.queries import query
from crawler.store.row_errors import ROW_ERRORS, body_fault, copy_position, is_bare, reason_of
from crawler.store.tables import part_name, quoted, staging_name, table_names

logger = logging.getLogger(__name__)

# About how much of a COPY stream goes to the socket at a time.
SEND_BYTES = 512 * 1024


class Writer:
    """One worker's connection to Postgres for one run. A lost connection is opened again at the next write."""

    def __init__(
        self, url: str, run_id: int, epoch: Epoch, tables: Sequence[TableSettings], failpoint: Failpoint = no_failpoint
    ) -> None:
        self._url = url
        self._run_id = run_id
        self._epoch = epoch
        self._tables = tables
        self._failpoint = failpoint
        self._pages_part = part_name("pages", run_id)
        self._staging = staging_name(run_id)
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

    async def write(self, pages: Sequence[Page]) -> None:
        """Store the pages with their records. On return each is committed, if need be as a `failed` page.

        A page that the run has already is left as it is, and its records are not added again.
        Raises PostgresUnavailable: then it is unknown what was stored, and the same call may be repeated. Raises
        PostgresRefused when the tables were changed during the run, and EpochLost when the run was given another epoch.
        """
        # Sorted, so that two writers lock the same rows in the same order.
        unique = list({page.item.digest: page for page in sorted(pages, key=lambda page: page.item.digest)}.values())
        merging = False
        while True:
            try:
                await self._commit(unique, merging=merging)
                return
            except asyncpg.UniqueViolationError as error:
                if merging:  # then it is an index of the user's
                    await self._isolate(unique, error)
                    return
                merging = True
            except ROW_ERRORS as error:
                with postgres_errors():
                    await self._check_columns(await self._connected())
                poisoned = self._poisoned(error)
                if not poisoned or any(is_bare(page) for page, _ in poisoned):
                    await self._isolate(unique, error)
                    return
                for page, reason in poisoned:
                    page.fail(reason)

    # -- a batch is one transaction

    async def _commit(self, pages: Sequence[Page], *, merging: bool) -> None:
        """Write the pages and their records in one transaction. Raises what Postgres says of a row as it is."""
        connection = await self._connected()
        try:
            with postgres_errors():
                async with connection.transaction():
                    await connection.execute(query("batch-timeouts"))
                    if merging:
                        pages = await self._merge(connection, pages)
                    else:
                        await self._copy_pages(connection, self._pages_part, pages)
                    self._copied = pages
                    for index, table in enumerate(self._tables):
                        await self._copy_records(connection, table, self._records(pages, index))
                    await self._check_columns(connection)
                    self._failpoint("copied")
        except ROW_ERRORS:
            raise
        except BaseException:
            await self.close()
            raise

    async def _merge(self, connection: PostgresConnection, pages: Sequence[Page]) -> Sequence[Page]:
        """Insert the pages that are not stored yet, through a staging table; returns those."""
        staging, part = quoted(self._staging), quoted(self._pages_part)
        await connection.execute(query("hide-notices"))
        await connection.execute(query("make-staging", staging=staging, part=part))
        await self._copy_pages(connection, self._staging, pages)
        inserted = {row["digest"] for row in await connection.fetch(query("merge-staging", staging=staging, part=part))}
        logger.info("%s of %s pages of a batch were stored before; merged", len(pages) - len(inserted), len(pages))
        return [page for page in pages if page.item.digest in inserted]

    async def _copy_pages(self, connection: PostgresConnection, table: str, pages: Sequence[Page]) -> None:
        self._copied = pages
        stream = _joined(copyformat.encode_pages(pages, self._run_id))
        await connection.copy_to_table(table, source=stream, columns=copyformat.COLUMNS, format="binary")

    async def _copy_records(
        self, connection: PostgresConnection, table: TableSettings, records: Sequence[tuple[Any, ...]]
    ) -> None:
        if records:
            columns = [*OWN_COLUMNS, *(name for name, _ in table.columns)]
            await connection.copy_records_to_table(
                part_name(table.name, self._run_id), records=records, columns=columns
            )

    def _records(self, pages: Sequence[Page], table: int) -> list[tuple[Any, ...]]:
        return [
            (self._run_id, page.item.digest, *values)
            for page in pages
            for index, values in page.records
            if index == table
        ]

    async def _check_columns(self, connection: PostgresConnection) -> None:
        """Raise PostgresRefused unless the run's parts still have the columns of the tables that they will be part of.

        A binary COPY does not compare types: if somebody changed a column's type, wrong bytes can fit. The COPY's locks
        keep the columns as they are until the commit.
        """
        tables = ["pages", *table_names(self._tables)]
        parts = [part_name(table, self._run_id) for table in tables]
        changed = await connection.fetch(query("changed-parts"), tables, parts)
        if changed:
            shown = ", ".join(row["part"] for row in changed)
            raise PostgresRefused(f"Postgres: columns of {shown} were changed during the run; change them back")

    # -- a row that Postgres refuses is found, or isolated

    def _poisoned(self, error: Exception) -> list[tuple[Page, str]]:
        """Pages to fail, each with its reason: the one at the error's position, and all whose body is not JSON."""
        position = copy_position(error)
        if position is None:
            return []
        name, index = position
        if name in (self._pages_part, self._staging):
            named = self._copied[index]
            others = ((page, body_fault(page)) for page in self._copied if page is not named)
            return [(named, reason_of(error)), *((page, reason) for page, reason in others if reason)]
        for number, table in enumerate(self._tables):
            if name == part_name(table.name, self._run_id):
                page_of_record = [page for page in self._copied for which, _ in page.records if which == number]
                return [(page_of_record[index], f"{table.name}: {reason_of(error)}")]
        return []

    async def _isolate(self, pages: Sequence[Page], error: Exception) -> None:
        """Write the two halves of the batch apart, because the error names no row; a page that is alone fails."""
        if len(pages) == 1:
            if is_bare(pages[0]):
                raise PostgresRefused(
                    f"Postgres takes no page at all: {first_line(error)}; was the schema changed during the run?"
                ) from error
            pages[0].fail(reason_of(error))
            await self.write(pages)
            return
        middle = len(pages) // 2
        await self.write(pages[:middle])
        await self.write(pages[middle:])

    async def _connected(self) -> PostgresConnection:
        """The open connection, or a new one. Raises PostgresUnavailable, PostgresRefused, EpochLost."""
        if self._connection is None or self._connection.is_closed():
            connection = await connect_postgres(self._url)
            try:
                found = await Catalogue(connection).epoch(self._run_id)
                if found != self._epoch:
                    raise EpochLost(
                        f"run {self._run_id} in Postgres belongs to another beginning of the run than Redis does; "
                        "run `shardcrawl run` again to rebuild"
                    )
            except BaseException:
                connection.terminate()
                raise
            self._connection = connection
        return self._connection


async def _joined(pieces: Sequence[bytes]) -> AsyncIterator[bytes]:
    """The pieces joined into parts of about SEND_BYTES."""
    pending: list[bytes] = []
    size = 0
    for piece in pieces:
        pending.append(piece)
        size += len(piece)
        if size >= SEND_BYTES:
            yield b"".join(pending)
            pending, size = [], 0
    yield b"".join(pending)
