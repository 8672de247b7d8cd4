"""The source that a job names: opened at a cursor, and surveyed before a run is made."""

from __future__ import annotations

from pathlib import Path

from coordinator.source import STANDARD_INPUT, Cursor, KeyRule, Source, open_source
from crawler.job.job import Job


def open_corpus(job: Job, cursor: Cursor) -> Source:
    """The job's source, from a cursor on. Raises SourceError."""
    several = job.request.keys_per_request > 1
    rule = KeyRule(absolute_url=job.request.url is None, separator=job.request.separator if several else None)
    return open_source(job.source.path, job.source.python, cursor=cursor, key_rule=rule, folder=Path(job.folder))


def survey_corpus(job: Job, *, count: bool = True) -> tuple[str, int | None]:
    """The source's fingerprint and, if wanted, about how many keys it has; ("", None) for standard input.

    It opens the source, and blocks. Raises SourceError.
    """
    if job.source.path == STANDARD_INPUT:
        return "", None
    source = open_corpus(job, Cursor())
    try:
        return source.fingerprint(), source.estimate() if count else None
    finally:
        source.close()
