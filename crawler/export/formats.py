"""Writes the rows of a query into one file, without holding them: as text by COPY, in columns by batches.

A process of its own packs the columns.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from subprocess import PIPE, Popen
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg
import zstandard

from coordinator.errors import ShardcrawlError, UsageError
from crawler.export import columnar_file
from crawler.export.columns import ExportColumn
from crawler.job.sections.publish import Format
from crawler.store.postgres import PostgresConnection
from crawler.store.queries import query

if TYPE_CHECKING:
    from arro3.core import RecordBatch, Schema

SUFFIXES: dict[Format, str] = {
    "parquet": ".parquet",
    "arrow": ".arrow",
    "jsonl.zst": ".jsonl.zst",
    "csv": ".csv",
    "hf": ".parquet",
}
# Rows of a batch, at most.
BATCH_ROWS = 2_000
# Not much more than a socket holds: Postgres makes most of the next batch while this one is written. With fewer bytes
# each row costs more, because a batch has its price too.
BATCH_BYTES = 512 * 1024
FIRST_BATCH_ROWS, MOST_GROWTH = 10, 10  # a row may have megabytes
# One of so many rows says how large those of the next batch may be.
SAMPLED = 16
# A row group is held in memory until it is whole.
ROW_GROUP_BYTES = 32 * 1024 * 1024
ZSTD_LEVEL = 3
_Result = TypeVar("_Result")


async def write_file(
    connection: PostgresConnection,
    statement: str,
    columns: Sequence[ExportColumn],
    form: Format,
    path: Path,
    on_rows: Callable[[int], None],
    row_bytes: int = 0,
) -> None:
    """Write what the statement selects, in the caller's transaction. `on_rows` is told how many rows more are written.

    `row_bytes` is what a row of the table takes on average: the first rows may be much smaller.
    Raises UsageError for a value that the format cannot hold; OSError.
    """
    if form in ("parquet", "hf", "arrow"):
        await _write_columns(connection, statement, columns, form, path, on_rows, row_bytes)
    else:
        await _write_text(connection, statement, form, path)


async def _write_text(connection: PostgresConnection, statement: str, form: Format, path: Path) -> None:
    options: dict[str, Any] = {"header": True}
    if form != "csv":
        # No JSON has these characters, so that no line of it is quoted.
        options = {"quote": "\1", "delimiter": "\2"}
        statement = query("row-as-json", rows=statement)
    with path.open("wb") as file:
        if form == "csv":
            await connection.copy_from_query(statement, output=file, format="csv", **options)
            return
        with zstandard.ZstdCompressor(level=ZSTD_LEVEL).stream_writer(file, closefd=False) as packed:

            async def write(lines: bytes) -> None:
                packed.write(lines)

            await connection.copy_from_query(statement, output=write, format="csv", **options)


async def _write_columns(
    connection: PostgresConnection,
    statement: str,
    columns: Sequence[ExportColumn],
    form: Format,
    path: Path,
    on_rows: Callable[[int], None],
    row_bytes: int,
) -> None:
    from arro3.core import Schema

    schema = Schema([column.field() for column in columns])
    cursor = await connection.cursor(statement)
    first = await cursor.fetch(FIRST_BATCH_ROWS)
    first += await cursor.fetch(rows_of_fetch(first))  # of few rows the size of a row group would be a guess
    loop = asyncio.get_running_loop()
    following: asyncio.Future[list[asyncpg.Record]] = loop.create_future()
    following.set_result(first)
    is_left = False

    async def next_rows() -> list[asyncpg.Record]:
        nonlocal following
        rows = [] if is_left else await following
        if rows:
            on_rows(len(rows))
            following = asyncio.create_task(cursor.fetch(rows_of_fetch(rows)))
        return rows

    batches = _batches(lambda: _in_loop(loop, next_rows()), columns, schema)
    group = max(1, ROW_GROUP_BYTES // max(row_bytes, _row_bytes(first)))
    command = [sys.executable, "-P", "-m", columnar_file.__name__, form, str(group), str(path)]
    child = await asyncio.to_thread(Popen, command, stdin=PIPE, stderr=PIPE)
    writing = asyncio.create_task(asyncio.to_thread(_write_batches, schema, batches, child, path))
    try:
        await asyncio.shield(writing)
    finally:  # a thread cannot be cancelled: it ends when it gets no more rows, and nobody takes those that it has
        is_left = True
        following.cancel()
        child.kill()
        await asyncio.gather(writing, following, return_exceptions=True)


def _batches(
    next_rows: Callable[[], list[asyncpg.Record]], columns: Sequence[ExportColumn], schema: Schema
) -> Iterator[RecordBatch]:
    while rows := next_rows():
        yield record_batch(columns, rows, schema)


def record_batch(columns: Sequence[ExportColumn], rows: Sequence[asyncpg.Record], schema: Schema) -> RecordBatch:
    """The rows, at least one, as a batch of Arrow. Raises UsageError for a value that Arrow cannot hold."""
    from arro3.core import RecordBatch

    values = zip(*rows, strict=True)
    arrays = [column.array(one) for column, one in zip(columns, values, strict=True)]
    return RecordBatch.from_arrays(arrays, schema=schema)


def _write_batches(schema: Schema, batches: Iterator[RecordBatch], child: Popen[bytes], path: Path) -> None:
    """In a thread of its own: hand batch after batch to the process that writes the file, and wait for it."""
    from arro3.core import RecordBatchReader
    from arro3.io import write_ipc_stream

    failure: list[BaseException] = []

    def kept() -> Iterator[RecordBatch]:
        try:
            yield from batches
        except Exception as error:  # the writer would turn it into one of its own
            failure.append(error)
            raise

    unsent: BaseException | None = None
    assert child.stdin is not None
    try:
        write_ipc_stream(RecordBatchReader.from_batches(schema, kept()), child.stdin, compression=None)
    except BaseException as error:  # noqa: BLE001 - it is raised below, or says less than the process does
        unsent = error
        if failure:
            child.kill()
    _, said = child.communicate()  # closes its input too, whether or not it still reads
    if failure:
        raise failure[0] from unsent
    if child.returncode or unsent:
        # Of a full disk its library panics, and has the file's error only as a text.
        if number := re.search(rb"(?:os error|code:) (\d+)", said):
            raise OSError(os.strerror(int(number[1])))
        what = f"the process that writes it has ended with {child.returncode}"
        raise ShardcrawlError(f"export: {path}: {what}; start the same export again") from unsent


def _in_loop(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, _Result]) -> _Result:
    return asyncio.run_coroutine_threadsafe(coroutine, loop).result()


def rows_of_fetch(rows: Sequence[asyncpg.Record]) -> int:
    """How many rows the batch after this one may have: some more, or as many as take about BATCH_BYTES."""
    return max(1, min(BATCH_ROWS, MOST_GROWTH * max(1, len(rows)), BATCH_BYTES // _row_bytes(rows[::SAMPLED])))


def _row_bytes(rows: Sequence[asyncpg.Record]) -> int:
    """About how many bytes one of these rows takes in Arrow."""
    values = [len(value) if isinstance(value, str | bytes | list) else 8 for row in rows for value in row]
    return max(1, sum(values) // max(1, len(rows)))


def need_columns_extra(form: Format) -> None:
    """Raise UsageError when what writes this format is not installed."""
    if form in ("parquet", "hf", "arrow"):
        try:
            import arro3.core
            import arro3.io  # noqa: F401 - only whether it is there
        except ImportError as error:
            raise UsageError(f"export: {form} needs an extra: pip install 'shardcrawl[parquet]'") from error
