"""Commands that change a run which exists: pause, resume, workers, limit, retry, rebuild."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from coordinator.errors import UsageError
from coordinator.model import Outcome, RunCounts, Steering
from coordinator.redis.connection import check_server, connect_redis
from coordinator.status import read_counts
from crawler.cli.display.progress import outcome_words, say
from crawler.cli.options import command, place_from, place_options, run_async
from crawler.corpus import with_source_database
from crawler.job.job import read_job
from crawler.local.services import Addresses, Place, opened_services, services
from crawler.model import DENIED_STATUSES
from crawler.opening import open_run
from crawler.runs.steering import WantedLimit, change_limit, put_back, steer_run, wanted_limit, whole_number
from crawler.store.catalogue import Catalogue, open_catalogue
from crawler.store.reasons import PagesToRetry

MAX_WORKERS = 100_000
RETRIED_BY_DEFAULT = f"failed, or refused with status {', '.join(map(str, DENIED_STATUSES))}"


@command("limit")
@click.argument("name", metavar="RUN")
@click.argument("upstream")
@place_options("warning")
@click.option("--rate", help='Requests a second: 50, "50/s, 5000/h", "auto", "none"; "default": as the job says.')
@click.option("--ceiling", help='What an "auto" rate may never exceed, like 200/s.')
@click.option("--concurrency", help='Requests in flight of the whole fleet, "none", or "default": as the job says.')
def limit_command(
    name: str, upstream: str, rate: str | None, ceiling: str | None, concurrency: str | None, **options: Any
) -> None:
    """Change what a run that goes on may ask of an upstream, at once and for all of its workers.

    It holds until it is changed again or the run is complete.
    Example: shardcrawl limit my-run en.wikipedia.org --rate 20
    """
    wanted = wanted_limit(rate, ceiling, concurrency)
    changed = run_async(_change_limit(place_from(options), name, upstream, wanted))
    say(Console(), f"run {name}: the limit of {changed} is changed for every worker; `shardcrawl status` shows it")


@command("pause")
@click.argument("name", metavar="RUN")
@place_options("warning")
def pause_command(name: str, **options: Any) -> None:
    """Send no more requests in a run, on all machines, until it is resumed. Example: shardcrawl pause my-run

    What is in flight is finished and stored. Workers stay, and so does the pause when they or Redis start again.
    """
    run_async(_steer(place_from(options), name, lambda now: replace(now, paused=True)))
    say(Console(), f"run {name} is paused on all machines; go on with: shardcrawl resume {name}")


@command("resume")
@click.argument("name", metavar="RUN")
@place_options("warning")
def resume_command(name: str, **options: Any) -> None:
    """Let a run that was paused go on. Example: shardcrawl resume my-run"""
    run_async(_steer(place_from(options), name, lambda now: replace(now, paused=False)))
    say(Console(), f"run {name} goes on")


@command("workers")
@click.argument("name", metavar="RUN")
@click.option("--max", "most", required=True, metavar="N", help='How many workers it may have, or "none".')
@place_options("warning")
def workers_command(name: str, most: str, **options: Any) -> None:
    """Bound the workers of a run, whatever number of processes is started. Example: shardcrawl workers my-run --max 4

    Those beyond it finish what they have in flight and leave; they come back when there is room.
    """
    bound = whole_number(most, MAX_WORKERS)
    if bound is None and most != "none":
        raise UsageError(f'workers: --max is {most!r:.50}; write a number from 1 to {MAX_WORKERS:,}, or "none"')
    run_async(_steer(place_from(options), name, lambda now: replace(now, max_workers=bound)))
    words = "as many workers as there are" if bound is None else f"{bound:,} worker{'' if bound == 1 else 's'} at most"
    say(Console(), f"run {name} has {words}, on all machines; to send nothing at all: shardcrawl pause {name}")


@command("retry")
@click.argument("name", metavar="RUN")
@click.option(
    "--outcome",
    "outcomes",
    multiple=True,
    type=click.Choice([outcome.value for outcome in Outcome if outcome is not Outcome.STORED]),
    help=f"Keys that ended so, whatever their status (default: {RETRIED_BY_DEFAULT}); may be given again.",
)
@click.option(
    "--status",
    "statuses",
    multiple=True,
    type=click.IntRange(100, 999),
    metavar="CODE",
    help="Only keys whose last response had this status; may be given again.",
)
@click.option("--reason", metavar="TEXT", help="Only keys whose reason has this text in it.")
@click.option("--lists", is_flag=True, help="All pages of the lists that are incomplete, from their first page on.")
@place_options("info")
def retry_command(
    name: str, outcomes: Sequence[str], statuses: Sequence[int], reason: str | None, lists: bool, **options: Any
) -> None:
    """Let failed and refused keys of a run go back into it. Example: shardcrawl retry my-run --status 401 --status 403

    They are fetched by the run or coordinate under way, or by the next one. Everything else stays as it is. Stored
    keys cannot go back, but for those of incomplete lists with --lists: begin a new run for them.
    """
    if lists and (outcomes or statuses or reason):
        raise UsageError("retry: --lists takes whole lists; leave the other options out")
    wanted = PagesToRetry(tuple(map(Outcome, outcomes)), tuple(statuses), reason, lists)
    keys = run_async(_retry(place_from(options), name, wanted))
    if not keys:
        if lists:
            say(Console(), f"run {name} has no incomplete list: nothing is changed")
            return
        what = f"is {RETRIED_BY_DEFAULT}" if not outcomes and not statuses else "ended so"
        say(Console(), f"run {name} has no key that {what}{' with this reason' if reason else ''}: nothing is changed")
        return
    go = "key goes" if sum(keys.values()) == 1 else "keys go"
    words = f"{outcome_words(RunCounts(outcomes=dict(keys)))} {go} back into run {name}"
    say(Console(), f"{words}; a command at work on it takes them, else: shardcrawl run JOB, or coordinate JOB")


@command("rebuild")
@click.argument("name", metavar="RUN")
@place_options("info")
def rebuild_command(name: str, **options: Any) -> None:
    """Make a run's state in Redis anew from Postgres; then run or coordinate go on. Example: shardcrawl rebuild my-run

    Call it where the job file is, so that a source with a relative path is found.
    """
    done = run_async(_rebuild(place_from(options), name, str(Path.cwd())))
    say(Console(), f"run {name} is rebuilt: {done:,} keys are done; go on with shardcrawl run JOB, or coordinate JOB")


async def _steer(place: Place, name: str, change: Callable[[Steering], Steering]) -> None:
    async with opened_services(place) as (_, client, database):
        await steer_run(client, database, name, change)


async def _change_limit(place: Place, name: str, upstream: str, wanted: WantedLimit) -> str:
    async with opened_services(place) as (connection, client, _):
        return await change_limit(Catalogue(connection), client, name, upstream, wanted)


async def _retry(place: Place, name: str, wanted: PagesToRetry) -> Mapping[Outcome, int]:
    async with opened_services(place) as (connection, _, _):
        return await put_back(Catalogue(connection), name, wanted)


async def _rebuild(place: Place, name: str, folder: str) -> int:
    """Make a run's state in Redis anew; `folder` is where relative paths begin when Redis lost the run.

    Returns how many keys are done.
    """
    async with services(place) as addresses, _catalogue(addresses) as catalogue:
        run = await catalogue.find(name)
        if run is None or run.complete:
            why = "is complete: it needs no Redis any more" if run else "is not known"
            raise UsageError(f"run {name} {why}; `shardcrawl runs` lists every run")
        run.refuse_cancelled()
        client = connect_redis(addresses.redis)
        try:
            await check_server(client, addresses.redis)
            await catalogue.void_epoch(run.run_id, run.epoch)
            job = with_source_database(read_job(run.document, run.folder or folder), addresses.database, os.environ)
            opened = await open_run(client, addresses.database, job)
            assert opened.record is not None
            return (await read_counts(client, name)).done
        finally:
            await client.aclose()


@asynccontextmanager
async def _catalogue(addresses: Addresses) -> AsyncIterator[Catalogue]:
    """The runs in Postgres, with the schema made if it was missing."""
    async with open_catalogue(addresses.database) as catalogue:
        await catalogue.prepare()
        yield catalogue
