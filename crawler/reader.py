"""`crawler.read`: the rows of a corpus for pandas, polars, DuckDB and whatever else takes Arrow."""

from __future__ import annotations

import os
import weakref
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import asyncpg

from coordinator.errors import UsageError, first_line
from coordinator.tasks import Background
from crawler.export.columns import ExportColumn
from crawler.export.exporter import export_columns, run_named, selection
from crawler.export.formats import FIRST_BATCH_ROWS, need_columns_extra, record_batch, rows_of_fetch
from crawler.local.services import Place, services
from crawler.store.catalogue import Catalogue
from crawler.store.postgres import connect_postgres, postgres_errors
from crawler.store.queries import query
from crawler.store.tables import PAGES, RunTables

if TYPE_CHECKING:
    from arro3.core import RecordBatch, RecordBatchReader

_WRONG_CONDITION = (
    asyncpg.PostgresSyntaxError,
    asyncpg.UndefinedColumnError,
    asyncpg.UndefinedFunctionError,
    asyncpg.DatatypeMismatchError,
    asyncpg.DataError,
)
_Rows: TypeAlias = "tuple[list[ExportColumn], list[asyncpg.Record]]"


def read(
    name: str,
    table: str = "",
    *,
    columns: Sequence[str] | None = None,
    where: str | None = None,
    database: str | None = None,
    data: str | Path = ".shardcrawl",
) -> RecordBatchReader:
    """The rows of a run, or of a corpus' current run, as an Arrow reader: pandas, polars and DuckDB take it.

    `table` is the job's first one by default, or `pages`. `columns` are all by default; `_key` is each row's key.
    `where` is a condition in SQL on the table's columns. `database` is DATABASE_URL by default, or the Postgres in the
    folder `data`. Rows are read as they are taken, a few thousand at a time. Raises UsageError, PostgresUnavailable,
    PostgresRefused; the reader raises them too.
    """
    need_columns_extra("arrow")
    from arro3.core import RecordBatchReader, Schema

    if columns is not None and (isinstance(columns, str) or not columns):
        raise UsageError(f"read: columns is {columns!r}; give a list of names")
    place = Place("redis://unused", database or os.environ.get("DATABASE_URL"), Path(data))
    source = _rows(place, name, table, columns, where)
    background = Background(source.aclose)
    try:
        found = background.result(_next(source))
        assert found is not None
        chosen, _ = found
    except BaseException:
        background.close()
        raise
    schema = Schema([column.field() for column in chosen])

    def batches() -> Iterator[RecordBatch]:
        try:
            while (found := background.result(_next(source))) is not None:
                yield record_batch(*found, schema)
        finally:
            background.close()

    rows = batches()
    # One that is dropped before its first row never gets to its `finally`.
    weakref.finalize(rows, background.close)
    return RecordBatchReader.from_batches(schema, rows)


async def _next(source: AsyncGenerator[_Rows, None]) -> _Rows | None:
    return await anext(source, None)


async def _rows(
    place: Place, name: str, table: str, names: Sequence[str] | None, where: str | None
) -> AsyncGenerator[_Rows, None]:
    """First the columns without a row, then batch after batch."""
    async with services(place, share=True) as addresses:
        connection = await connect_postgres(addresses.database)
        try:
            run = await run_named(Catalogue(connection), name)
            tables = run.table_names
            chosen = table or (tables[0] if tables else PAGES)
            if chosen not in (PAGES, *tables):
                raise UsageError(f"read: run {run.name} has no table {chosen}; it has {', '.join([PAGES, *tables])}")
            with postgres_errors():
                found = {column.name: column for column in await export_columns(connection, run, chosen)}
                if unknown := [one for one in names or () if one not in found]:
                    raise UsageError(f"read: table {chosen} has no column {unknown[0]}; it has {', '.join(found)}")
                columns = [found[one] for one in names] if names is not None else list(found.values())
                yield columns, []
                part = RunTables.of(run).part(chosen)
                async with connection.transaction(readonly=True):
                    await connection.execute(query("export-settings"))
                    try:
                        selected = selection(columns, "arrow")
                        statement = query("rows-where", columns=selected, part=part, condition=where or "true")
                        cursor = await connection.cursor(statement)
                        size = FIRST_BATCH_ROWS
                        while rows := await cursor.fetch(size):
                            size = rows_of_fetch(rows)
                            yield columns, rows
                    except _WRONG_CONDITION as error:
                        raise UsageError(f"read: where: {first_line(error)}") from error
        finally:
            connection.terminate()
