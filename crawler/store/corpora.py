"""The corpora in Postgres: which of its runs a corpus shows, and the views through which readers see that one.

A view has a branch for each corpus, so that Postgres reads no other run's partition. It is made anew only when a corpus
gets a table: then it waits for its readers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import asyncpg

from coordinator.errors import EpochLost, PostgresRefused, PostgresUnavailable, UsageError, first_line
from coordinator.failpoints import Failpoint, no_failpoint
from crawler.job.tables import TableSettings
from crawler.store.postgres import PostgresConnection, postgres_errors
from crawler.store.queries import query
from crawler.store.rows.merge import keep_records
from crawler.store.tables import PAGES, RunTables, in_schema, quoted, table_names

# Between attaching a run's parts and publishing it. Postgres plans a statement before it takes its snapshot: a
# statement that was planned before the attaching, and takes its snapshot after the publishing, would find no rows.
PUBLISH_DELAY_SECONDS = 0.2
# In the place of the run_id of the run that readers must still see when another one is published: no run has it.
ANY_RUN = 0


async def lock_run(connection: PostgresConnection, run_id: int, name: str = "") -> str:
    """Take the lock under which a run is changed and deleted, in a transaction and to its end; returns its name.

    Raises UsageError when another command has deleted the run, also where its tables are still there.
    """
    await connection.execute(query("lock-run"), run_id)
    found: str | None = await connection.fetchval(query("name-of-run"), run_id)
    if found is None:
        raise UsageError(f"run {name or run_id} is gone: another command deleted it; `shardcrawl runs` lists every run")
    return found


@contextmanager
def _changed_tables(of_run: RunTables) -> Iterator[None]:
    """Turn into PostgresRefused what Postgres says of rows that a table, which somebody has changed, does not take."""
    try:
        yield
    except (asyncpg.DatatypeMismatchError, asyncpg.IntegrityConstraintViolationError) as error:
        raise PostgresRefused(
            f"Postgres: {first_line(error)}; a table was changed since run_id {of_run.run_id} began, and does not take "
            "its rows: change it back, or the rows"
        ) from error


class Corpora:
    """The corpora of one Postgres. Every method raises PostgresUnavailable or PostgresRefused."""

    def __init__(self, connection: PostgresConnection) -> None:
        self._connection = connection

    async def current(self, corpus: str) -> int | None:
        """The run_id of the run that readers of this corpus see; None before the first one is published."""
        with postgres_errors():
            run_id: int | None = await self._connection.fetchval(query("current-run"), corpus)
        return run_id

    async def find(self, corpus: str, schema: str) -> asyncpg.Record | None:
        """The row of a corpus, None when it is new.

        Raises PostgresRefused when its tables are in another schema, and when a new one names that of all the others.
        """
        row = await self._connection.fetchrow(query("find-corpus"), corpus)
        if row is None and schema and await self._connection.fetchval(query("is-schema-of-runs"), quoted(schema)):
            raise PostgresRefused(f"[store] schema {schema} is the one that the address names anyway; leave it out")
        if row is not None and row["schema"] != schema:
            there = f"schema {row['schema']}" if row["schema"] else "the schema that the address names"
            raise PostgresRefused(
                f"corpus {corpus} has its tables in {there}; "
                "leave [store] schema as it was, or give [run] corpus another name"
            )
        return row

    async def add(self, corpus: str, schema: str, tables: Sequence[str]) -> None:
        """Add a corpus, or tables to it, in a transaction, and make the views anew that show it.

        So are those that somebody dropped, or whose table has other columns since. Raises PostgresRefused when the
        corpus has its tables in another schema, or something else has the name of a view, and PostgresUnavailable
        while a query on such a view goes on: then nothing is added.
        """
        row = await self.find(corpus, schema)
        new = [name for name in tables if row is None or name not in row["tables"]]
        is_seen = row is not None and not row["is_left_out"]
        names = [PAGES, *tables]
        if is_seen:
            wholes = [RunTables(0, schema).whole(name) for name in names]
            views = [in_schema(schema, f"{name}_current") for name in names]
            differing = await self._connection.fetch(query("differing-views"), names, wholes, views)
            names = [*new, *(one["name"] for one in differing if one["name"] not in new)]
        if not names:
            return
        try:
            async with self._connection.transaction():
                await self._connection.execute(query("hide-notices"))
                await self._connection.execute(query("add-corpus"), corpus, schema, new)
                await self._connection.execute(query("view-timeout"))
                for name in names:
                    await self.make_view(schema, name, corpus)
                if schema and not is_seen:
                    await self.make_view("", PAGES, corpus)
        except asyncpg.LockNotAvailableError as error:
            raise PostgresUnavailable(
                f"Postgres: the views of corpus {corpus} are to be made, and a query that somebody runs on one of them "
                "holds it up; this goes on when that query has ended"
            ) from error

    async def publish(
        self,
        corpus: str,
        of_run: RunTables,
        tables: Sequence[TableSettings],
        failpoint: Failpoint = no_failpoint,
        *,
        instead_of: int | None = ANY_RUN,
    ) -> bool:
        """Let readers of the corpus see this run and no other, from one moment on.

        False, and nothing, when readers see another run by then than the one that this is to be published `instead_of`.
        Tables that merge get what stays of the run that readers saw, once in the life of this run. Raises UsageError
        when somebody deleted the run meanwhile, EpochLost when `retry` put keys of it back, PostgresRefused when its
        rows do not fit into tables that somebody changed, and PostgresUnavailable while somebody's query holds up a
        view that must be made: to be called again then.
        """
        with postgres_errors(), _changed_tables(of_run):
            names = table_names(tables)
            await self.add(corpus, of_run.schema, names)
            if await self._attach(of_run, [PAGES, *names]):
                await asyncio.sleep(PUBLISH_DELAY_SECONDS)
            failpoint("attached")
            async with self._connection.transaction():
                name = await lock_run(self._connection, of_run.run_id)
                before = await self._connection.fetchval(query("lock-corpus"), corpus)
                if instead_of not in (ANY_RUN, before):
                    return False
                if before and not await self._connection.fetchval(query("was-published"), of_run.run_id):
                    await keep_records(self._connection, of_run, replace(of_run, run_id=before), tables)
                failpoint("merged")
                if await self._connection.fetchval(query("mark-published"), of_run.run_id) is None:
                    raise EpochLost(f"run {name} is not published: keys of it were put back just now")
                await self._connection.execute(query("point-corpus"), corpus, of_run.run_id)
        return True

    async def refuse(self, run_id: int, shortfall: str) -> None:
        """Keep why a complete run is not published; nothing of one that is not complete any more."""
        with postgres_errors():
            await self._connection.execute(query("mark-shortfall"), run_id, shortfall)

    async def _attach(self, of_run: RunTables, tables: Sequence[str]) -> bool:
        """Make the run's parts partitions, all in one transaction; False when all of them were partitions before."""
        async with self._connection.transaction():
            await lock_run(self._connection, of_run.run_id)
            attached = 0
            for name in tables:
                whole, part = of_run.whole(name), of_run.part(name)
                if not await self._connection.fetchval(query("is-attached"), whole, part):
                    statement = query("attach", table=whole, part=part, run_id=of_run.run_id)
                    await self._connection.execute(statement)
                    attached += 1
        return attached > 0

    async def make_view(self, schema: str, table: str, corpus: str = "") -> None:
        """Make `TABLE_current` anew: of the corpora in this schema that have the table. `pages` is everybody's.

        `corpus` is in it, also if it is one of an earlier version that readers did not see.
        In a transaction. Nothing is made while no corpus has the table. Raises asyncpg's errors.
        """
        whole = in_schema("" if table == PAGES else schema, table)
        corpora = await self._connection.fetch(
            query("corpora-with-table"), schema, None if table == PAGES else table, corpus
        )
        branches = " UNION ALL ".join(query("view-branch", table=whole, corpus=row["literal"]) for row in corpora)
        if branches:
            view = in_schema(schema, f"{table}_current")
            try:
                await self._connection.execute(query("make-view", view=view, branches=branches))
            except (asyncpg.InvalidTableDefinitionError, asyncpg.WrongObjectTypeError) as error:
                raise PostgresRefused(
                    f"Postgres cannot make the view {view}: {first_line(error)}; drop or rename what is there, and run "
                    "this command again"
                ) from error
