"""What requests keys and stores nothing: the command fetch, and `check --try`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from redis.asyncio import Redis
from rich.console import Console

from coordinator.errors import UsageError
from coordinator.redis.connection import check_server, connect_redis
from crawler.cli.display import rehearsals, screen
from crawler.cli.display.rehearsals import rows_of
from crawler.cli.options import (
    command,
    job_from,
    job_options,
    json_option,
    place_from,
    place_options,
    run_async,
)
from crawler.job.job import Job
from crawler.job.sections.source import SITEMAP
from crawler.local.services import Place, redis_alone

if TYPE_CHECKING:
    from crawler.rehearsal import Rehearsal

NAMED_KEYS = 3
MAX_SITEMAPS = 10


@command("fetch")
@click.argument("key", metavar="KEY")
@click.option("--job", required=True, metavar="JOB", help="The job file.")
@click.option("--save", "folder", type=click.Path(path_type=Path), metavar="DIR", help="Write the response there.")
@click.option("--field", "fields", multiple=True, metavar="NAME=TEXT", help="What the source carries with the key.")
@click.option("--kind", default="", metavar="KIND", help="The key's kind, one of the job's [kinds].")
@place_options("warning")
@job_options
@json_option
def fetch_command(
    key: str, job: str, folder: Path | None, fields: Sequence[str], kind: str, as_json: bool, **options: Any
) -> None:
    """Request one key as a run would, and show what it would store. Needs no Postgres.

    Exit code 0 when the key would be stored, else 1. Example: shardcrawl fetch Q42 --job job.toml --save samples
    """
    from crawler import rehearsal  # it needs all that a worker does, and other commands begin sooner without that

    described = job_from(job, options)
    carried = {name: text for name, _, text in (field.partition("=") for field in fields)}

    async def fetch(place: Place) -> rehearsal.Rehearsal:
        async with redis_alone(place) as url:
            client = connect_redis(url)
            try:
                await check_server(client, url)
                return (await rehearsal.rehearse(described, [key], client, os.environ, {key: carried}, kind))[0]
            finally:
                await client.aclose()

    found = run_async(fetch(place_from(options)))
    path = None if folder is None else rehearsal.save(found, folder)
    if as_json:
        print_values({**found.as_json(), "saved": path and str(path)})
    else:
        rehearsals.print_rehearsal(found, Console())
        if path is not None:
            click.echo(f"saved in {path}, for crawler.testing.parse_file")
    sys.exit(0 if found.is_stored else 1)


async def request_first(
    job: Job,
    keys: Sequence[str],
    fields: Mapping[str, Mapping[str, str]],
    client: Redis,
    environ: Mapping[str, str],
    show: Callable[[Sequence[Rehearsal]], None],
) -> list[Rehearsal]:
    """Request these keys as a run would, one request after another; `show` gets what became of each request.

    Keys of a request on which the parser fails are requested alone. Raises what `rehearse` does.
    """
    from crawler.rehearsal import rehearse  # it needs all that a worker does, and `check` alone begins sooner without

    found: list[Rehearsal] = []
    size = job.request.keys_per_request
    waiting = [keys[start : start + size] for start in range(0, len(keys), size)]
    while waiting:
        together = waiting.pop(0)
        part = await rehearse(job, together, client, environ, fields)
        show(part)
        if len(together) > 1 and part[0].parsed is not None and part[0].parsed.traceback is not None:
            waiting = [*([key] for key in together), *waiting]
        else:
            found += part
    return found


async def first_pages(
    job: Job,
    sitemaps: Sequence[str],
    most: int,
    client: Redis,
    environ: Mapping[str, str],
    show: Callable[[Sequence[Rehearsal]], None],
) -> list[str]:
    """The first pages that the job's sitemaps name, of as few of these as have so many. Raises UsageError for none."""
    from crawler.rehearsal import rehearse

    waiting, pages, requests = list(sitemaps), list[str](), 0
    while waiting and len(pages) < most and requests < MAX_SITEMAPS:
        requests += 1
        part = await rehearse(job, [waiting.pop(0)], client, environ, kind=SITEMAP)
        show(part)
        for key, kind in part[0].parsed.found if part[0].parsed is not None else ():
            (waiting if kind == SITEMAP else pages).append(key)
    if not pages:
        raise UsageError(f"--try: none of {requests} sitemaps names a page; see above, and [source] sitemap and since")
    return pages[:most]


def trial_warnings(job: Job, found: Sequence[Rehearsal]) -> list[str]:
    """Pure: stored keys without a row, tables without a row, and columns that are null in every row."""
    parsed = {one.key: one.parsed.tables for one in found if one.is_stored and one.parsed is not None}
    warnings: list[str] = []
    empty: list[str] = []
    if job.own_tables and (empty := [key for key, tables in parsed.items() if not any(tables.values())]):
        named = ", ".join(empty[:NAMED_KEYS]) + (", …" if len(empty) > NAMED_KEYS else "")
        warnings.append(f"{len(empty):,} of {len(parsed):,} stored keys have no row: {named}")
    for table in job.own_tables if len(empty) < len(parsed) else ():
        rows = rows_of(table, found)
        if not rows:
            warnings.append(f"table {table.name} has no row")
        null = [column for column, _ in table.columns if rows and all(row[column] is None for row in rows)]
        warnings += [f"{table.name}.{column} is null in every row ({len(rows):,})" for column in null]
    return warnings


def print_values(shown: Mapping[str, Any]) -> None:
    """Print values of columns among others as JSON."""
    click.echo(json.dumps(shown, indent=2, ensure_ascii=False, default=screen.plain))
