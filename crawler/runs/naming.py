"""The name of a run: what it is when its job gives none, and a lock on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Container, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from typing import Any

from msgspec.structs import replace as changed

from crawler.job.job import Job
from crawler.store.catalogue import Catalogue
from crawler.store.postgres import connect_postgres
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


def new_name(corpus: str, now: datetime, taken: Container[str]) -> str:
    """Pure: the corpus, the date, and from the second run of a day on a number."""
    first = f"{corpus}-{now:%Y-%m-%d}"
    return next(name for number in count(1) if (name := first if number == 1 else f"{first}-{number}") not in taken)


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
