"""Commands about a job file alone, which store nothing: check, fetch, schema."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import click
from rich.console import Console

from coordinator.errors import UsageError, redacted
from coordinator.limits.matcher import UpstreamMatcher
from coordinator.redis.connection import check_server, connect_redis
from coordinator.redis.versions import read_server_kind, redis_flaw
from coordinator.settings import ANY_UPSTREAM, POLITE, LimitSettings
from coordinator.source import Chunk, showable
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
from crawler.corpus import polite_upstream, sample_corpus, survey_corpus, with_source_database
from crawler.fetch.network.credentials import resolve_credentials
from crawler.fetch.robots.rules import product_token
from crawler.fetch.template import Template
from crawler.job.job import Job
from crawler.job.models import RequestSettings
from crawler.job.reference import job_schema
from crawler.job.request_checks import SECRET, credential_origins, credentials_in
from crawler.local.services import Place, redis_alone, services
from crawler.opening import changed_setting
from crawler.parse import hook
from crawler.store.address import address_warnings
from crawler.store.catalogue import open_catalogue
from crawler.store.postgres import postgres_flaw, read_version

NO_CONTACT_WARNING = "set [request] user_agent to who you are and how to reach you"
SHOWN_KEYS = 3

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
    # A table cuts what is long, and these say what to do.
    remarks = [(what, value) for what, value, _ in rows if what in ("warning", "refused")]
    screen.print_rows(["what", "value", "from"], [row for row in rows if (row[0], row[1]) not in remarks])
    for what, value in remarks:
        click.echo(f"{what}: {value}")
    click.echo("the job can run; nothing was sent" if remarks else "the job is fine; nothing was sent")


@command("fetch")
@click.argument("key", metavar="KEY")
@click.option("--job", required=True, metavar="JOB", help="The job file.")
@click.option("--save", "folder", type=click.Path(path_type=Path), metavar="DIR", help="Write the response there.")
@place_options("warning")
@job_options
@json_option
def fetch_command(key: str, job: str, folder: Path | None, as_json: bool, **options: Any) -> None:
    """Request one key as a run would, and show what it would store. Needs no Postgres.

    Exit code 0 when the key would be stored, else 1. Example: shardcrawl fetch Q42 --job job.toml --save samples
    """
    from crawler import rehearsal  # it needs all that a worker does, and other commands begin sooner without that

    described = job_from(job, options)

    async def fetch(place: Place) -> rehearsal.Rehearsal:
        async with redis_alone(place) as url:
            client = connect_redis(url)
            try:
                await check_server(client, url)
                return await rehearsal.rehearse(described, key, client, os.environ)
            finally:
                await client.aclose()

    found = run_async(fetch(place_from(options)))
    path = None if folder is None else rehearsal.save(found, folder)
    if as_json:
        shown = {**found.as_json(), "saved": path and str(path)}
        click.echo(json.dumps(shown, indent=2, ensure_ascii=False, default=screen.plain))
    else:
        screen.print_rehearsal(found, Console())
        if path is not None:
            click.echo(f"saved in {path}, for crawler.testing.parse_file")
    sys.exit(0 if found.is_stored else 1)


@command("schema")
def schema_command() -> None:
    """Print the JSON Schema of the job file, for editors. Example: shardcrawl schema > job.schema.json"""
    print_json(job_schema())


async def _check(place: Place, job: Job, given: Mapping[str, str], environ: Mapping[str, str]) -> list[Checked]:
    """Check everything that a run needs. Raises ShardcrawlError for the first thing that is wrong."""
    hook.load(job)
    resolve_credentials(job.request, environ)
    # A query needs a database, which may have to be started; any other source is read before that.
    rows = [] if job.source.query else await _source_rows(job, given)
    async with services(place, share=True) as addresses:
        if job.source.query:
            rows = await _source_rows(with_source_database(job, addresses.database, environ), given)
        client = connect_redis(addresses.redis)
        try:
            warnings = await check_server(client, addresses.redis)
            redis = await read_server_kind(client)
        finally:
            await client.aclose()
        postgres = await read_version(addresses.database)
        async with open_catalogue(addresses.database) as catalogue:
            stored = await catalogue.rehearse(job.run.name, job.tables)
        if stored is not None:
            if changed := changed_setting(job, stored):
                raise UsageError(changed)
            state = "complete already: nothing is left to do" if stored.complete else "begun before: it goes on"
            rows.insert(1, ("state", state, "postgres"))
    embedded = f"embedded in {place.data}"
    flaws = {"redis": redis and redis_flaw(*redis), "postgres": postgres_flaw(*postgres)}
    rows += [
        ("redis", redacted(place.redis) if place.redis else embedded, given.get("redis", "default")),
        ("redis version", " ".join(redis) if redis else "unknown", "redis"),
        ("postgres", redacted(place.database) if place.database else embedded, given.get("database", "default")),
        ("postgres version", f"Postgres {postgres[0]}.{postgres[1]}", "postgres"),
        *(("warning", flaw, server) for server, flaw in flaws.items() if flaw),
        *(("warning", warning, "redis") for warning in warnings),
        *(("warning", warning, "postgres") for warning in address_warnings(addresses.database)),
    ]
    if job.request.user_agent == RequestSettings().user_agent:
        rows.append(("warning", NO_CONTACT_WARNING, "default"))
    return rows


async def _source_rows(job: Job, given: Mapping[str, str]) -> list[Checked]:
    """The job's settings, and what its first keys tell. Raises SourceError."""
    notices: list[str] = []
    first = await asyncio.to_thread(sample_corpus, job, notices.append)
    _, total = await asyncio.to_thread(survey_corpus, job)
    rows = [*_settings(job, total, given), *_first_keys(first), *_refused(first), *_limits(job, given, first.keys)]
    rows += _credentials(job, first.keys)
    return [*rows, *_unmatched_limits(job, first), *(("warning", notice, "source") for notice in notices)]


def _first_keys(first: Chunk) -> list[Checked]:
    """The first keys that carry fields, with these."""
    shown = [key for key in dict.fromkeys(first.keys) if key in first.fields][:SHOWN_KEYS]
    fields = [", ".join(f"{name} = {showable(text)[:40]}" for name, text in first.fields[key].items()) for key in shown]
    return [("key", f"{showable(key)[:60]}: {text}", "source") for key, text in zip(shown, fields, strict=True)]


def _settings(job: Job, total: int | None, given: Mapping[str, str]) -> list[Checked]:
    run, request = job.run, job.request

    def origin(section: str, key: str) -> str:
        return _origin(job, given, section, key, option=key)

    return [
        ("run", run.name, origin("run", "name")),
        ("source", job.source.name, "job file"),
        ("keys", _keys_words(total, request.keys_per_request), "source"),
        ("request", request.url or "each key is a URL", origin("request", "url")),
        ("engine", f"{request.engine}{', HTTP/2' if request.http2 else ''}", origin("request", "engine")),
        ("user agent", request.user_agent, origin("request", "user_agent")),
        _robots(job),
        ("workers", run.workers or "one a core", origin("run", "workers")),
        ("concurrency", f"{run.concurrency} a worker", origin("run", "concurrency")),
        ("grace", f"{run.grace:g} s", origin("run", "grace")),
        ("batch rows", job.store.batch_rows, origin("store", "batch_rows")),
        ("attempts", job.retry.attempts, origin("retry", "attempts")),
        ("parser", job.parse.python or _parser_words(job), origin("parse", "python")),
        (
            "tables",
            ", ".join(table.name for table in job.tables) or "pages only",
            "job file" if job.tables else "default",
        ),
    ]


def _parser_words(job: Job) -> str:
    """What parses where no function of the user's does."""
    return "selectors" if job.has_parser else "none: whole body"


def _keys_words(total: int | None, keys_per_request: int) -> str:
    """About how many keys there are, and with several keys a request how many requests they take."""
    if total is None:
        return "unknown until read" + (f", up to {keys_per_request} a request" if keys_per_request > 1 else "")
    if keys_per_request == 1:
        return f"about {total:,}"
    requests = -(-total // keys_per_request)
    return f"about {total:,} keys in about {requests:,} requests of up to {keys_per_request} keys"


def _robots(job: Job) -> Checked:
    """Whether robots.txt is obeyed, and why."""
    request = job.request
    words = f"obeyed, as {product_token(request.user_agent) or '*'}" if request.obeys_robots else "not asked for"
    reason = "keys are URLs" if request.url is None else "an API by its template"
    return "robots.txt", words, f"default: {reason}" if request.robots is None else "job file"


def _refused(first: Chunk) -> list[Checked]:
    """How many of the first keys would be refused, and why the first of them."""
    if not first.refused:
        return []
    bad = first.refused[0]
    words = f"{len(first.refused):,} of the first {len(first.keys) + len(first.refused):,}"
    return [("refused", f"{words}: {bad.place} ({bad.key[:60]}) {bad.reason}", "source")]


def _credentials(job: Job, first_keys: Sequence[str]) -> list[Checked]:
    """Where each of the job's credentials goes, and how many of the first keys are asked for without them."""
    request, template = job.request, Template(job.request)
    rows: list[Checked] = []
    origins = credential_origins(request)
    names = ", ".join(credentials_in(request))
    if names and template.sample is not None:
        rows.append(("credentials", f"{names}: to {template.sample.origin.text}", "job file"))
    elif names and origins is not None:
        others = sum(template.target([key]).origin.text not in origins for key in first_keys)
        words = f"; {others:,} of the first {len(first_keys):,} keys go elsewhere, without" if others else ""
        rows.append(("credentials", f"{names}: to {', '.join(sorted(origins))}{words}", "job file"))
    if request.client_cert is not None:
        rows.append(("client certificate", "shown to every server that asks for one", "job file"))
    if request.proxy is not None and SECRET.search(request.proxy):
        rows.append(("proxy's secret", "to the proxy", "job file"))
    return rows


def _limits(job: Job, given: Mapping[str, str], first_keys: Sequence[str]) -> list[Checked]:
    # The document may spell a name in another way.
    origin = _origin(job, given, "limits", ANY_UPSTREAM, option="rate") if "rate" in given else "job file"
    rows: list[Checked] = [(f"limit of {name}", _limit_words(limit), origin) for name, limit in job.limits.items()]
    if unlimited := polite_upstream(job, lambda: first_keys):
        whose = "each host" if unlimited == ANY_UPSTREAM else unlimited
        rows.append((f"limit of {whose}", _limit_words(POLITE), "default: polite"))
    return rows


def _unmatched_limits(job: Job, first: Chunk) -> list[Checked]:
    """A warning for each limit that no request meets, as far as the first keys tell; redirects may lead there."""
    template, matcher = Template(job.request), UpstreamMatcher(job.limits)
    if template.sample is not None:
        targets, who = [template.sample], "the template does not meet"
    elif first.keys:
        targets = [template.target([key]) for key in first.keys]
        who = "no key meets" if first.exhausted else f"none of the first {len(targets):,} keys meets"
    else:
        return []
    for target in targets:
        matcher.upstream_of(target)
    return [
        ("warning", f'{who} [limits."{name}"]', "job file")
        for name in job.limits
        if name != ANY_UPSTREAM and name not in matcher.matched
    ]


def _limit_words(limit: LimitSettings) -> str:
    return limit.rate_text + ("" if limit.concurrency is None else f", {limit.concurrency} at once")


def _origin(job: Job, given: Mapping[str, str], section: str, key: str, *, option: str) -> str:
    """Where a setting comes from: an option, the option's environment variable, the job file, or the default.

    `given` says of each option that was given whether it came from the command line or the environment.
    """
    if option in given:
        return f"--{option.replace('_', '-')}" if given[option] == "commandline" else "environment"
    return "job file" if key in (job.document.get(section) or {}) else "default"
