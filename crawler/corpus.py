"""The source that a job names: opened at a cursor, and surveyed before a run is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from coordinator.errors import UsageError
from coordinator.limits.matcher import UpstreamMatcher
from coordinator.settings import ANY_UPSTREAM
from coordinator.source import (
    FIRST_KEYS,
    Chunk,
    Columns,
    Cursor,
    KeyRule,
    Source,
    log_warning,
    open_source,
    reads_once,
)
from crawler.fetch.template import Template
from crawler.job.job import Job
from crawler.job.sections.source import SITEMAP
from crawler.store.rows.source_query import SourceQuery

# How long the first keys may take; a source can be slow.
SAMPLE_SECONDS = 1.0


def open_corpus(job: Job, cursor: Cursor, warn: Callable[[str], None] = log_warning) -> Source:
    """The job's source, from a cursor on; `warn` gets what the user should know about it. Raises SourceError."""
    separator = job.request.separator if job.request.keys_per_request > 1 else None
    rule = KeyRule(absolute_url=job.request.url is None, separator=separator)
    folder = Path(job.folder)
    source = job.source
    columns = Columns(source.key_columns, source.carried_columns) if source.key_columns else None
    return open_source(
        source.path,
        source.python,
        keys=source.sitemaps or source.keys,
        kind=SITEMAP if source.sitemap else "",
        query=None if source.query is None else SourceQuery(job.source_database, source.query),
        columns=columns,
        cursor=cursor,
        key_rule=rule,
        folder=folder,
        warn=warn,
    )


def with_source_database(job: Job, database: str, environ: Mapping[str, str]) -> Job:
    """The job with the address of the Postgres that its query reads: `database`, which is the run's, or a secret.

    Raises UsageError when the secret is not set.
    """
    if job.source.query is None:
        return job
    if job.source.database is None:
        return replace(job, source_database=database)
    name = job.source.database[2:-1]
    if not (address := environ.get(name)):
        raise UsageError(f"job: [source] database: ${{{name}}} is not set in the environment")
    return replace(job, source_database=address)


def is_rereadable(job: Job) -> bool:
    """Whether the source can be read from its beginning again: all but standard input and named pipes."""
    return not reads_once(job.source.path, Path(job.folder))


def survey_corpus(job: Job, *, count: bool = True) -> tuple[str, int | None]:
    """The source's fingerprint and, with `count`, about how many keys it has; ("", None) for what is read once.

    Blocks while it reads, so call it in a thread. Raises SourceError, also when the first keys of a text are no keys.
    """
    if not is_rereadable(job):
        return "", None
    # What there is to say about the source is said by the planner, or by `sample_corpus`.
    with closing(open_corpus(job, Cursor(), lambda _: None)) as source:
        if job.source.python is None:  # which is the user's code, and may take its time
            source.read(FIRST_KEYS, SAMPLE_SECONDS)
        return source.fingerprint(), source.estimate() if count else None


def sample_corpus(job: Job, warn: Callable[[str], None] = lambda _: None) -> Chunk:
    """The first keys of the source, none of what is read once. Blocks, like `survey_corpus`. Raises SourceError."""
    if not is_rereadable(job):
        return Chunk([], [], Cursor(), exhausted=False)
    with closing(open_corpus(job, Cursor(), warn)) as source:
        return source.read(FIRST_KEYS, SAMPLE_SECONDS)


def polite_upstream(job: Job, first_keys: Callable[[], Sequence[str]]) -> str | None:
    """The upstream for which the job states no limit, so that it gets the polite default; None when there is none.

    Where keys are URLs, the first of them tell; "*" stands for several hosts, and for those of an unknown source. Only
    then `first_keys` is called, which may read the source.
    """
    matcher, template = UpstreamMatcher(job.limits), Template(job.request)
    unlimited = matcher.without_limit(template.sample)
    if unlimited != ANY_UPSTREAM or not (keys := first_keys()):
        return unlimited
    hosts = {matcher.without_limit(template.target([key])) for key in keys} - {None}
    return hosts.pop() if len(hosts) == 1 else ANY_UPSTREAM if hosts else None
