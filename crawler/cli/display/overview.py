"""Runs as Redis and Postgres know them together: for `status`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import monotonic

from redis.asyncio import Redis

from coordinator.errors import PostgresUnavailable, UsageError
from coordinator.model import Outcome, RunCounts
from coordinator.queue.registry import Runs
from coordinator.status import RunSnapshot, read_counts, read_snapshot
from crawler.runs.naming import presence_of
from crawler.store.catalogue import Catalogue
from crawler.store.postgres import PostgresConnection, connect_postgres, postgres_errors
from crawler.store.reasons import Failure, ReasonCount, newest_failures
from crawler.store.rows.ended import KeysOfRun
from crawler.store.rows.stored_run import StoredRun
from crawler.store.tables import RunTables

# How often Postgres is asked while a person looks; Redis is asked each time.
POSTGRES_INTERVAL_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class RunView:
    """A run at one moment, and its newest failures."""

    snapshot: RunSnapshot
    failures: tuple[Failure, ...] = ()


class Overview:
    """One run, or every unfinished one, for who looks again and again, also when Postgres was started again."""

    def __init__(self, client: Redis, database: str, name: str | None = None) -> None:
        self._client = client
        self._database = database
        self._connection: PostgresConnection | None = None
        self._name = name
        self._runs: list[StoredRun] = []
        self._failures: dict[int, tuple[Failure, ...]] = {}
        self._ask_postgres_at = 0.0

    async def read(self) -> list[RunView]:
        """The runs now. Raises UsageError for an unknown run, Unavailable, PostgresRefused."""
        if self._connection is None or self._connection.is_closed():
            self._connection = await connect_postgres(self._database)
        connection = self._connection
        try:
            if monotonic() >= self._ask_postgres_at:
                with postgres_errors():
                    runs = wanted_runs(await Catalogue(connection).all(), self._name)
                    found = {run.run_id: await newest_failures(connection, RunTables.of(run)) for run in runs}
                self._runs, self._failures = runs, found
                self._ask_postgres_at = monotonic() + POSTGRES_INTERVAL_SECONDS
            return [
                RunView(await snapshot_of(self._client, connection, run), self._failures[run.run_id])
                for run in self._runs
            ]
        except (PostgresUnavailable, asyncio.CancelledError):
            self.close()
            raise

    def close(self) -> None:
        """Give the connection up."""
        if self._connection is not None:
            self._connection.terminate()


def wanted_runs(stored: Sequence[StoredRun], name: str | None) -> list[StoredRun]:
    """The run of that name, or every unfinished one without a name. Raises UsageError when it is unknown."""
    wanted = [run for run in stored if (run.name == name if name else run.unfinished)]
    if name and not wanted:
        known = ", ".join(run.name for run in stored) or "none"
        raise UsageError(f"no run {name}; known runs: {known}")
    return wanted


async def snapshot_of(client: Redis, connection: PostgresConnection, run: StoredRun) -> RunSnapshot:
    """A run as Redis knows it; as Postgres does, but for who works on it, when Redis lost it, and when `retry` has put
    keys back that Redis does not know of; as Postgres does, without workers, once it is complete.
    """
    in_redis, total = await Runs(client).find(run.name), run.record.total if run.record else None
    if run.unfinished:
        if in_redis is not None and in_redis.epoch == run.epoch:
            return await read_snapshot(client, run.name, total)
        outcomes, _ = await Catalogue(connection).outcomes_so_far(RunTables.of(run))
        counts = RunCounts(total, outcomes=dict(outcomes))
        now = await presence_of(client, connection, run.name)  # they see within seconds that keys went back
        return RunSnapshot(
            run.name, run.state, counts, now.workers, now.leader, steering=run.steering, begins=now.begins
        )
    live = await read_counts(client, run.name, total) if in_redis is not None else RunCounts()
    final = replace(live, outcomes=dict(run.counts), total=sum(run.counts.values()) if run.complete else None)
    return RunSnapshot(run.name, run.state, final, workers=0, leader=None)


async def reasons_of(connection: PostgresConnection, run: StoredRun, counts: RunCounts) -> Sequence[ReasonCount]:
    """Why keys of the run failed or were refused; Postgres is asked only when by these counts some were."""
    if not any(counts.outcomes.get(one) for one in (Outcome.FAILED, Outcome.REFUSED)):
        return ()
    return await KeysOfRun(connection, run).usual_reasons()
