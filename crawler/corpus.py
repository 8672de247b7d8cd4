"""The source that a job names: opened at a cursor, and surveyed before a run is made."""

from __future__ import annotations

from pathlib import Path

from coordinator.source import STANDARD_INPUT, Cursor, KeyRule, Source, open_source
from crawler.job.job import Job


def open_corpus(job: Job, cursor: Cursor) -> Source:
    """The job's source, from a cursor on. Raises SourceError."""
    separator = job.request.separator if job.request.keys_per_request > 1 else None
    rule = KeyRule(absolute_url=job.request.url is None, separator=separator)
    return open_source(job.source.path, job.source.python, cursor=cursor, key_rule=rule, folder=Path(job.folder))


def survey_corpus(job: Job, *, count: bool = True) -> tuple[str, int | None]:
    """The source's fingerprint and, with `count`, about how many keys it has; ("", None) for standard input.

    Blocks while it reads, so call it in a thread. Raises SourceError.
    """
    if job.source.path == STANDARD_INPUT:
        return "", None
    source = open_corpus(job, Cursor())
    try:
        return source.fingerprint(), source.estimate() if count else None
    finally:
        source.close()
