"""Records of a run that give way to newer ones, and those of the run before that stay in a run that merges.

A record that is kept from an earlier run has in its `digest` one byte more than a key has: it belongs to no page of the
run. So it is never taken for a record of a page that was fetched again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from crawler.job.tables import TableSettings
from crawler.store.postgres import PostgresConnection
from crawler.store.queries import query
from crawler.store.tables import RunTables, quoted

logger = logging.getLogger(__name__)


async def drop_replaced(connection: PostgresConnection, of_run: RunTables, tables: Sequence[TableSettings]) -> None:
    """Delete the records of a run that give way, in the transaction in which it becomes complete.

    Raises asyncpg's errors.
    """
    was_published = await connection.fetchval(query("was-published"), of_run.run_id)
    for table in tables:
        part, pages = of_run.part(table.name), of_run.pages
        if table.mode == "merge" and was_published:
            await connection.execute(query("drop-loose-records", part=part, pages=pages, decided=query("decided")))
            await connection.execute(query("keep-loose-records", part=part))
        if statement := _drop(of_run, table):
            await connection.execute(query("merge-settings"))
            if dropped := await connection.fetchval(statement):
                logger.info("%s records of table %s gave way to newer ones", f"{dropped:,}", table.name)


async def loosen_records(
    connection: PostgresConnection, of_run: RunTables, table: TableSettings, wanted: str, *arguments: object
) -> None:
    """Let a run that readers have seen keep the records of stale and unchanged pages that are `wanted` again, if the
    table merges: these have records of the run before, which give way to what is fetched. Raises asyncpg's errors.
    """
    if table.mode == "merge" and await connection.fetchval(query("was-published"), of_run.run_id):
        statement = query("loosen-records", part=of_run.part(table.name), pages=of_run.pages, wanted=wanted)
        await connection.execute(statement, *arguments)


async def keep_records(
    connection: PostgresConnection, of_run: RunTables, before: RunTables, tables: Sequence[TableSettings]
) -> None:
    """Copy what stays of the run before into this run, in the caller's transaction. Raises asyncpg's errors.

    To be called once in the life of a run: its records and those that it keeps must be there once.
    """
    await connection.execute(query("merge-settings"))
    for table in tables:
        if table.mode == "merge" and await connection.fetchval(query("is-there"), before.part(table.name)):
            await connection.execute(_keep(of_run, before, table))


def unique_columns(table: TableSettings) -> dict[str, str]:
    """Of a record `r`: its unique columns, and the condition that none of them is NULL."""
    return {"columns": ", ".join(f"r.{quoted(name)}" for name in table.unique), "no_null": _no_null("r", table)}


def _drop(of_run: RunTables, table: TableSettings) -> str | None:
    """The statement that drops what gives way in this table; None where nothing can."""
    part, pages = of_run.part(table.name), of_run.pages
    if table.unique:
        return query("drop-replaced", part=part, pages=pages, **unique_columns(table))
    if table.mode == "merge":
        return query("drop-kept", part=part, pages=pages, decided=query("decided"))
    return None


def _keep(of_run: RunTables, before: RunTables, table: TableSettings) -> str:
    part, pages = of_run.part(table.name), of_run.pages
    if table.unique:
        equal = " AND ".join(f"n.{quoted(name)} = o.{quoted(name)}" for name in table.unique)
        places = {"equal": equal, "no_null": _no_null("o", table)}
        stays = query("stays-by-columns", part=part, pages=pages, decided=query("decided"), **places)
    else:
        stays = query("stays-by-key", pages=pages, decided=query("decided"))
    columns = ", ".join(quoted(name) for name, _ in table.columns)
    kept = {"part": part, "before": before.part(table.name), "columns": columns, "stays": stays}
    return query("keep-records", run_id=of_run.run_id, **kept)


def _no_null(row: str, table: TableSettings) -> str:
    """The condition that none of the unique columns is NULL."""
    return " AND ".join(f"{row}.{quoted(name)} IS NOT NULL" for name in table.unique)
