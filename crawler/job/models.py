"""The sections of the job file as msgspec models: the only source of its checks, its reference and its JSON Schema.

Each key has its bounds, a description and an example. `Meta(extra=...)` has texts for messages and the reference:
`absent` is the default in words, `write` says how to write a value of several types, `each` says what every entry of a
table must be, `not_yet` is the message for a value that this version does not have.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, field

from crawler.job.fields import (
    IDENTIFIER,
    UPSTREAM_HOST,
    UPSTREAM_PATH,
    Section,
    number,
    text,
    value,
)
from crawler.job.request.settings import RequestSettings
from crawler.job.sections.following import FollowSettings, KindSettings, PaginateSettings
from crawler.job.sections.limits import LimitEntry
from crawler.job.sections.notify import NotifySettings
from crawler.job.sections.parse import ParseSettings
from crawler.job.sections.publish import PublishSettings
from crawler.job.sections.run import RunSettings
from crawler.job.sections.source import SourceSettings
from crawler.job.sections.transform import TransformSettings
from crawler.job.tables import TableSettings


# The formatter would give each argument a line of its own, and the ten lines of a key would hide the next one.
# fmt: off
class RetrySettings(Section, frozen=True, kw_only=True):
    """What follows an attempt that failed: a pause that grows, and another attempt."""

    attempts: Annotated[int, number(
        "Attempts of a key before it fails. A response 202 or 206, which does not bring what was asked for, is one. "
        "Responses like 429 count apart: ten times as many are allowed.",
        3, 1, 100)] = 5
    backoff: Annotated[float, number(
        "Seconds that the first pause takes at most. Each pause is random, and may be twice as long as the one before.",
        1, 0.0, 3600.0)] = 0.5
    max_delay: Annotated[float, number(
        "Seconds that such a pause takes at most. How long an upstream asks to wait is another thing, and obeyed.",
        300, 0.0, 86_400.0)] = 60.0
    refused_in_a_row: Annotated[int, number(
        "Responses 401, 403 or 407 in a row, over all workers, after which an upstream is paused: a token has expired, "
        "or the crawl is not wanted there. Then one request at a time is sent, after 1 to 60 seconds, until the "
        "upstream lets one through; keys that it refuses meanwhile wait. 0 never pauses: for a list that may well be "
        "refused from end to end.",
        0, 0, 1_000_000)] = 100


class StoreSettings(Section, frozen=True, kw_only=True):
    """Where and how rows are stored, and how much a worker holds before it commits.

    A worker that is killed leaves at most that to be fetched again.
    """

    schema: Annotated[str, text(
        "The Postgres schema for the corpus' rows and views. It is made where it is missing. "
        "Lower-case letters, digits and _, at most 40; not `pg_…` or `information_schema`.",
        "afd", f"^{IDENTIFIER}$", absent="the one that the address names")] = ""
    compression: Annotated[Literal["auto", "lz4", "pglz", "none"], value(
        "How Postgres compresses rows of more than 2 KB. `auto` is lz4 where the server has it, which takes a third to "
        "a half of the CPU time off a row, and else Postgres' own pglz. `none` is as quick as lz4, and takes two to "
        "three times the space. A run keeps what it began with.",
        "none", write='write "auto", "lz4", "pglz" or "none"')] = "auto"
    batch_rows: Annotated[int, number(
        "Pages that wait for one commit at most.",
        500, 1, 100_000)] = 1000
    batch_bytes: Annotated[int, number(
        "Bytes that wait for one commit at most.",
        67_108_864, 1024, 2**30)] = 16 * 1024 * 1024
    batch_age: Annotated[float, number(
        "Seconds that a page waits for its commit at most.",
        0.5, 0.01, 60.0)] = 1.0


class JobFile(Section, frozen=True, kw_only=True):
    """A job of shardcrawl: https://pypi.org/project/shardcrawl/."""

    run: RunSettings = field(default_factory=RunSettings)
    publish: PublishSettings = field(default_factory=PublishSettings)
    notify: NotifySettings = field(default_factory=NotifySettings)
    source: SourceSettings = field(default_factory=SourceSettings)
    request: RequestSettings = field(default_factory=RequestSettings)
    limits: Annotated[dict[str, LimitEntry], Meta(extra_json_schema={
        "propertyNames": {"pattern": f"^{UPSTREAM_HOST}(?:/{UPSTREAM_PATH})?$"}})] = field(default_factory=dict)
    retry: RetrySettings = field(default_factory=RetrySettings)
    parse: ParseSettings = field(default_factory=ParseSettings)
    store: StoreSettings = field(default_factory=StoreSettings)
    tables: tuple[TableSettings, ...] = ()
    transform: TransformSettings | tuple[TransformSettings, ...] = ()
    paginate: PaginateSettings | None = None
    follow: tuple[FollowSettings, ...] = ()
    kinds: dict[str, KindSettings] = field(default_factory=dict)
# fmt: on
