"""The runs in Postgres: schema, partitions, final counts, publishing."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg
import orjson

from coordinator.errors import EpochLost, PostgresRefused, first_line
from coordinator.model import Epoch, Outcome
from crawler.job.models import TableSettings
from crawler.store.postgres import PostgresConnection, connect_postgres, postgres_errors
from crawler.store.queries import query, schema
from crawler.store.tables import column_list, part_name, quoted, table_names

DIGESTS_PER_FETCH = 50_000
# Between attaching a run's parts and publishing it. Postgres plans a statement before it takes its snapshot: a
# statement that was planned before the attaching, and takes its snapshot after the publishing, would find no rows.
PUBLISH_DELAY_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A row of `runs`: `document` is the job, `counts` are the final keys by outcome, empty until it is complete."""

    run_id: int
    name: str
    document: Mapping[str, Any]
    epoch: Epoch
    complete: bool
    counts: Mapping[Outcome, int]
    created_at: datetime
    finished_at: datetime | None

    @classmethod
    def from_row(cls, row: asyncpg.Record) -> StoredRun:
        """The run in a row of `find-run` or `list-runs`."""
        return cls(
            run_id=row["run_id"],
            name=row["name"],
            document=orjson.loads(row["spec"]),
            epoch=Epoch(row["epoch"]),
            complete=row["state"] == "complete",
            counts=_decode_counts(row["counts"]) if row["counts"] else {},
            created_at=row["created_at"],
            finished_at=row["finished_at"],
        )


class Catalogue:
    """The runs in one Postgres. Every method raises PostgresUnavailable or PostgresRefused."""

    def __init__(self, connection: PostgresConnection) -> None:
        self._connection = connection

    async def prepare(self) -> None:
        """Make the schema where it is missing. Raises PostgresRefused when other tables have its names."""
        with postgres_errors():
            # Making it again would wait for every reader of its views.
            if await self._connection.fetchval(query("schema-is-there")):
                return
            async with self._connection.transaction():
                await self._connection.execute(query("lock-schema"))
                await self._connection.execute(query("hide-notices"))
                try:
                    await self._connection.execute(schema())
                except (asyncpg.WrongObjectTypeError, asyncpg.UndefinedColumnError) as error:
                    raise _other_tables(first_line(error)) from error
                if not await self._connection.fetchval(query("is-partitioned"), "pages"):
                    raise _other_tables("pages is not partitioned")

    async def find(self, name: str) -> StoredRun | None:
        """The run of that name, or None."""
        with postgres_errors():
            row = await self._connection.fetchrow(query("find-run"), name)
        return None if row is None else StoredRun.from_row(row)

    async def all(self) -> list[StoredRun]:
        """Every run, oldest first."""
        with postgres_errors():
            return [StoredRun.from_row(row) for row in await self._connection.fetch(query("list-runs"))]

    async def make(self, name: str, document: Mapping[str, Any], epoch: Epoch, tables: Sequence[TableSettings]) -> int:
        """Add a run, and the tables into which it loads; returns its run_id.

        Raises PostgresRefused when a table of records exists with other columns.
        """
        with postgres_errors():
            async with self._connection.transaction():
                await self._connection.execute(query("lock-schema"))
                await self._connection.execute(query("hide-notices"))
                run_id: int = await self._connection.fetchval(
                    query("make-run"), name, orjson.dumps(document).decode(), epoch
                )
                part = quoted(part_name("pages", run_id))
                try:
                    await self._connection.execute(query("make-pages-part", part=part, run_id=run_id))
                    for table in tables:
                        await self._make_table(table, run_id)
                except asyncpg.DuplicateTableError as error:
                    raise PostgresRefused(
                        f"{first_line(error)}: a deleted run has left it; drop it, or use another database"
                    ) from error
        return run_id

    async def change_epoch(self, run_id: int, epoch: Epoch) -> None:
        """Give the run a new epoch."""
        with postgres_errors():
            await self._connection.execute(query("change-epoch"), run_id, epoch)

    async def void_epoch(self, run_id: int, epoch: Epoch) -> None:
        """Give the run an epoch that no Redis has, if it still has this one. The next opening then rebuilds Redis."""
        with postgres_errors():
            await self._connection.execute(query("void-epoch"), run_id, epoch)

    async def reopen(self, run_id: int, reason: str | None) -> int:
        """Delete the failed pages, with `reason` only those whose reason contains this text; returns how many.

        If any was deleted, the run is running again and has an epoch that no Redis has: the next opening rebuilds
        Redis, and these keys are planned again. A published run stays published.
        """
        part = quoted(part_name("pages", run_id))
        with postgres_errors():
            async with self._connection.transaction():
                await self._connection.execute(query("lock-run"), run_id)
                deleted: int = await self._connection.fetchval(query("delete-failed", part=part), reason)
                if deleted:
                    await self._connection.execute(query("reopen-run"), run_id)
        return deleted

    async def epoch(self, run_id: int) -> Epoch | None:
        """The run's epoch, None when there is no such run."""
        with postgres_errors():
            epoch = await self._connection.fetchval(query("epoch"), run_id)
        return None if epoch is None else Epoch(epoch)

    async def finish(self, run_id: int, epoch: Epoch, tables: Sequence[TableSettings]) -> Mapping[Outcome, int]:
        """Attach the run's parts, count its outcomes, and mark it complete and published; returns keys by outcome.

        Readers of the `*_current` views see the run whole or not at all. A run that is complete already keeps its
        counts. Raises EpochLost when the run has another epoch: `retry` has put keys back meanwhile.
        """
        with postgres_errors():
            if await self._attach(run_id, ["pages", *table_names(tables)]):
                await asyncio.sleep(PUBLISH_DELAY_SECONDS)
            async with self._connection.transaction():
                await self._connection.execute(query("lock-run"), run_id)
                if await self._connection.fetchval(query("epoch"), run_id) != epoch:
                    raise EpochLost(f"run {run_id} was changed in Postgres while it ended; start it again")
                final_counts = await self._connection.fetchval(query("final-counts"), run_id)
                if final_counts is not None:
                    return _decode_counts(final_counts)
                part = quoted(part_name("pages", run_id))
                rows = await self._connection.fetch(query("count-outcomes", part=part))
                counts = {Outcome(row["outcome"]): int(row["keys"]) for row in rows}
                await self._connection.execute(
                    query("finish-run"),
                    run_id,
                    orjson.dumps({outcome.value: keys for outcome, keys in counts.items()}).decode(),
                )
        return counts

    async def _attach(self, run_id: int, tables: Sequence[str]) -> bool:
        """Make the run's parts partitions, all in one transaction; False when all of them were partitions before."""
        async with self._connection.transaction():
            await self._connection.execute(query("lock-run"), run_id)
            attached = 0
            for name in tables:
                table, part = quoted(name), quoted(part_name(name, run_id))
                if not await self._connection.fetchval(query("is-attached"), table, part):
                    await self._connection.execute(query("attach", table=table, part=part, run_id=run_id))
                    attached += 1
        return attached > 0

    async def digests(self, run_id: int) -> AsyncIterator[Mapping[Outcome, Sequence[bytes]]]:
        """The digests of all keys that have an outcome, batch by batch, as {outcome: digests}."""
        part = quoted(part_name("pages", run_id))
        with postgres_errors():
            async with self._connection.transaction(readonly=True):
                cursor = await self._connection.cursor(query("digests", part=part))
                while rows := await cursor.fetch(DIGESTS_PER_FETCH):
                    batch: defaultdict[str, list[bytes]] = defaultdict(list)
                    for outcome, digest in rows:
                        batch[outcome].append(digest)
                    yield {Outcome(outcome): digests for outcome, digests in batch.items()}

    async def _make_table(self, table: TableSettings, run_id: int) -> None:
        """Make the table and its view where they are missing, check the table's columns, and make the run's part.

        Raises PostgresRefused.
        """
        whole = quoted(table.name)
        wanted = await self._columns_as_postgres_writes_them(table)
        await self._connection.execute(query("make-table", table=whole, columns=column_list(table.columns)))
        found = await self._connection.fetch(query("columns-of"), whole)
        if found != wanted or not await self._connection.fetchval(query("is-partitioned"), whole):
            shown = ", ".join(f"{row['name']} {row['type']}" for row in found)
            raise PostgresRefused(
                f"table {table.name} exists with other columns or unpartitioned ({shown}); "
                "make the job's columns equal, or give the table another name"
            )
        part = quoted(part_name(table.name, run_id))
        await self._connection.execute(query("make-table-part", part=part, table=whole, run_id=run_id))
        view = quoted(f"{table.name}_current")
        if not await self._connection.fetchval(query("is-there"), view):
            await self._connection.execute(query("make-view", view=view, table=whole))

    async def _columns_as_postgres_writes_them(self, table: TableSettings) -> list[asyncpg.Record]:
        """The names and types of the table's columns, read from a temporary table that is made of them.

        Postgres writes a type in its own way: `varchar(5)` becomes `character varying(5)`. Raises PostgresRefused.
        """
        columns = column_list(table.columns)
        try:
            await self._connection.execute(query("make-example", columns=columns))
        except (asyncpg.PostgresSyntaxError, asyncpg.DataError) as error:
            raise PostgresRefused(f"table {table.name}: {first_line(error)}; correct its columns' types") from error
        written = await self._connection.fetch(query("columns-of"), "pg_temp.example")
        await self._connection.execute(query("drop-example"))
        return list(written)


@asynccontextmanager
async def open_catalogue(database: str) -> AsyncIterator[Catalogue]:
    """The runs in the Postgres at this URL, through a connection that is closed at the end.

    Raises PostgresUnavailable, PostgresRefused.
    """
    connection = await connect_postgres(database)
    try:
        yield Catalogue(connection)
    finally:
        await connection.close()


def _decode_counts(counts: str) -> Mapping[Outcome, int]:
    """Keys by outcome, from the JSON text of `runs.counts`."""
    return {Outcome(outcome): keys for outcome, keys in orjson.loads(counts).items()}


def _other_tables(why: str) -> PostgresRefused:
    return PostgresRefused(f"Postgres: this database has other tables named runs or pages ({why}); use another one")
