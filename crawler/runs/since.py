"""What `{since}` stands for in a run of an incremental job."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from crawler.job.job import Job, read_job
from crawler.store.catalogue import Catalogue
from crawler.store.rows.stored_run import StoredRun


async def with_fixed_since(job: Job, catalogue: Catalogue) -> Job:
    """The job with what its run has as `[run] since` from its beginning to its end, also in its document.

    Raises PostgresUnavailable, PostgresRefused, UsageError.
    """
    if job.run.since is None:
        return job
    since = fixed_since(job.run.since, await catalogue.find(job.run.name), await catalogue.current(job.corpus))
    document = {**job.document, "run": {**job.document.get("run", {}), "since": since}}
    return replace(read_job(document, job.folder), source_database=job.source_database)


def fixed_since(given: str, run: StoredRun | None, current: StoredRun | None) -> str:
    """Pure: what a run that exists has already; else when the corpus' current run began; in the first one `given`."""
    stored = None if run is None else run.document.get("run", {}).get("since")
    if stored is not None:
        return str(stored)
    return _moment(current.created_at) if current is not None and run is None else given


def _moment(at: datetime) -> str:
    """A moment in UTC, to the second before it: what changes in that second is asked for twice rather than never."""
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
