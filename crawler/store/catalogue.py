"""The runs in Postgres: schema, partitions, final counts, publishing."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import orjson

from coordinator.errors import EpochLost, PostgresRefused, UsageError, first_line
from coordinator.model import Epoch, Outcome
from coordinator.queue.registry import RunRecord
from crawler.job.tables import TableSettings
from crawler.store.postgres import PostgresConnection, connect_postgres, postgres_errors, refuse_planted
from crawler.store.queries import query
from crawler.store.reasons import PagesToRetry, ReasonCount, count_outcomes, encode_reasons
from crawler.store.rows.found import FoundCounts, FoundTable, delete_pages
from crawler.store.rows.stored_run import StoredRun, decode_counts, encode_layout
from crawler.store.schema import migrate, refuse_older, schema_version
from crawler.store.tables import column_list, columns_fault, part_name, quoted, table_names

DIGESTS_PER_FETCH = 50_000
# Between attaching a run's parts and publishing it. Postgres plans a statement before it takes its snapshot: a
# statement that was planned before the attaching, and takes its snapshot after the publishing, would find no rows.
PUBLISH_DELAY_SECONDS = 0.2


class Catalogue:
    """The runs in one Postgres. Every method raises PostgresUnavailable or PostgresRefused."""

    def __init__(self, connection: PostgresConnection) -> None:
        self._connection = connection

    async def prepare(self, *, upgrade: bool = False) -> None:
        """Make the schema where it is missing; with `upgrade` bring an older one up to date, which else is refused.

        Raises PostgresRefused also when the schema is newer, or when other tables have its names.
        """
        if not upgrade:
            await refuse_older(self._connection)
        await migrate(self._connection)

    async def rehearse(self, name: str, tables: Sequence[TableSettings]) -> StoredRun | None:
        """Make what a run would make, and take it back; returns the run of that name if there is one.

        Raises PostgresRefused when a right is missing, or a table exists with other columns.
        """
        with postgres_errors():
            transaction = self._connection.transaction()
            await transaction.start()
            try:
                await self._connection.execute(query("hide-notices"))
                await self.prepare()
                for table in tables:
                    await self._make_table(table, run_id=0)
                return await self.find(name)
            finally:
                await transaction.rollback()

    async def find(self, name: str) -> StoredRun | None:
        """The run of that name, or None. Raises PostgresRefused also when its parts are planted by another role."""
        with postgres_errors():
            row = await self._connection.fetchrow(query("find-run"), name)
        if row is None:
            return None
        run = StoredRun.from_row(row)
        tables = ["pages", *(table["name"] for table in run.document.get("tables", ()))]
        await refuse_planted(self._connection, [part_name(table, run.run_id) for table in tables])
        return run

    async def record(self, name: str) -> RunRecord:
        """What a process needs to take part in the run of that name.

        Raises UsageError when there is none, EpochLost when it must be opened again, PostgresRefused for an old schema.
        """
        await refuse_older(self._connection)
        run = await self.find(name) if await schema_version(self._connection) else None
        if run is None:
            raise UsageError(f"Postgres has no run {name}; `shardcrawl run JOB` or `coordinate JOB` makes it")
        if run.record is None:
            raise EpochLost(f"run {name} is to be opened again by `shardcrawl run` or `coordinate`")
        return run.record

    async def known(self, names: Sequence[str]) -> set[str]:
        """Those of the names that are runs here; none while there is no schema."""
        if not await schema_version(self._connection):
            return set()
        with postgres_errors():
            return {row["name"] for row in await self._connection.fetch(query("known-runs"), names)}

    async def rewrite(self, record: RunRecord) -> None:
        """Give the run this job and this layout. Nobody takes part in it until it has the record's epoch, too."""
        document = orjson.dumps(record.document).decode()
        with postgres_errors():
            await self._connection.execute(query("rewrite-run"), record.run_id, document, encode_layout(record))

    async def all(self) -> list[StoredRun]:
        """Every run, oldest first."""
        with postgres_errors():
            return [StoredRun.from_row(row) for row in await self._connection.fetch(query("list-runs"))]

    async def make(
        self,
        name: str,
        document: Mapping[str, Any],
        epoch: Epoch,
        tables: Sequence[TableSettings],
        *,
        follows: bool = False,
    ) -> int:
        """Add a run, the tables into which it loads, and if it `follows` one of found keys; returns its run_id.

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
                    if follows:
                        await FoundTable(run_id).make(self._connection)
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

    async def reopen(
        self, run_id: int, wanted: PagesToRetry, tables: Sequence[TableSettings] = ()
    ) -> Mapping[Outcome, int]:
        """Delete the pages that are wanted again, those of lists with their records; returns how many, by outcome.

        If any was deleted, the run is running again and has an epoch that no Redis has: the next opening rebuilds
        Redis, and these keys are planned again. A published run stays published.
        """
        with postgres_errors():
            async with self._connection.transaction():
                await self._connection.execute(query("lock-run"), run_id)
                deleted = await delete_pages(self._connection, run_id, wanted, tables)
                if deleted:
                    await self._connection.execute(query("reopen-run"), run_id)
        return deleted

    async def found(self, run_id: int) -> tuple[Mapping[str, FoundCounts], int]:
        """What was found of each kind, and how many lists are incomplete."""
        with postgres_errors():
            part = quoted(part_name("pages", run_id))
            broken = int(await self._connection.fetchval(query("count-broken-lists", part=part)))
            return await FoundTable(run_id).counts(self._connection), broken

    async def reasons_so_far(self, run_id: int) -> tuple[ReasonCount, ...]:
        """The usual reasons of the keys that were refused or failed so far; none when it takes long to count them."""
        with postgres_errors():
            try:
                async with self._connection.transaction(readonly=True):
                    await self._connection.execute(query("reasons-timeout"))
                    return (await count_outcomes(self._connection, run_id))[1]
            except asyncpg.QueryCanceledError:
                return ()

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
                    return decode_counts(final_counts)
                counts, reasons = await count_outcomes(self._connection, run_id)
                await self._connection.execute(
                    query("finish-run"),
                    run_id,
                    orjson.dumps({outcome.value: keys for outcome, keys in counts.items()}).decode(),
                    encode_reasons(reasons),
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
        await refuse_planted(self._connection, [table.name, f"{table.name}_current"])
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
        part = quoted(part_name(table.name, run_id))
        await self._connection.execute(query("make-table-part", part=part, table=whole, run_id=run_id))
        view = quoted(f"{table.name}_current")
        if not await self._connection.fetchval(query("is-there"), view):
            await self._connection.execute(query("make-view", view=view, table=whole))

    async def _columns(self, table: str) -> list[tuple[str, str]]:
        """The columns of a table as (name, type)."""
        return [(row["name"], row["type"]) for row in await self._connection.fetch(query("columns-of"), table)]

    async def _columns_as_postgres_writes_them(self, table: TableSettings) -> list[tuple[str, str]]:
        """The names and types of the table's columns, read from a temporary table that is made of them.

        Postgres writes a type in its own way: `varchar(5)` becomes `character varying(5)`. Raises PostgresRefused.
        """
        columns = column_list(table.columns)
        try:
            await self._connection.execute(query("make-example", columns=columns))
        except (asyncpg.PostgresSyntaxError, asyncpg.DataError) as error:
            raise PostgresRefused(f"table {table.name}: {first_line(error)}; correct its columns' types") from error
        written = await self._columns("pg_temp.example")
        await self._connection.execute(query("drop-example"))
        return written


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


async def find_record(database: str, name: str) -> RunRecord:
    """What a process needs to take part in a run. Raises PostgresUnavailable, and what `Catalogue.record` does."""
    async with open_catalogue(database) as catalogue:
        return await catalogue.record(name)
