"""The sections of the job file as msgspec models: the only source of its checks, its reference and its JSON Schema.

Each key has its bounds, a description and an example. `Meta(extra=...)` has texts for messages and the reference:
`absent` is the default in words, `write` says how to write a value of several types, `each` says what every entry of a
table must be, `not_yet` is the message for a value that this version does not have.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, field

from crawler.job.fields import (
    DURATION,
    FUNCTION,
    IDENTIFIER,
    MEDIAWIKI_ALIASES,
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
from crawler.job.sections.run import RunSettings
from crawler.job.sections.source import SourceSettings
from crawler.job.tables import TableSettings


# The formatter would give each argument a line of its own, and the ten lines of a key would hide the next one.
# fmt: off
class PublishSettings(Section, frozen=True, kw_only=True):
    """When a complete run becomes the one that readers of the corpus see.

    A bound that a run does not keep holds it back: its command ends with exit code 4, and `shardcrawl publish RUN
    --force` publishes it all the same.
    """

    mode: Annotated[Literal["auto", "manual"], value(
        "By itself, or by `shardcrawl publish RUN`.",
        "manual", write='write "auto" or "manual"')] = "auto"
    max_failed: Annotated[float, number(
        "The share of keys that may have failed, stale ones too, or to which access was denied. `max_failed` of "
        "`[run]` only decides on the exit code 3 of a run that is published.",
        0.02, 0.0, 1.0, absent="no bound")] | None = None
    max_gone: Annotated[float, number(
        "The share of the keys with rows in the run before that may be gone, or no longer in the source.",
        0.05, 0.0, 1.0, absent="no bound")] | None = None
    min_keys: Annotated[float, number(
        "How many keys must have rows, as a share of those in the run before.",
        0.95, 0.0, 1.0,
        absent="at least one key, unless the job has `[run] since` or a table that merges")] | None = None
    max_incomplete: Annotated[int, number(
        "How many lists of `[paginate]` may have broken off.",
        0, 0, 2**31, absent="no bound")] | None = None


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


class ParseSettings(Section, frozen=True, kw_only=True):
    """What makes rows of a response: a function of yours, or selectors."""

    python: Annotated[str, text(
        "A function of yours, module:function, that is called with each response and returns rows. The module is "
        "looked up in the job file's folder.",
        "parse:revisions", f"^{FUNCTION}$", absent="the whole body is stored in `pages`")] | None = None
    format: Annotated[Literal["json", "ndjson", "csv", "html", "xml"], value(
        "What the responses are, which decides the language of selectors: dotted paths, and CSS for html and xml. A "
        "response that is something else fails its keys.",
        "html", write='write "json", "ndjson", "csv", "html" or "xml"')] = "json"
    rows: Annotated[str, text(
        "Where the records are in a response, as a path: each element of a list, or one object; in html "
        "and xml each element that matches. A path that leads to nothing fails the key, and an empty list is no rows.",
        "query.pages", absent="each response is one record; in ndjson and csv each line is")] | None = None
    key: Annotated[str, text(
        "With several keys a request: the selector of that which says whose record it is.",
        "title")] | None = None
    wait: Annotated[str | tuple[str, ...], value(
        "When a key is not ready yet, written like `failed`: it is requested again, later and later, at no attempt's "
        "cost. With it, a 202 is read too. `wait`, `retry`, `failed` and `gone` are read in this order.",
        "$status = 202", write="write a condition, or a list of conditions")] = ()
    wait_most: Annotated[str, text(
        "How long a key may wait in all before it fails, at most 24h.", "10min", f"^{DURATION}$")] = "1h"
    retry: Annotated[str | tuple[str, ...], value(
        "When a response is worth another attempt, written like `failed`: a failed one, by the rules of `[retry]`.",
        "$.error.code = busy", write="write a condition, or a list of conditions")] = ()
    failed: Annotated[str | tuple[str, ...], value(
        "When a key has failed: a condition, or several of which one is enough. One that begins with `$` is about the "
        "response and all of its keys, any other one about a record and its key.",
        "$.error.info", write="write a condition, or a list of conditions")] = ()
    gone: Annotated[str | tuple[str, ...], value(
        "When the upstream does not have a key; written like `failed`, and read after it.",
        ["missing", "$ = null"], write="write a condition, or a list of conditions")] = ()
    timeout: Annotated[float, number(
        "Seconds that the function may take for one response. A key that takes longer when it is alone is failed.",
        120, 0.1, 3600.0)] = 20.0
    alias: Annotated[tuple[str, ...], value(
        "Where a JSON response lists what the upstream calls the keys of a request: paths to lists of "
        '{"from": …, "to": …}; a path may be absent. `response.key_for` and `_key` find keys by these names too. '
        "The default is where MediaWiki has them.",
        ["meta.renamed"])] = MEDIAWIKI_ALIASES
    no_record: Annotated[Literal["failed", "gone", "stored"], value(
        "How a key ends for which the parser returned no record, in a job with `[[tables]]`.",
        "gone", write='write "failed", "gone" or "stored"',
        absent="failed; stored when the key was asked for alone")] | None = None
    ignore: Annotated[tuple[str, ...], value(
        "What of a body without a parser may differ, like the id of a request, and the page is unchanged all the same: "
        "paths, in html and xml selectors.",
        ["footer .request-id"])] = ()


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
    source: SourceSettings = field(default_factory=SourceSettings)
    request: RequestSettings = field(default_factory=RequestSettings)
    limits: Annotated[dict[str, LimitEntry], Meta(extra_json_schema={
        "propertyNames": {"pattern": f"^{UPSTREAM_HOST}(?:/{UPSTREAM_PATH})?$"}})] = field(default_factory=dict)
    retry: RetrySettings = field(default_factory=RetrySettings)
    parse: ParseSettings = field(default_factory=ParseSettings)
    store: StoreSettings = field(default_factory=StoreSettings)
    tables: tuple[TableSettings, ...] = ()
    paginate: PaginateSettings | None = None
    follow: tuple[FollowSettings, ...] = ()
    kinds: dict[str, KindSettings] = field(default_factory=dict)
# fmt: on
