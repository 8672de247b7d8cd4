"""The rows of `[source] query`: read from Postgres through a cursor there, in a transaction that only reads."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from hashlib import blake2b
from typing import Any, TypeVar

import asyncpg
from asyncpg.cursor import Cursor as PostgresCursor

from coordinator.errors import PostgresRefused, PostgresUnavailable, SourceError, first_line
from crawler.store.postgres import NOT_THERE_ERRORS, PostgresConnection, connect_reader, postgres_errors
from crawler.store.queries import query

logger = logging.getLogger(__name__)

# What has been read is skipped in the server; a restart of it takes seconds.
RECONNECT_ATTEMPTS = 30
RECONNECT_SECONDS = 1.0
CLOSE_SECONDS = 2.0

Result = TypeVar("Result")


class SourceQuery:
    """One query, read in an event loop of its own, because the readers of sources are threads.

    When the connection breaks, it connects again and skips what was read. See QueryReader.
    """

    def __init__(self, database: str, statement: str) -> None:
        """Read this statement from the Postgres at this address."""
        self.fingerprint = blake2b(statement.encode(), digest_size=16).hexdigest()
        self._database = database
        self._statement = statement.strip().rstrip(";")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="source query", daemon=True)
        self._connection: PostgresConnection | None = None
        self._cursor: PostgresCursor[asyncpg.Record] | None = None
        self._columns: Sequence[str] = ()
        self._count = 0
        self._closed = False
        self._lock = threading.Lock()

    def columns(self) -> Sequence[str]:
        """See QueryReader.columns."""
        return self._in_loop(self._describe()) or ()

    def open(self, columns: Sequence[str], skip: int) -> int:
        """See QueryReader.open."""
        self._columns = columns
        self._count = self._in_loop(self._open(skip)) or 0
        return self._count

    def fetch(self, limit: int) -> Sequence[Sequence[str | None]]:
        """See QueryReader.fetch."""
        rows = self._in_loop(self._fetch(limit)) or ()
        self._count += len(rows)
        return rows

    def close(self) -> None:
        """See QueryReader.close."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._thread.ident is not None:
                asyncio.run_coroutine_threadsafe(self._stop(), self._loop)
        if self._thread.ident is not None:
            self._thread.join()
        self._loop.close()

    def _in_loop(self, work: Coroutine[Any, Any, Result]) -> Result | None:
        """What the work returns; None when this is closed. Raises SourceError."""
        with self._lock:
            if self._closed:
                work.close()
                return None
            if self._thread.ident is None:
                self._thread.start()
            future = asyncio.run_coroutine_threadsafe(self._translated(work), self._loop)
        try:
            return future.result()
        except CancelledError:
            return None

    async def _translated(self, work: Coroutine[Any, Any, Result]) -> Result:
        try:
            return await work
        except (PostgresUnavailable, PostgresRefused) as error:
            # Tables of the user's own, of which the advice for those of a run says nothing.
            cause = first_line(error.__cause__) if isinstance(error.__cause__, NOT_THERE_ERRORS) else error
            raise SourceError(f"[source] query: {cause}") from error
        except asyncpg.PostgresError as error:
            hint = "; leave out the semicolon" if 'near ";"' in str(error) else ""
            raise SourceError(f"[source] query: {first_line(error)}{hint}") from error

    async def _connect(self) -> PostgresConnection:
        """A connection in a transaction that reads, and may be idle while nobody asks for more keys."""
        self._terminate()
        self._connection, path = await connect_reader(self._database)
        await self._connection.transaction(readonly=True).start()
        await self._connection.execute(query("read-with-path"), path)
        await self._connection.execute(query("read-slowly"))
        return self._connection

    async def _describe(self) -> Sequence[str]:
        with postgres_errors():
            statement = await (await self._connect()).prepare(self._statement)
            if statement.get_parameters():
                raise SourceError("[source] query has a parameter, like $1; write its value there")
            return [attribute.name for attribute in statement.get_attributes()]

    async def _open(self, skip: int) -> int:
        """Declare the cursor and skip rows; returns how many there were. Postgres writes the texts of all types."""
        connection = self._connection or await self._connect()
        with postgres_errors():
            names = ", ".join('"{}"::text'.format(name.replace('"', '""')) for name in self._columns)
            self._cursor = await connection.cursor(f"SELECT {names} FROM ({self._statement}\n) AS source_rows")  # noqa: S608 (the user's own)
            return await self._cursor.forward(skip) if skip else 0

    async def _fetch(self, limit: int) -> Sequence[Sequence[str | None]]:
        for left in reversed(range(RECONNECT_ATTEMPTS)):
            try:
                if self._cursor is None and await self._open(self._count) < self._count:
                    raise SourceError("[source] query returns fewer rows than this run has read before")
                assert self._cursor is not None
                with postgres_errors():
                    return [tuple(row) for row in await self._cursor.fetch(limit)]
            except PostgresUnavailable as error:
                self._terminate()
                if not left:
                    raise
                logger.warning("[source] query waits: %s", error)
                await asyncio.sleep(RECONNECT_SECONDS)
        raise AssertionError("the last attempt returns or raises")

    def _terminate(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
        self._connection = self._cursor = None

    async def _stop(self) -> None:
        """End what goes on, in the server too, which would sort on for nobody."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._connection is not None:
            with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
                await self._connection.close(timeout=CLOSE_SECONDS)
        self._terminate()
        await asyncio.sleep(0)  # here the socket is closed
        self._loop.stop()
