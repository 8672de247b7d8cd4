"""Commands about a job file alone: check, schema."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import click

from coordinator.errors import redacted
from coordinator.limits.matcher import UpstreamMatcher
from coordinator.redis.connection import check_server, connect_redis
from coordinator.settings import ANY_UPSTREAM, POLITE, LimitSettings
from coordinator.source import STANDARD_INPUT, Cursor
from crawler.cli import screen
from crawler.cli.options import (
    command,
    job_from,
    job_options,
    json_option,
    place_from,
    place_options,
    print_json,
    run_async,
)
from crawler.corpus import open_corpus
from crawler.fetch.network.credentials import resolve_credentials
from crawler.fetch.robots.rules import product_token
from crawler.job.job import Job
from crawler.job.models import RequestSettings
from crawler.job.reference import job_schema
from crawler.local.services import Place, services
from crawler.parse import hook
from crawler.store.postgres import connect_postgres

NO_CONTACT_WARNING = "set [request] user_agent to who you are and how to reach you"
SAMPLED_KEYS = 1000
SAMPLE_SECONDS = 1.0

# A row of what `check` prints: the setting, its value, and where the value comes from.
Checked: TypeAlias = Sequence[Any]


@command("check")
@click.argument("job", metavar="JOB|SOURCE")
@place_options("warning")
@job_options
@json_option
@click.pass_context
def check_command(ctx: click.Context, /, job: str, as_json: bool, **options: Any) -> None:
    """Validate job, parser, source and services; sends no request. Example: shardcrawl check job.toml"""
    given = {
        name: source.name.lower()
        for name in options
        if (source := ctx.get_parameter_source(name)) is not None and source.name in ("COMMANDLINE", "ENVIRONMENT")
    }
    rows = run_async(_check(place_from(options), job_from(job, options), given, os.environ))
    if as_json:
        print_json([{"what": what, "value": value, "from": origin} for what, value, origin in rows])
        return
    screen.print_rows(["what", "value", "from"], rows)
    click.echo("the job is fine; nothing was sent")


@command("schema")
def schema_command() -> None:
    """Print the JSON Schema of the job file, for editors. Example: shardcrawl schema > job.schema.json"""
    print_json(job_schema())


async def _check(place: Place, job: Job, given: Mapping[str, str], environ: Mapping[str, str]) -> list[Checked]:
    """Check everything that a run needs. Raises ShardcrawlError for the first thing that is wrong."""
    hook.load(job)
    resolve_credentials(job.request, environ)
    total = await asyncio.to_thread(_sample_source, job)
    rows = [*_settings(job, total, given), *_limits(job, given)]
    async with services(place, share=True) as addresses:
        client = connect_redis(addresses.redis)
        try:
            warnings = await check_server(client, addresses.redis)
        finally:
            await client.aclose()
        await (await connect_postgres(addresses.database)).close()
    embedded = f"embedded in {place.data}"
    rows += [
        ("redis", redacted(place.redis) if place.redis else embedded, given.get("redis", "default")),
        ("postgres", redacted(place.database) if place.database else embedded, given.get("database", "default")),
        *(("warning", warning, "redis") for warning in warnings),
    ]
    if job.request.user_agent == RequestSettings().user_agent:
        rows.append(("warning", NO_CONTACT_WARNING, "default"))
    return rows


def _settings(job: Job, total: int | None, given: Mapping[str, str]) -> list[Checked]:
    run, request = job.run, job.request

    def origin(section: str, key: str) -> str:
        return _origin(job, given, section, key, option=key)

    return [
        ("run", run.name, origin("run", "name")),
        ("source", job.source.path or job.source.python, "job file"),
        ("keys", f"about {total:,}" if total is not None else "unknown until read", "source"),
        ("request", request.url or "each key is a URL", origin("request", "url")),
        ("engine", f"{request.engine}{', HTTP/2' if request.http2 else ''}", origin("request", "engine")),
        ("user agent", request.user_agent, origin("request", "user_agent")),
        _robots(job),
        ("workers", run.workers or "one a core", origin("run", "workers")),
        ("concurrency", f"{run.concurrency} a worker", origin("run", "concurrency")),
        ("grace", f"{run.grace:g} s", origin("run", "grace")),
        ("batch rows", job.store.batch_rows, origin("store", "batch_rows")),
        ("attempts", job.retry.attempts, origin("retry", "attempts")),
        ("parser", job.parse.python or "none: whole body", origin("parse", "python")),
        (
            "tables",
            ", ".join(table.name for table in job.tables) or "pages only",
            "job file" if job.tables else "default",
        ),
    ]


def _robots(job: Job) -> Checked:
    """Whether robots.txt is obeyed, and why."""
    request = job.request
    words = f"obeyed, as {product_token(request.user_agent) or '*'}" if request.obeys_robots else "not asked for"
    reason = "keys are URLs" if request.url is None else "an API by its template"
    return "robots.txt", words, f"default: {reason}" if request.robots is None else "job file"


def _limits(job: Job, given: Mapping[str, str]) -> list[Checked]:
    rows: list[Checked] = [
        (f"limit of {upstream}", _limit_words(limit), _origin(job, given, "limits", upstream, option="rate"))
        for upstream, limit in job.limits.items()
    ]
    if unlimited := UpstreamMatcher(job.limits).without_limit(job.request.url):
        whose = "each host" if unlimited == ANY_UPSTREAM else unlimited
        rows.append((f"limit of {whose}", _limit_words(POLITE), "default: polite"))
    return rows


def _limit_words(limit: LimitSettings) -> str:
    return limit.rate_text + ("" if limit.concurrency is None else f", {limit.concurrency} at once")


def _sample_source(job: Job) -> int | None:
    """Read the first keys of the source, except standard input; returns about how many it has. Raises SourceError."""
    if job.source.path == STANDARD_INPUT:
        return None
    source = open_corpus(job, Cursor())
    try:
        source.read(SAMPLED_KEYS, SAMPLE_SECONDS)
        return source.estimate()
    finally:
        source.close()


def _origin(job: Job, given: Mapping[str, str], section: str, key: str, *, option: str) -> str:
    """Where a setting comes from: an option, the option's environment variable, the job file, or the default.

    `given` says of each option that was given whether it came from the command line or the environment.
    """
    if option in given:
        return f"--{option.replace('_', '-')}" if given[option] == "commandline" else "environment"
    return "job file" if key in (job.document.get(section) or {}) else "default"
