"""The runs in Postgres: their rows in `runs`, the tables that each loads into, and their final counts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import asyncpg
import orjson

from coordinator.errors import EpochLost, PostgresRefused, PostgresUnavailable, RunCancelled, UsageError, first_line
from coordinator.model import Epoch, Outcome
from coordinator.queue.registry import RunRecord
from crawler.job.tables import TableSettings
from crawler.store.corpora import Corpora, lock_run
from crawler.store.postgres import PostgresConnection, connect_postgres, postgres_errors, refuse_planted
from crawler.store.queries import query
from crawler.store.reasons import PagesToRetry, ReasonCount, count_outcomes, encode_reasons
from crawler.store.rows.found import FoundCounts, FoundTable, delete_pages
from crawler.store.rows.merge import drop_replaced
from crawler.store.rows.stored_run import StoredRun, decode_counts, encode_layout
from crawler.store.schema import migrate, refuse_older, schema_version
from crawler.store.tables import PAGES, AddedColumn, RunTables, table_names
from crawler.store.user_tables import UserTables

DIGESTS_PER_FETCH = 50_000


class Catalogue:
    """The runs in one Postgres. Every method raises PostgresUnavailable or PostgresRefused."""

    def __init__(self, connection: PostgresConnection) -> None:
        self._connection = connection

    @property
    def connection(self) -> PostgresConnection:
        """The connection, for what is beside the rows of `runs`."""
        return self._connection

    async def prepare(self, *, upgrade: bool = False) -> None:
        """Make the schema where it is missing; with `upgrade` bring an older one up to date, which else is refused.

        Raises PostgresRefused also when the schema is newer, or when other tables have its names.
        """
        if not upgrade:
            await refuse_older(self._connection)
        await migrate(self._connection)

    async def rehearse(
        self, name: str, tables: Sequence[TableSettings], schema: str = "", corpus: str = "", compression: str = "auto"
    ) -> tuple[StoredRun | None, Sequence[AddedColumn]]:
        """Make what a new run would make, and take it back; nothing where there is a run of that name.

        Returns that run if there is one, and the columns that a new run would add to tables which exist.
        Raises PostgresRefused when a right is missing, a table or view exists with other columns, the corpus has its
        tables in another schema, or the server lacks the compression.
        """
        with postgres_errors():
            transaction = self._connection.transaction()
            await transaction.start()
            try:
                await self._connection.execute(query("hide-notices"))
                await self.prepare()
                if (found := await self.find(name)) is not None:
                    return found, ()
                added = await UserTables(self._connection, RunTables(0, schema), compression).make(tables, widens=False)
                with suppress(PostgresUnavailable):  # as when a run is made
                    await Corpora(self._connection).add(corpus or name, schema, table_names(tables))
                return None, added
            finally:
                await transaction.rollback()

    async def find(self, name: str) -> StoredRun | None:
        """The run of that name, or None. Raises PostgresRefused also when its parts are planted by another role."""
        with postgres_errors():
            row = await self._connection.fetchrow(query("find-run", columns=query("run-columns")), name)
        if row is None:
            return None
        run = StoredRun.from_row(row)
        of_run = RunTables.of(run)
        names = [PAGES, *run.table_names]
        await refuse_planted(self._connection, [of_run.part(name) for name in names])
        return run

    async def record(self, name: str) -> RunRecord:
        """What a process needs to take part in the run of that name.

        Raises UsageError when there is none, RunCancelled, EpochLost when it must be opened again, PostgresRefused for
        an old schema.
        """
        await refuse_older(self._connection)
        run = await self.find(name) if await schema_version(self._connection) else None
        if run is None:
            raise UsageError(f"Postgres has no run {name}; `shardcrawl run JOB` or `coordinate JOB` makes it")
        run.refuse_cancelled()
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
            await self._connection.execute(
                query("rewrite-run"), record.run_id, document, encode_layout(record), record.content_hash
            )

    async def all(self) -> list[StoredRun]:
        """Every run, oldest first."""
        with postgres_errors():
            rows = await self._connection.fetch(query("list-runs", columns=query("run-columns")))
        return [StoredRun.from_row(row) for row in rows]

    async def current(self, corpus: str) -> StoredRun | None:
        """The run that readers of this corpus see; None before the first is published, or while there is no schema."""
        if not await schema_version(self._connection):
            return None
        with postgres_errors():
            row = await self._connection.fetchrow(query("current-of-corpus", columns=query("run-columns")), corpus)
        return None if row is None else StoredRun.from_row(row)

    async def make(
        self,
        name: str,
        document: Mapping[str, Any],
        epoch: Epoch,
        tables: Sequence[TableSettings],
        *,
        corpus: str = "",
        base_run: int | None = None,
        follows: bool = False,
    ) -> int:
        """Add a run, the tables into which it loads, and if it `follows` one of found keys; returns its run_id.

        `corpus` is the name's own by default. Of a `base_run` pages may be carried over, so it is kept.
        Raises PostgresRefused when a table of records exists with other columns, or the server lacks the compression.
        """
        with postgres_errors():
            async with self._connection.transaction():
                await self._connection.execute(query("lock-schema"))
                await self._connection.execute(query("hide-notices"))
                spec = orjson.dumps(document).decode()
                try:
                    run_id: int = await self._connection.fetchval(
                        query("make-run"), name, spec, epoch, corpus or name, base_run
                    )
                except asyncpg.ForeignKeyViolationError as error:
                    raise UsageError(
                        "the run with which the refresh begins was pruned just now; start again"
                    ) from error
                store = document.get("store", {})
                of_run = RunTables(run_id, store.get("schema", ""))
                try:
                    await UserTables(self._connection, of_run, store.get("compression", "auto")).make(tables)
                    if follows:
                        await FoundTable(of_run).make(self._connection)
                except asyncpg.DuplicateTableError as error:
                    raise PostgresRefused(
                        f"{first_line(error)}: a deleted run has left it; drop it, or use another database"
                    ) from error
                with suppress(PostgresUnavailable):  # views that cannot be made now are made when the run is published
                    await Corpora(self._connection).add(corpus or name, of_run.schema, table_names(tables))
        return run_id

    async def index_records(self, of_run: RunTables, tables: Sequence[TableSettings]) -> None:
        """Let the records of pages be found in a run, which is complete, so that they can be carried over from it."""
        with postgres_errors():
            await UserTables(self._connection, of_run).index(tables)

    async def change_epoch(self, run_id: int, epoch: Epoch) -> None:
        """Give the run a new epoch."""
        with postgres_errors():
            await self._connection.execute(query("change-epoch"), run_id, epoch)

    async def void_epoch(self, run_id: int, epoch: Epoch) -> bool:
        """Give the run an epoch that no Redis has, if it still has this one. The next opening then rebuilds Redis.

        Returns whether its epoch is void now: not when `retry` or an opening changed it. A complete run keeps its
        epoch. Raises UsageError when somebody deleted the run.
        """
        with postgres_errors():
            await self._connection.execute(query("void-epoch"), run_id, epoch)
        if (now := await self.epoch(run_id)) is None:
            raise UsageError(f"run {run_id} is no longer in Postgres: somebody deleted it")
        return now.startswith("void-")

    async def reopen(
        self, of_run: RunTables, wanted: PagesToRetry, tables: Sequence[TableSettings] = ()
    ) -> Mapping[Outcome, int]:
        """Delete the pages that are wanted again, those of lists with their records; returns how many, by outcome.

        If any was deleted, the run is running again and has an epoch that no Redis has: the next opening rebuilds
        Redis, and these keys are planned again. A published run stays published. Raises RunCancelled, UsageError.
        """
        with postgres_errors():
            async with self._connection.transaction():
                name = await lock_run(self._connection, of_run.run_id)
                if await self._connection.fetchval(query("is-cancelled"), of_run.run_id):
                    raise RunCancelled(f"run {name} was cancelled meanwhile")
                deleted = await delete_pages(self._connection, of_run, wanted, tables)
                if deleted:
                    await self._connection.execute(query("reopen-run"), of_run.run_id)
        return deleted

    async def found(self, of_run: RunTables) -> tuple[Mapping[str, FoundCounts], int]:
        """What was found of each kind, and how many lists are incomplete."""
        with postgres_errors():
            broken = int(await self._connection.fetchval(query("count-broken-lists", part=of_run.pages)))
            return await FoundTable(of_run).counts(self._connection), broken

    async def outcomes_so_far(self, of_run: RunTables) -> tuple[Mapping[Outcome, int], tuple[ReasonCount, ...]]:
        """Keys by outcome, and the usual reasons of those that were refused or failed, so far; none of both when it
        takes long to count them.
        """
        with postgres_errors():
            try:
                async with self._connection.transaction(readonly=True):
                    await self._connection.execute(query("reasons-timeout"))
                    return await count_outcomes(self._connection, of_run.pages)
            except asyncpg.QueryCanceledError:
                return {}, ()

    async def epoch(self, run_id: int) -> Epoch | None:
        """The run's epoch, None when there is no such run."""
        with postgres_errors():
            epoch = await self._connection.fetchval(query("epoch"), run_id)
        return None if epoch is None else Epoch(epoch)

    async def complete(
        self, of_run: RunTables, epoch: Epoch, tables: Sequence[TableSettings] = ()
    ) -> Mapping[Outcome, int]:
        """Count the run's outcomes, and mark it complete; returns keys by outcome. Readers see it when it is published.

        Records of the tables that give way to newer ones are deleted with it. A run that is complete already keeps its
        counts. Raises RunCancelled, and EpochLost when the run has another epoch: `retry` has put keys back meanwhile.
        """
        run_id = of_run.run_id
        with postgres_errors():
            async with self._connection.transaction():
                await self._connection.execute(query("lock-run"), run_id)
                if await self._connection.fetchval(query("epoch"), run_id) != epoch:
                    raise EpochLost(f"run {await self._name(run_id)} was changed in Postgres while it ended")
                final_counts = await self._connection.fetchval(query("final-counts"), run_id)
                if final_counts is not None:
                    return decode_counts(final_counts)
                if await self._connection.fetchval(query("is-cancelled"), run_id):
                    raise RunCancelled(f"run {await self._name(run_id)} was cancelled while it ended")
                counts, reasons = await count_outcomes(self._connection, of_run.pages)
                await drop_replaced(self._connection, of_run, tables)
                await self._connection.execute(
                    query("complete-run"),
                    run_id,
                    orjson.dumps({outcome.value: keys for outcome, keys in counts.items()}).decode(),
                    encode_reasons(reasons),
                )
        return counts

    async def digests(self, of_run: RunTables) -> AsyncIterator[Mapping[Outcome, Sequence[bytes]]]:
        """The digests of all keys that have an outcome, batch by batch, as {outcome: digests}."""
        with postgres_errors():
            async with self._connection.transaction(readonly=True):
                cursor = await self._connection.cursor(query("digests", part=of_run.pages))
                while rows := await cursor.fetch(DIGESTS_PER_FETCH):
                    batch: defaultdict[str, list[bytes]] = defaultdict(list)
                    for outcome, digest in rows:
                        batch[outcome].append(digest)
                    yield {Outcome(outcome): digests for outcome, digests in batch.items()}

    async def _name(self, run_id: int) -> str:
        return str(await self._connection.fetchval(query("name-of-run"), run_id))


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
