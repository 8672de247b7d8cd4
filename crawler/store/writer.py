"""Batches of pages and their records into one run's tables: each page once, a poison row alone."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any

import asyncpg
import orjson

from coordinator.errors import EpochLost, PostgresRefused, first_line
from coordinator.failpoints import Failpoint, no_failpoint
from coordinator.model import Epoch
from crawler.job.models import TableSettings
from crawler.job.names import OWN_COLUMNS
from crawler.model import MAX_REASON_CHARACTERS, Page
from crawler.store import copyformat
from crawler.store import tables as names
from crawler.store.catalogue import Catalogue
from crawler.store.postgres import Connection, connect, translated
from crawler.store.queries import query

logger = logging.getLogger(__name__)

SEND_BYTES = 512 * 1024
# At the beginning of a line, where an error's context never quotes a body.
_LINE = re.compile(r"^COPY (\w+), line (\d+)", re.MULTILINE)
# What asyncpg and Postgres raise for a value that cannot be stored, as opposed to a server that cannot store now.
ROW_ERRORS = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
    ValueError,
    TypeError,
    OverflowError,
    IndexError,
)


class Writer:
    """One worker's connection to Postgres for one run; reconnects by itself at the next write."""

    def __init__(
        self, url: str, run_id: int, epoch: Epoch, tables: Sequence[TableSettings], failpoint: Failpoint = no_failpoint
    ) -> None:
        self._url = url
        self._run_id = run_id
        self._epoch = epoch
        self._tables = tables
        self._failpoint = failpoint
        self._pages = names.part("pages", run_id)
        self._staging = f"staging_r{run_id}"
        self._connection: Connection | None = None
        self._copying: Sequence[Page] = ()

    async def open(self) -> None:
        """Connect and see that Postgres means the same run. Raises PostgresUnavailable, PostgresRefused, EpochLost."""
        await self._connected()

    async def close(self) -> None:
        """Close the connection, if there is one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    async def write(self, pages: Sequence[Page]) -> None:
        """Store the pages with their records; on return each is committed, or turned into a `failed` page that is.

        A page that the run has already is left as it is, and its records are not added again.
        Raises PostgresUnavailable: then it is unknown what was stored, and the same call may be repeated;
        PostgresRefused when the tables are no longer what they were.
        """
        unique = list({page.item.digest: page for page in sorted(pages, key=lambda page: page.item.digest)}.values())
        merging = False
        while True:
            try:
                await self._transact(unique, merging=merging)
                return
            except asyncpg.UniqueViolationError as error:
                if merging:
                    await self._isolate(unique, error)
                    return
                merging = True
            except ROW_ERRORS as error:
                with translated():
                    await self._check_columns(await self._connected())
                culprits = self._culprits(error)
                if not culprits or any(_is_bare(page) for page, _ in culprits):
                    await self._isolate(unique, error)
                    return
                for page, reason in culprits:
                    page.fail(reason)

    async def _transact(self, pages: Sequence[Page], *, merging: bool) -> None:
        connection = await self._connected()
        try:
            with translated():
                async with connection.transaction():
                    await connection.execute(query("batch-timeouts"))
                    if merging:
                        pages = await self._merge(connection, pages)
                    else:
                        await self._copy_pages(connection, self._pages, pages)
                    self._copying = pages
                    for index, table in enumerate(self._tables):
                        await self._copy_records(connection, table, self._records(pages, index))
                    await self._check_columns(connection)
                    self._failpoint("copied")
        except ROW_ERRORS:
            raise
        except BaseException:
            await self.close()
            raise

    async def _check_columns(self, connection: Connection) -> None:
        """See that the run's tables have the columns of those they will be parts of. Raises PostgresRefused.

        A binary COPY does not ask for types: into a column that has another one since, wrong bytes can fit. After the
        COPY its locks keep the columns as they are until the commit.
        """
        wholes = ["pages", *names.names(self._tables)]
        parts = [names.part(whole, self._run_id) for whole in wholes]
        changed = await connection.fetch(query("changed-parts"), wholes, parts)
        if changed:
            tables = ", ".join(row["part"] for row in changed)
            raise PostgresRefused(f"Postgres: columns of {tables} were changed during the run; change them back")

    async def _merge(self, connection: Connection, pages: Sequence[Page]) -> Sequence[Page]:
        """Insert the pages that are not there yet, through a staging table; returns those."""
        staging, part = names.quoted(self._staging), names.quoted(self._pages)
        await connection.execute("SET LOCAL client_min_messages = warning")
        await connection.execute(query("make-staging", staging=staging, part=part))
        await self._copy_pages(connection, self._staging, pages)
        inserted = {row["digest"] for row in await connection.fetch(query("merge-staging", staging=staging, part=part))}
        logger.info("%s of %s pages of a batch were stored before; merged", len(pages) - len(inserted), len(pages))
        return [page for page in pages if page.item.digest in inserted]

    async def _copy_pages(self, connection: Connection, table: str, pages: Sequence[Page]) -> None:
        self._copying = pages
        stream = _stream(copyformat.rows(pages, self._run_id))
        await connection.copy_to_table(table, source=stream, columns=copyformat.COLUMNS, format="binary")

    async def _copy_records(
        self, connection: Connection, table: TableSettings, records: Sequence[tuple[Any, ...]]
    ) -> None:
        if records:
            columns = [*OWN_COLUMNS, *(name for name, _ in table.columns)]
            await connection.copy_records_to_table(
                names.part(table.name, self._run_id), records=records, columns=columns
            )

    def _records(self, pages: Sequence[Page], table: int) -> list[tuple[Any, ...]]:
        return [
            (self._run_id, page.item.digest, *values)
            for page in pages
            for index, values in page.records
            if index == table
        ]

    def _culprits(self, error: Exception) -> list[tuple[Page, str]]:
        """The pages that an error speaks of: by Postgres' line number, and every body that is no JSON."""
        pages = self._copying
        match = _LINE.search(getattr(error, "context", None) or "")
        if not match:
            return []
        relation, line = match[1], int(match[2])
        reason = describe(error)
        if relation in (self._pages, self._staging):
            named = pages[line - 1]
            return [(named, reason)] + [(page, why) for page in pages if page is not named and (why := _no_json(page))]
        for index, table in enumerate(self._tables):
            if relation == names.part(table.name, self._run_id):
                owners = [page for page in pages for which, _ in page.records if which == index]
                return [(owners[line - 1], f"{table.name}: {reason}")]
        return []

    async def _isolate(self, pages: Sequence[Page], error: Exception) -> None:
        """Nobody can say which row is at fault: halve the batch until it is alone."""
        if len(pages) == 1:
            if _is_bare(pages[0]):
                raise PostgresRefused(
                    f"Postgres takes no page at all: {first_line(error)}; was the schema changed during the run?"
                ) from error
            pages[0].fail(describe(error))
            await self.write(pages)
            return
        middle = len(pages) // 2
        await self.write(pages[:middle])
        await self.write(pages[middle:])

    async def _connected(self) -> Connection:
        if self._connection is None or self._connection.is_closed():
            connection = await connect(self._url)
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


def describe(error: BaseException) -> str:
    """An error about a row in its own words, bounded."""
    words = [first_line(error)]
    if isinstance(error, asyncpg.PostgresError):
        words = [error.args[0] if error.args else first_line(error)]
        if detail := getattr(error, "detail", None):
            words.append(str(detail))
    return ": ".join(words)[:MAX_REASON_CHARACTERS]


def _is_bare(page: Page) -> bool:
    """Whether failing the page would take nothing from it any more."""
    return page.body is None and not page.records


def _no_json(page: Page) -> str | None:
    if page.body is None:
        return None
    try:
        orjson.loads(page.body)
    except orjson.JSONDecodeError as error:
        return f"body is not JSON: {first_line(error)}"
    return None


async def _stream(pieces: Sequence[bytes]) -> AsyncIterator[bytes]:
    """The pieces joined into sends of about half a megabyte."""
    pending: list[bytes] = []
    size = 0
    for piece in pieces:
        pending.append(piece)
        size += len(piece)
        if size >= SEND_BYTES:
            yield b"".join(pending)
            pending, size = [], 0
    yield b"".join(pending)
