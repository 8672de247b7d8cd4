"""The COPY pipeline of all rivals, so that none of them is slower because of its way into Postgres."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from time import time
from typing import TypeAlias

import asyncpg
import orjson

from ops.bench.report import Report

Row: TypeAlias = tuple[str | int | datetime, ...]

BATCH_ROWS = 1000


class Sink:
    """Commits 1,000 rows with one COPY on one connection, while the next rows are fetched."""

    table = "pages"
    columns: tuple[str, ...] = ("url", "status", "fetched_at", "body")
    create = (
        "CREATE TABLE IF NOT EXISTS pages (url text PRIMARY KEY, status smallint, fetched_at timestamptz, body jsonb)"
    )

    def __init__(self, database: str) -> None:
        self._database = database
        self._rows: list[Row] = []
        self._copying = asyncio.Lock()
        self._stored = 0
        self._first = self._last = 0.0

    async def open(self) -> None:
        """Connect and make the table."""
        self._connection = await asyncpg.connect(self._database)
        await self._connection.execute(self.create)

    async def put(self, url: str, status: int, body: str) -> None:
        """Add a page.

        The body is parsed, as a careful script does: Postgres would refuse all thousand rows for one that is no JSON.
        """
        orjson.loads(body)
        await self.add((url, status, datetime.now(UTC), body))

    async def add(self, row: Row) -> None:
        """Add a row; the call that adds the thousandth one commits all of them."""
        self._first = self._first or time()
        self._rows.append(row)
        if len(self._rows) >= BATCH_ROWS:
            await self._flush()

    async def close(self) -> None:
        """Commit the rest, and print the report."""
        await self._flush()
        await self._connection.close()
        print(Report(self._stored, self._first, self._last).line, flush=True)

    async def _flush(self) -> None:
        rows, self._rows = self._rows, []
        async with self._copying:
            await self._connection.copy_records_to_table(self.table, records=rows, columns=self.columns)
            self._stored += len(rows)
            self._last = time()
