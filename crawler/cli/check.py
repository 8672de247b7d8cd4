"""Commands about a job file alone, which send nothing unless they are asked to: init, check, schema."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from redis.asyncio import Redis
from rich.console import Console

from coordinator.errors import ShardcrawlError, UsageError, redacted
from coordinator.redis.connection import check_server, connect_redis
from coordinator.redis.versions import read_server_kind, redis_flaw
from coordinator.source import FIRST_KEYS, Chunk, Cursor
from crawler.cli.display import rehearsals, screen
from crawler.cli.display.checked import Checked, checked_job
from crawler.cli.fetch import first_pages, print_values, request_first, trial_warnings
from crawler.cli.options import (
    Decorated,
    command,
    job_from,
    job_options,
    json_option,
    place_from,
    place_options,
    print_json,
    run_async,
)
from crawler.corpus import sample_corpus, survey_corpus, with_source_database
from crawler.fetch.network.credentials import resolve_every
from crawler.job.fixed import changed_setting, why_no_new_run
from crawler.job.job import Job
from crawler.job.reference import job_schema
from crawler.job.request.settings import RequestSettings
from crawler.local.services import Addresses, Place, services
from crawler.parse import hook
from crawler.parse.code import differing_file, parser_files
from crawler.runs.naming import with_name
from crawler.store.address import address_warnings
from crawler.store.catalogue import open_catalogue
from crawler.store.schema import postgres_flaw, read_version, refuse_older, schema_version
from crawler.transform.here import load_transforms

if TYPE_CHECKING:
    from crawler.rehearsal import Rehearsal

NO_CONTACT_WARNING = "set [request] user_agent to who you are and how to reach you"


# The folders in starts/, each with its option's help.
STARTS = {
    "api": "An API that gives JSON for each id (the default).",
    "html": "Web pages, and rows from them by CSS selectors.",
    "sitemap": "The pages that a site's sitemap names.",
    "graphql": "A GraphQL API, by POST.",
    "images": "Files, kept byte for byte.",
}


def _start_options(function: Decorated) -> Decorated:
    for kind, words in reversed(STARTS.items()):
        function = click.option(f"--{kind}", "kind", flag_value=kind, help=words)(function)
    return function


@command("init")
@click.argument("folder", metavar="[DIR]", type=click.Path(path_type=Path), default=Path())
@_start_options
def init_command(folder: Path, kind: str | None) -> None:
    """Write a job to begin with: job.toml, its keys and a README. It asks nothing and overwrites nothing.

    Example: shardcrawl init my-crawl --html
    """
    start = {file.name: file.read_bytes() for file in files(__package__).joinpath("starts", kind or "api").iterdir()}
    names = sorted(start)
    if there := [name for name in names if (folder / name).exists()]:
        raise UsageError(f"init: {folder / there[0]} is there already, and nothing was written; name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            with (folder / name).open("xb") as file:
                file.write(start[name])
    except OSError as error:
        raise ShardcrawlError(f"init: {error.filename}: {error.strerror}; name a folder that can be written") from error
    click.echo(f"wrote {', '.join(names)}; next: edit them, then shardcrawl check {folder / 'job.toml'}")


@command("check")
@click.argument("job", metavar="JOB|SOURCE")
@place_options("warning")
@job_options
@click.option(
    "--try",
    "first",
    type=click.IntRange(1, FIRST_KEYS),
    metavar="N",
    help="Also request the first N keys, within the job's limits, and show their rows; nothing is stored.",
)
@json_option
@click.pass_context
def check_command(ctx: click.Context, /, job: str, first: int | None, as_json: bool, **options: Any) -> None:
    """Validate job, parser, source and services; sends no request. Example: shardcrawl check job.toml

    With --try it does; exit code 1 when none of these keys would be stored. Example: shardcrawl check job.toml --try 5
    """
    given = {
        name: source.name.lower()
        for name in options
        if (source := ctx.get_parameter_source(name)) is not None and source.name in ("COMMANDLINE", "ENVIRONMENT")
    }
    described, console = job_from(job, options), Console()
    settings: list[Mapping[str, Any]] = []

    def report(rows: Sequence[Checked]) -> None:
        settings.extend({"what": what, "value": value, "from": origin} for what, value, origin in rows)
        if as_json:
            return
        # A table cuts what is long, and these say what to do.
        remarks = [(what, value) for what, value, _ in rows if what in ("warning", "refused")]
        screen.print_rows(["what", "value", "from"], [row for row in rows if (row[0], row[1]) not in remarks])
        for what, value in remarks:
            click.echo(f"{what}: {value}")
        state = "the job can run" if remarks else "the job is fine"
        click.echo(f"{state}; nothing was sent" if first is None else f"{state}\n")

    def show(found: Sequence[Rehearsal]) -> None:
        if not as_json:
            rehearsals.print_request(found, console)

    found = run_async(_check(place_from(options), described, given, os.environ, report, first or 0, show))
    if first is None:
        if as_json:
            print_json(settings)
        return
    warnings = trial_warnings(described, found)
    stored = sum(one.is_stored for one in found)
    if as_json:
        keys = [one.as_json() for one in found]
        print_values({"settings": settings, "keys": keys, "warnings": warnings})
    else:
        rehearsals.print_tables(described.tables, found, console)
        for warning in warnings:
            click.echo(f"warning: {warning}")
        click.echo(f"\na run would store {stored:,} of these {len(found):,} keys; nothing was stored now")
    sys.exit(0 if stored else 1)


@command("schema")
def schema_command() -> None:
    """Print the JSON Schema of the job file, for editors. Example: shardcrawl schema > job.schema.json"""
    print_json(job_schema())


async def _check(
    place: Place,
    job: Job,
    given: Mapping[str, str],
    environ: Mapping[str, str],
    report: Callable[[Sequence[Checked]], None],
    first_keys: int,
    show: Callable[[Sequence[Rehearsal]], None],
) -> list[Rehearsal]:
    """Check everything that a run needs and report it; then request the first keys, and return what became of them.

    Raises ShardcrawlError for the first thing that is wrong.
    """
    for one in job.every_kind:
        hook.load(job, kind=one.kind)
    load_transforms(job)
    resolve_every(job.every_kind, environ)
    # A query needs a database, which may have to be started; any other source is read before that.
    no_keys = Chunk([], [], Cursor(), exhausted=False)
    rows, first = ([], no_keys) if job.source.query else await _source_rows(job, given, first_keys)
    async with services(place, share=True) as addresses:
        if job.source.query:
            rows, first = await _source_rows(with_source_database(job, addresses.database, environ), given, first_keys)
        client = connect_redis(addresses.redis)
        try:
            rows += await _services(client, addresses, place, job, given)
            report(rows)
            keys = list(dict.fromkeys(first.keys[:first_keys]))
            if first_keys and job.source.sitemap:
                keys = await first_pages(job, keys, first_keys, client, environ, show)
            return await request_first(job, keys, first.fields, client, environ, show)
        finally:
            await client.aclose()


async def _source_rows(job: Job, given: Mapping[str, str], first_keys: int) -> tuple[list[Checked], Chunk]:
    """The job's settings, and what its first keys tell; and these. Raises SourceError, UsageError."""
    notices: list[str] = []
    first = await asyncio.to_thread(sample_corpus, job, notices.append)
    _, total = await asyncio.to_thread(survey_corpus, job)
    if first_keys and not first.keys:
        raise UsageError("--try: the source has no key to begin with, or is read once; give one to `shardcrawl fetch`")
    rows = [*checked_job(job, first, total, given), *(("warning", notice, "source") for notice in notices)]
    return rows, first


async def _services(
    client: Redis, addresses: Addresses, place: Place, job: Job, given: Mapping[str, str]
) -> list[Checked]:
    """What there is to say of the servers, and of what they have of the run."""
    warnings = await check_server(client, addresses.redis)
    redis = await read_server_kind(client)
    postgres = await read_version(addresses.database)
    async with open_catalogue(addresses.database) as catalogue:
        await refuse_older(catalogue.connection)
        store, before = job.store, []
        if await schema_version(catalogue.connection):
            job = await with_name(job, catalogue)
            before = [run for run in await catalogue.all() if run.corpus == job.corpus]
        stored, added = await catalogue.rehearse(job.run.name, job.tables, store.schema, job.corpus, store.compression)
        current = await catalogue.current(job.corpus) if stored is None else None
    if stored is None and (refused := why_no_new_run(job, before[-1] if before else None, current)):
        raise UsageError(refused)
    rows: list[Checked] = [("columns", f"a new run {column}", "postgres") for column in added]
    if job.run.refresh and stored is None:
        rows.append(("base", current.name if current else "none: the first run of its corpus", "postgres"))
    if stored is not None:
        stored.refuse_cancelled()
        if changed := changed_setting(job, stored):
            raise UsageError(changed)
        state = "complete already: nothing is left to do" if stored.complete else "begun before: it goes on"
        rows.append(("state", state, "postgres"))
        if not stored.complete and (name := differing_file(stored.parser_files, parser_files(job).digests)):
            rows.append(
                ("warning", f"{name} has changed since the run was opened last: the new parser goes on", "parser")
            )
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
