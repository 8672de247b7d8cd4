"""Keys of a run for people who look: those that brought nothing, page by page and by reason, and one key with its rows.

Every call is bounded, so that one with a million failed keys is as quick as one with ten.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg

from coordinator.model import Outcome
from crawler.store.postgres import PostgresConnection, postgres_errors
from crawler.store.queries import query
from crawler.store.reasons import ReasonCount, count_outcomes, like_pattern
from crawler.store.rows.stored_run import StoredRun
from crawler.store.tables import RunTables

KEYS_OF_A_VIEW = 50
# A search looks at so many keys, and says where it stopped; at fewer where so many take longer than TIMEOUT.
LOOKED_AT = 50_000
FEWER = 20
# Of more keys the usual reasons are those of a sample: digests are random, so any part is a fair one.
SAMPLED_KEYS = 4_000
BODY_CHARACTERS = 20_000
SHOWN_RECORDS = 20
SHOWN_VERSIONS = 20
TIMEOUT = "3s"


@dataclass(frozen=True, slots=True)
class EndedKey:
    """A key that brought nothing, as its page has it. A `stale` one has its rows from the run before."""

    digest: bytes
    key: str
    reason: str | None
    status: int | None
    attempts: int
    fetched_at: datetime
    stale: bool


@dataclass(frozen=True, slots=True)
class EndedKeys:
    """Some of these keys. `more_behind` is the digest from which on there may be more, None at the end.

    `looked_at` says how many keys a search has looked at without finding enough; 0 when it found enough.
    """

    keys: Sequence[EndedKey]
    more_behind: bytes | None
    looked_at: int = 0


@dataclass(frozen=True, slots=True)
class KeyVersion:
    """What became of a key in one run of its corpus."""

    run: str
    outcome: str
    status: int | None
    reason: str | None
    fetched_at: datetime
    stale: bool


@dataclass(frozen=True, slots=True)
class TableRecords:
    """The records of one key in one table, as Postgres writes them; None when finding them takes long."""

    table: str
    records: Sequence[str] | None


def is_sample(run: StoredRun, reasons: Sequence[ReasonCount]) -> bool:
    """Pure: whether these are the reasons of a sample of the run's keys, of at most SAMPLED_KEYS of each outcome."""
    counts: Counter[Outcome] = Counter()
    for one in reasons:
        counts[one.outcome] += one.keys
    return not run.reasons and max(counts.values(), default=0) >= SAMPLED_KEYS


class KeysOfRun:
    """Reads the keys of one run. Every method raises PostgresUnavailable or PostgresRefused."""

    def __init__(self, connection: PostgresConnection, run: StoredRun) -> None:
        self._connection = connection
        self._run = run
        self._part = RunTables.of(run).pages

    async def ended(self, outcome: Outcome, behind: bytes = b"", text: str = "") -> EndedKeys:
        """The next KEYS_OF_A_VIEW keys of an outcome behind a digest; `text` is a part of their key or reason."""
        with postgres_errors():
            if not text:
                return await self._ended(outcome, behind, None, KEYS_OF_A_VIEW + 1)
            pattern = like_pattern(text)
            try:
                return await self._ended(outcome, behind, pattern, LOOKED_AT)
            except asyncpg.QueryCanceledError:
                return await self._ended(outcome, behind, pattern, LOOKED_AT // FEWER)

    async def _ended(self, outcome: Outcome, behind: bytes, pattern: str | None, look_at: int) -> EndedKeys:
        arguments = (outcome.value, behind, look_at)
        async with self._connection.transaction(readonly=True):
            await self._connection.execute(query("look-timeout"), TIMEOUT)
            statement = query("ended-keys", part=self._part)
            rows = await self._connection.fetch(statement, *arguments, pattern, KEYS_OF_A_VIEW + 1)
            keys = [EndedKey(**{**row, "stale": bool(row["stale"])}) for row in rows]
            if len(keys) > KEYS_OF_A_VIEW:
                return EndedKeys(keys[:KEYS_OF_A_VIEW], keys[KEYS_OF_A_VIEW - 1].digest)
            last = await self._connection.fetchrow(query("last-looked", part=self._part), *arguments)
        if last is None or last["looked"] < look_at:
            return EndedKeys(keys, None)
        return EndedKeys(keys, last["digest"], last["looked"])

    async def usual_reasons(self) -> Sequence[ReasonCount]:
        """The usual reasons of keys that failed or were refused, of a sample of many; none when it takes long."""
        if self._run.reasons:
            return self._run.reasons
        sample = query("sample-of-ended", part=self._part, most=SAMPLED_KEYS)
        with postgres_errors():
            try:
                async with self._connection.transaction(readonly=True):
                    await self._connection.execute(query("look-timeout"), TIMEOUT)
                    return (await count_outcomes(self._connection, sample))[1]
            except (asyncpg.QueryCanceledError, asyncpg.UndefinedTableError):  # the latter of a run without rows
                return ()

    async def page(self, digest: bytes) -> dict[str, Any] | None:
        """The page of a key, its body cut to BODY_CHARACTERS; None when the run has none."""
        with postgres_errors():
            statement = query("page-of-digest", part=self._part)
            row = await self._connection.fetchrow(statement, digest, BODY_CHARACTERS)
        return dict(row) if row is not None else None

    async def records(self, digest: bytes) -> Sequence[TableRecords]:
        """The records of a key in each table of the run."""
        return [await self._records(table, digest) for table in self._run.table_names]

    async def versions(self, digest: bytes, runs: Sequence[StoredRun]) -> Sequence[KeyVersion]:
        """What became of a key in the newest of these runs, the newest first."""
        found = []
        for run in sorted(runs, key=lambda one: -one.run_id)[:SHOWN_VERSIONS]:
            with postgres_errors():
                statement = query("outcome-of-digest", part=RunTables.of(run).pages)
                row = await self._connection.fetchrow(statement, digest)
            if row is not None:
                found.append(KeyVersion(run.name, **{**row, "stale": bool(row["stale"])}))
        return found

    async def _records(self, table: str, digest: bytes) -> TableRecords:
        statement = query("records-of-digest", part=RunTables.of(self._run).part(table))
        with postgres_errors():
            try:
                async with self._connection.transaction(readonly=True):
                    await self._connection.execute(query("look-timeout"), TIMEOUT)
                    rows = await self._connection.fetch(statement, digest, BODY_CHARACTERS, SHOWN_RECORDS)
            except asyncpg.QueryCanceledError:
                return TableRecords(table, None)
        return TableRecords(table, [row["record"] for row in rows])
