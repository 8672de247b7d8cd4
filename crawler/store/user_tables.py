"""The tables that one run loads into: made, and compared with those of the user's that are there."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import asyncpg

from coordinator.errors import PostgresRefused, PostgresUnavailable, first_line
from crawler.job.tables import TableSettings, column_type
from crawler.store.corpora import Corpora
from crawler.store.postgres import PostgresConnection, refuse_planted
from crawler.store.queries import query
from crawler.store.tables import AddedColumn, RunTables, added_columns, column_list, columns_fault, in_schema, quoted

logger = logging.getLogger(__name__)


class UserTables:
    """The parts of one run, and the tables that they will be part of. Raises asyncpg's errors, and PostgresRefused."""

    def __init__(self, connection: PostgresConnection, of_run: RunTables, compression: str = "auto") -> None:
        """`compression` is that of `[store]`."""
        self._connection = connection
        self._of_run = of_run
        self._compression = compression

    async def make(self, tables: Sequence[TableSettings], *, widens: bool = True) -> Sequence[AddedColumn]:
        """Make the run's parts; the schema and the tables too where they are missing. Checks the tables' columns.

        A table that exists gets the job's new columns, if this `widens` it; returns them in any case.
        """
        run = self._of_run
        if run.schema:
            await self._connection.execute(query("make-schema", schema=quoted(run.schema)))
        await self._connection.execute(query("make-pages-part", part=run.pages, run_id=run.run_id))
        await self._compress(run.pages)
        await self._connection.execute(query("index-ended", part=run.pages))
        return [column for table in tables for column in await self._make(table, widens=widens)]

    async def index(self, tables: Sequence[TableSettings]) -> None:
        """Index the records of the run's parts by their pages, where that is not done."""
        async with self._connection.transaction():  # two refreshes may begin at once
            await self._connection.execute(query("lock-run"), self._of_run.run_id)
            for part in (self._of_run.part(table.name) for table in tables):
                if not await self._connection.fetchval(query("has-digest-index"), part):
                    await self._connection.execute(query("index-digests", part=part))

    async def _make(self, table: TableSettings, *, widens: bool) -> Sequence[AddedColumn]:
        whole = self._of_run.whole(table.name)
        wanted = await self._columns_as_postgres_writes_them(table)
        await self._connection.execute(query("make-table", table=whole, columns=column_list(table.columns)))
        view = in_schema(self._of_run.schema, f"{table.name}_current")
        await refuse_planted(self._connection, [whole, view])
        found = await self._columns(whole)
        fault = columns_fault(found, wanted)
        if fault is None and not await self._connection.fetchval(query("is-partitioned"), whole):
            fault = "it is unpartitioned, so it is not shardcrawl's"
        if fault:
            shown = ", ".join(f"{name} {kind}" for name, kind in found)
            raise PostgresRefused(
                f"table {table.name} exists with other columns than the job's: {fault}; make the job's columns equal "
                f"but for new ones, or give the table another name (there are {shown})"
            )
        added = added_columns(table.name, found, wanted)
        if added and widens:
            await self._widen(table.name, added)
        part = self._of_run.part(table.name)
        await self._connection.execute(query("make-table-part", part=part, table=whole, run_id=self._of_run.run_id))
        await self._compress(part)
        return added

    async def _compress(self, part: str) -> None:
        """Say how the part's wide values are compressed. Raises PostgresRefused where the server has no lz4."""
        columns = await self._connection.fetchval(query("column-compression"), part, self._compression)
        if columns is None:
            return
        try:
            await self._connection.execute(query("compress-part", part=part, columns=columns))
        except asyncpg.FeatureNotSupportedError as error:
            raise PostgresRefused(
                f'[store] compression is "{self._compression}", and this Postgres was built without it; write "auto"'
            ) from error

    async def _widen(self, table: str, added: Sequence[AddedColumn]) -> None:
        """Add the columns to the table, to parts of it that are no partitions yet, and to the view.

        Raises PostgresUnavailable while a query on the table goes on.
        """
        run = self._of_run
        columns = ", ".join(
            f"ADD COLUMN IF NOT EXISTS {quoted(column.name)} {column_type(column.kind)}" for column in added
        )
        try:
            await self._connection.execute(query("migration-timeout"))
            await self._connection.execute(query("lock-view", view=in_schema(run.schema, f"{table}_current")))
            await self._connection.execute(query("widen-table", table=run.whole(table), columns=columns))
            # From here on no part can become a partition.
            for row in await self._connection.fetch(query("loose-parts"), replace(run, run_id=0).part(table)):
                part = replace(run, run_id=row["run_id"]).part(table)
                await self._connection.execute(query("widen-table", table=part, columns=columns))
            await Corpora(self._connection).make_view(run.schema, table)
        except asyncpg.LockNotAvailableError as error:
            raise PostgresUnavailable(
                f"Postgres: table {table} is to get column {added[0].name}, and a query that somebody runs on it holds "
                "it up; run this command again when the query has ended"
            ) from error
        for column in added:
            logger.info("Postgres: %s", column)

    async def _columns(self, table: str) -> list[tuple[str, str]]:
        """The columns of a table as (name, type)."""
        return [(row["name"], row["type"]) for row in await self._connection.fetch(query("columns-of"), table)]

    async def _columns_as_postgres_writes_them(self, table: TableSettings) -> list[tuple[str, str]]:
        """The names and types of the table's columns, read from a temporary table that is made of them.

        Postgres writes a type in its own way: `varchar(5)` becomes `character varying(5)`.
        """
        columns = column_list(table.columns)
        try:
            await self._connection.execute(query("make-example", columns=columns))
        except (asyncpg.PostgresSyntaxError, asyncpg.DataError, asyncpg.ProgramLimitExceededError) as error:
            raise PostgresRefused(f"table {table.name}: {first_line(error)}; correct its columns") from error
        written = await self._columns("pg_temp.example")
        await self._connection.execute(query("drop-example"))
        return written
