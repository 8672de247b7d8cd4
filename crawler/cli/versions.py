"""Commands about runs as versions of a corpus: publish, rollback, cancel, prune."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from time import monotonic, time
from typing import Any, TypeAlias

import click
from rich.console import Console

from coordinator.errors import DataInUse, Unavailable, UsageError
from coordinator.failpoints import Failpoint, failpoint_at
from coordinator.model import Outcome, RunCounts
from crawler.cli.display.progress import byte_words, outcome_words, say
from crawler.cli.options import command, place_from, place_options, run_async
from crawler.cli.run import FALLS_SHORT_EXIT_CODE, NO_FILES_EXIT_CODE
from crawler.export.published import PublishedFiles, export_published
from crawler.job.fields import AGE, AGE_FORMS
from crawler.job.request_checks import seconds_of
from crawler.local.child_spec import FAILPOINT_VARIABLE
from crawler.local.services import Place, opened_services
from crawler.runs.cancel import cancel_run
from crawler.runs.prune import Part, check_corpus, orphans, prunable, prune, run_sizes
from crawler.runs.publish import publish_run, roll_back
from crawler.store.rows.stored_run import StoredRun

# How long the embedded servers of a command that was cancelled may take to stop.
SERVERS_STOP_SECONDS = 30.0
RETRY_SECONDS = 0.2
# Runs, tables of deleted runs, and the sizes of all runs.
Pruned: TypeAlias = tuple[list[StoredRun], list[Part], Mapping[int, tuple[int, bool]]]


@command("publish")
@click.argument("name", metavar="RUN")
@click.option("--force", is_flag=True, help="Publish it also when it does not keep the bounds of [publish].")
@place_options("warning")
def publish_command(name: str, force: bool, **options: Any) -> None:
    """Let readers see a complete run, from one moment on; also an older one. Example: shardcrawl publish my-run --force

    Exit code 4 when it falls short of [publish]: then it stays as it is; 7 when files that it wants are not written.
    """
    run, held_back, files = run_async(_publish(place_from(options), name, force))
    if held_back:
        say(Console(), f"run {name} is not published: {held_back}")
        sys.exit(FALLS_SHORT_EXIT_CODE)
    say(Console(), f"run {name} is published: readers of corpus {run.corpus} see it now")
    _say_files(files)


@command("rollback")
@click.argument("corpus")
@place_options("warning")
def rollback_command(corpus: str, **options: Any) -> None:
    """Let readers see the run that was published before the current one. Example: shardcrawl rollback revisions

    Nothing is deleted: `shardcrawl publish RUN` goes forward again.
    """
    now, before, files = run_async(_roll_back(place_from(options), corpus))
    say(Console(), f"readers of corpus {corpus} see run {now} now; go forward again with: shardcrawl publish {before}")
    _say_files(files)


@command("cancel")
@click.argument("name", metavar="RUN")
@click.option("--drop", is_flag=True, help="Delete its rows, and free its name.")
@place_options("warning")
def cancel_command(name: str, drop: bool, **options: Any) -> None:
    """End a run that is not complete, everywhere: it is never gone on with. Example: shardcrawl cancel my-run

    Workers and coordinators on all machines finish what is in flight, and leave it.
    """
    counts = run_async(_cancel(place_from(options), name, drop))
    say(Console(), f"run {name} is cancelled; {'its rows are deleted' if drop else kept_words(counts)}")


@command("prune")
@click.argument("corpus")
@click.option("--keep", type=click.IntRange(1), metavar="N", help="Keep so many runs that were published.")
@click.option("--older-than", metavar="AGE", help="Delete runs that ended longer ago than this: 90d, 12h.")
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
@place_options("warning")
def prune_command(corpus: str, keep: int | None, older_than: str | None, dry_run: bool, **options: Any) -> None:
    """Delete old and cancelled runs of a corpus with their rows, and what deleted runs have left.

    Never the run that readers see, one that goes on, or the base of one. Example: shardcrawl prune revisions --keep 3
    """
    if (keep is None) == (older_than is None):
        raise UsageError("prune: give either --keep N or --older-than AGE")
    if older_than is not None and not re.fullmatch(AGE, older_than):
        raise UsageError(f"prune: --older-than is {older_than!r}; {AGE_FORMS}")
    # No run is older than 1970, and a datetime cannot be much older.
    before = datetime.fromtimestamp(max(0.0, time() - seconds_of(older_than)), UTC) if older_than else None
    look = _prunable if dry_run else _prune
    runs, parts, sizes = run_async(look(place_from(options), corpus, keep, before))
    console = Console()
    for run in runs:
        state = "cancelled" if run.cancelled else "published" if run.published_at else "never published"
        say(console, f"run {run.name} ({state}, {run.created_at:%Y-%m-%d}): {byte_words(sizes[run.run_id][0])}")
    known = {run.run_id for run in runs}
    if left := [part for part in parts if part.of_run.run_id not in known]:
        names = ", ".join(part.name for part in left)
        say(console, f"left by deleted runs: {names}: {byte_words(sum(part.size for part in left))}")
    verb = "would be deleted" if dry_run else "deleted"
    say(console, f"{len(runs):,} run{'' if len(runs) == 1 else 's'} of corpus {corpus} {verb}")


def kept_words(counts: Mapping[Outcome, int]) -> str:
    """What a cancelled run leaves: "20 stored keys stay in Postgres"."""
    if not counts:
        return "no keys of it are in Postgres"
    return f"{outcome_words(RunCounts(outcomes=dict(counts)))} keys stay in Postgres"


def _say_files(files: PublishedFiles | None) -> None:
    """Say what became of the files of a run that readers see now, and exit if they are not written."""
    if files is not None:
        say(Console(), files.words)
        if files.fault:
            sys.exit(NO_FILES_EXIT_CODE)


async def _publish(place: Place, name: str, force: bool) -> tuple[StoredRun, str, PublishedFiles | None]:
    async with opened_services(place) as (connection, _, database):
        run, held_back = await publish_run(connection, name, force=force, failpoint=_failpoint("publish"))
        if held_back:
            return run, held_back, None
        return run, "", await export_published(database, run.corpus, name, failpoint=_failpoint("export"))


async def _roll_back(place: Place, corpus: str) -> tuple[str, str, PublishedFiles | None]:
    async with opened_services(place) as (connection, _, database):
        now, before = await roll_back(connection, corpus)
        return now, before, await export_published(database, corpus, now, failpoint=_failpoint("export"))


async def _cancel(place: Place, name: str, drop: bool) -> Mapping[Outcome, int]:
    """Cancel a run; embedded servers that stop meanwhile with the command that worked on it are started again."""
    deadline = monotonic() + SERVERS_STOP_SECONDS
    while True:
        try:
            async with opened_services(place) as (_, client, database):
                return await cancel_run(client, database, name, drop=drop, failpoint=_failpoint("cancel"))
        except (Unavailable, DataInUse):
            if (place.redis and place.database) or monotonic() > deadline:
                raise
            await asyncio.sleep(RETRY_SECONDS)


async def _prune(place: Place, corpus: str, keep: int | None, before: datetime | None) -> Pruned:
    async with opened_services(place) as (connection, client, database):
        await check_corpus(connection, corpus)
        sizes = await run_sizes(connection)
        failpoint = _failpoint("prune")
        runs, parts = await prune(connection, client, database, corpus, keep=keep, before=before, failpoint=failpoint)
        return runs, parts, sizes


async def _prunable(place: Place, corpus: str, keep: int | None, before: datetime | None) -> Pruned:
    async with opened_services(place) as (connection, _, _):
        await check_corpus(connection, corpus)
        runs = await prunable(connection, corpus, keep=keep, before=before)
        return runs, await orphans(connection), await run_sizes(connection)


def _failpoint(process: str) -> Failpoint:
    return failpoint_at(os.environ.get(FAILPOINT_VARIABLE), process)
