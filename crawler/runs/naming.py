"""The name of a run: what it is when its job gives none, a lock on it, and who uses it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from msgspec.structs import replace as changed
from redis.asyncio import Redis

from coordinator.errors import RedisDamaged
from coordinator.status import read_snapshot
from crawler.job.job import Job
from crawler.store.catalogue import Catalogue
from crawler.store.postgres import PostgresConnection, connect_postgres, postgres_errors
from crawler.store.queries import query


async def with_name(job: Job, catalogue: Catalogue) -> Job:
    """The job with a name: its own, that of its corpus' newest run that is not at its end, or a new one of today (UTC).

    Raises PostgresUnavailable, PostgresRefused.
    """
    if job.run.name:
        return job
    runs = await catalogue.all()
    own = [run for run in runs if run.corpus == job.corpus]
    # Nobody has decided on publishing a complete run: who completed it died.
    unfinished = [run.name for run in own if run.unfinished or (run.complete and run.shortfall is None)]
    return _named(
        job, unfinished[-1] if unfinished else new_name(job.corpus, datetime.now(UTC), {run.name for run in runs})
    )


def new_name(corpus: str, now: datetime, taken: Iterable[str]) -> str:
    """Pure: the corpus, the date, and from the second run of a day on a number: after the highest that is taken."""
    first = f"{corpus}-{now:%Y-%m-%d}"
    rests = [name.removeprefix(first) for name in taken if name.startswith(first)]
    numbers = [int(rest[1:] or 1) for rest in rests if re.fullmatch(r"|-[1-9]\d*", rest)]
    return f"{first}-{max(numbers) + 1}" if numbers else first


def _named(job: Job, name: str) -> Job:
    """The job with this name, also in its document, which others will read."""
    document: Mapping[str, Any] = {**job.document, "run": {**job.document.get("run", {}), "name": name}}
    kinds = {kind: _named(one, name) for kind, one in job.kinds.items()}
    return replace(job, run=changed(job.run, name=name), kinds=kinds, document=document)


@asynccontextmanager
async def name_lock(database: str, name: str) -> AsyncIterator[None]:
    """Hold a lock on the run's name while it is being opened, or ends, in a transaction on a connection of its own."""
    connection = await connect_postgres(database)
    try:
        async with connection.transaction():
            await connection.execute(query("lock-name"), name)
            await connection.execute(query("drop-snapshot"))
            yield
    finally:
        connection.terminate()


@dataclass(frozen=True, slots=True)
class RunPresence:
    """Who is with a run: how many workers, the coordinator that leads; `begins`: a command opens it, or just did."""

    workers: int = 0
    leader: str | None = None
    begins: bool = False

    @property
    def in_use(self) -> bool:
        """Whether anybody is."""
        return self.workers > 0 or self.leader is not None or self.begins


async def presence_of(client: Redis, connection: PostgresConnection, name: str) -> RunPresence:
    """Who is with a run, also with one that Redis lost: by leases, and by the lock on its name in Postgres.

    Raises RedisUnavailable, PostgresUnavailable.
    """
    found = RunPresence()
    with suppress(RedisDamaged):
        now = await read_snapshot(client, name)
        found = RunPresence(now.workers, now.leader, now.begins)
    with postgres_errors():
        is_opened = await connection.fetchval(query("is-name-locked"), name)
    return replace(found, begins=found.begins or is_opened)
