"""The runs as Postgres knows them: schema, partitions, final counts, and publishing."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg
import orjson

from coordinator.errors import EpochLost, PostgresRefused, first_line
from coordinator.model import Epoch, Outcome
from crawler.job.models import TableSettings
from crawler.store import tables as names
from crawler.store.postgres import Connection, translated
from crawler.store.queries import query, schema

FETCH_ROWS = 50_000
# Seconds from attaching a run's parts to publishing it. Postgres plans a statement before it takes its snapshot: one
# planned before the attach and run after the publishing would find the run current and none of its rows.
SETTLE = 0.2


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A row of `runs`."""

    run_id: int
    name: str
    document: Mapping[str, Any]
    epoch: Epoch
    complete: bool
    counts: Mapping[Outcome, int]
    created_at: datetime
    finished_at: datetime | None

    @classmethod
    def of(cls, row: asyncpg.Record) -> StoredRun:
        """The run in a row of `find-run` or `list-runs`."""
        counts = orjson.loads(row["counts"]) if row["counts"] else {}
        return cls(
            run_id=row["run_id"],
            name=row["name"],
            document=orjson.loads(row["spec"]),
            epoch=Epoch(row["epoch"]),
            complete=row["state"] == "complete",
            counts={Outcome(outcome): keys for outcome, keys in counts.items()},
            created_at=row["created_at"],
            finished_at=row["finished_at"],
        )


class Catalogue:
    """The runs in one Postgres. Every method raises PostgresUnavailable or PostgresRefused."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def prepare(self) -> None:
        """Make the schema where it is missing. Raises PostgresRefused when other tables have its names."""
        with translated():
            # Making it again would wait for every reader of its views.
            if await self._connection.fetchval(query("schema-is-there")):
                return
            async with self._connection.transaction():
                await self._connection.execute(query("lock-schema"))
                await self._connection.execute("SET LOCAL client_min_messages = warning")
                try:
                    await self._connection.execute(schema())
                except (asyncpg.WrongObjectTypeError, asyncpg.UndefinedColumnError) as error:
                    raise _other_tables(first_line(error)) from error
                if not await self._connection.fetchval(query("is-partitioned"), "pages"):
                    raise _other_tables("pages is not partitioned")

    async def find(self, name: str) -> StoredRun | None:
        """The run of that name, None when there is none."""
        with translated():
            row = await self._connection.fetchrow(query("find-run"), name)
        return None if row is None else StoredRun.of(row)

    async def all(self) -> list[StoredRun]:
        """Every run, oldest first."""
        with translated():
            return [StoredRun.of(row) for row in await self._connection.fetch(query("list-runs"))]

    async def make(self, name: str, document: Mapping[str, Any], epoch: Epoch, tables: Sequence[TableSettings]) -> int:
        """Add a run with the tables into which it loads; returns its run_id. Raises PostgresRefused when a table
        of records exists with other columns."""
        with translated():
            async with self._connection.transaction():
                await self._connection.execute(query("lock-schema"))
                await self._connection.execute("SET LOCAL client_min_messages = warning")
                run_id: int = await self._connection.fetchval(
                    query("make-run"), name, orjson.dumps(document).decode(), epoch
                )
                part = names.quoted(names.part("pages", run_id))
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
        """Bind the run to a new beginning in Redis."""
        with translated():
            await self._connection.execute(query("change-epoch"), run_id, epoch)

    async def void_epoch(self, run_id: int, epoch: Epoch) -> None:
        """Bind the run to no beginning in Redis, if it still is to this one: whoever opens it next rebuilds."""
        with translated():
            await self._connection.execute(query("void-epoch"), run_id, epoch)

    async def reopen(self, run_id: int, reason: str | None) -> int:
        """Forget the failed keys, those whose reason has this text in it; returns how many.

        The run is then incomplete and bound to no beginning in Redis: whoever opens it next plans them again. Readers
        keep what is published.
        """
        part = names.quoted(names.part("pages", run_id))
        with translated():
            async with self._connection.transaction():
                await self._connection.execute(query("lock-run"), run_id)
                deleted: int = await self._connection.fetchval(query("delete-failed", part=part), reason)
                if deleted:
                    await self._connection.execute(query("reopen-run"), run_id)
        return deleted

    async def epoch(self, run_id: int) -> Epoch | None:
        """The run's epoch, None when the run is not there."""
        with translated():
            epoch = await self._connection.fetchval(query("epoch"), run_id)
        return None if epoch is None else Epoch(epoch)

    async def finish(self, run_id: int, epoch: Epoch, tables: Sequence[TableSettings]) -> Mapping[Outcome, int]:
        """Attach the run's parts, then take the final counts, mark the run complete and make it the current one.

        Readers of the `*_current` views see it whole or not at all. A run that is complete already keeps its counts.
        Returns keys by outcome. Raises EpochLost when the run is bound to another epoch: `retry` has given keys back.
        """
        with translated():
            if await self._attach(run_id, ["pages", *names.names(tables)]):
                await asyncio.sleep(SETTLE)
            async with self._connection.transaction():
                await self._connection.execute(query("lock-run"), run_id)
                if await self._connection.fetchval(query("epoch"), run_id) != epoch:
                    raise EpochLost(f"run {run_id} was changed in Postgres while it ended; start it again")
                taken = await self._connection.fetchval(query("final-counts"), run_id)
                if taken is not None:
                    return {Outcome(outcome): keys for outcome, keys in orjson.loads(taken).items()}
                part = names.quoted(names.part("pages", run_id))
                rows = await self._connection.fetch(query("count-outcomes", part=part))
                counts = {Outcome(row["outcome"]): int(row["keys"]) for row in rows}
                await self._connection.execute(
                    query("finish-run"),
                    run_id,
                    orjson.dumps({outcome.value: keys for outcome, keys in counts.items()}).decode(),
                )
        return counts

    async def _attach(self, run_id: int, tables: Sequence[str]) -> bool:
        """Make the run's parts partitions, all at once; False when they are."""
        async with self._connection.transaction():
            await self._connection.execute(query("lock-run"), run_id)
            attached = 0
            for name in tables:
                table, part = names.quoted(name), names.quoted(names.part(name, run_id))
                if not await self._connection.fetchval(query("is-attached"), table, part):
                    await self._connection.execute(query("attach", table=table, part=part, run_id=run_id))
                    attached += 1
        return attached > 0

    async def digests(self, run_id: int) -> AsyncIterator[Mapping[Outcome, Sequence[bytes]]]:
        """The digests of every key that has an outcome, in batches, as {outcome: digests}."""
        part = names.quoted(names.part("pages", run_id))
        with translated():
            async with self._connection.transaction(readonly=True):
                cursor = await self._connection.cursor(query("digests", part=part))
                while rows := await cursor.fetch(FETCH_ROWS):
                    batch: defaultdict[str, list[bytes]] = defaultdict(list)
                    for outcome, digest in rows:
                        batch[outcome].append(digest)
                    yield {Outcome(outcome): digests for outcome, digests in batch.items()}

    async def _make_table(self, table: TableSettings, run_id: int) -> None:
        quoted, columns = names.quoted(table.name), names.column_list(table.columns)
        try:
            await self._connection.execute(query("make-example", columns=columns))
        except (asyncpg.PostgresSyntaxError, asyncpg.DataError) as error:
            raise PostgresRefused(f"table {table.name}: {first_line(error)}; correct its columns' types") from error
        wanted = await self._connection.fetch(query("columns-of"), "pg_temp.example")
        await self._connection.execute(query("drop-example"))
        await self._connection.execute(query("make-table", table=quoted, columns=columns))
        found = await self._connection.fetch(query("columns-of"), quoted)
        if found != wanted or not await self._connection.fetchval(query("is-partitioned"), quoted):
            shown = ", ".join(f"{row['name']} {row['type']}" for row in found)
            raise PostgresRefused(
                f"table {table.name} exists with other columns or unpartitioned ({shown}); "
                "make the job's columns equal, or give the table another name"
            )
        part = names.quoted(names.part(table.name, run_id))
        await self._connection.execute(query("make-table-part", part=part, table=quoted, run_id=run_id))
        view = names.quoted(f"{table.name}_current")
        if not await self._connection.fetchval(query("is-there"), view):
            await self._connection.execute(query("make-view", view=view, table=quoted))


def _other_tables(why: str) -> PostgresRefused:
    return PostgresRefused(f"Postgres: this database has other tables named runs or pages ({why}); use another one")
