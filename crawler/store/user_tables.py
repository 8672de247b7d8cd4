"""The tables that one run loads into: made, and compared with those of the user's that are there."""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg

from coordinator.errors import PostgresRefused, first_line
from crawler.job.tables import TableSettings
from crawler.store.postgres import PostgresConnection, refuse_planted
from crawler.store.queries import query
from crawler.store.tables import RunTables, column_list, columns_fault, in_schema, quoted


class UserTables:
    """The parts of one run, and the tables that they will be part of. Raises asyncpg's errors, and PostgresRefused."""

    def __init__(self, connection: PostgresConnection, of_run: RunTables) -> None:
        self._connection = connection
        self._of_run = of_run

    async def make(self, tables: Sequence[TableSettings]) -> None:
        """Make the run's parts; the schema and the tables too where they are missing. Checks the tables' columns."""
        run = self._of_run
        if run.schema:
            await self._connection.execute(query("make-schema", schema=quoted(run.schema)))
        await self._connection.execute(query("make-pages-part", part=run.pages, run_id=run.run_id))
        for table in tables:
            await self._make(table)

    async def _make(self, table: TableSettings) -> None:
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
                f"table {table.name} exists with other columns than the job's: {fault}; "
                f"make the job's columns equal, or give the table another name (there are {shown})"
            )
        part = self._of_run.part(table.name)
        await self._connection.execute(query("make-table-part", part=part, table=whole, run_id=self._of_run.run_id))

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
        except (asyncpg.PostgresSyntaxError, asyncpg.DataError) as error:
            raise PostgresRefused(f"table {table.name}: {first_line(error)}; correct its columns' types") from error
        written = await self._columns("pg_temp.example")
        await self._connection.execute(query("drop-example"))
        return written
