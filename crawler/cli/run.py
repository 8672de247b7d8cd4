"""Commands that work on runs: run, demo, coordinate, work."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import click
import orjson
from rich.console import Console

from coordinator.errors import ShardcrawlError, redacted
from crawler.cli.display import screen
from crawler.cli.display.progress import RunScreen, say
from crawler.cli.options import (
    GRACE_HELP,
    allow_private_option,
    command,
    find_again,
    health_option,
    job_from,
    job_options,
    listener_from,
    option,
    place_from,
    place_options,
    print_json,
    run_async,
    shared_addresses,
)
from crawler.job.job import read_job
from crawler.job.permissions import Permissions
from crawler.job.request_checks import parse_network
from crawler.local.child_spec import INTERRUPTED_EXIT_CODE
from crawler.local.embedded.folder import DataFolder, open_folder
from crawler.local.events import RunEnd
from crawler.local.run import run_at, run_in, work
from crawler.local.services import Place, services
from crawler.sample import upstream
from crawler.telemetry.health import Health

TOO_MANY_FAILED_EXIT_CODE = 3
GAVE_UP_EXIT_CODE = FALLS_SHORT_EXIT_CODE = 4
NO_FILES_EXIT_CODE = 7
DEMO_QUERIES = (
    "select outcome, count(*) as keys from pages_current group by outcome",
    "select key, status, body->>'title' as title, fetched_at from pages_current order by key limit 5",
)


@command("run")
@click.argument("job", metavar="JOB|SOURCE")
@place_options("info")
@job_options
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def run_command(job: str, as_json: bool, **options: Any) -> None:
    """Run a job file (.toml), or a file of URLs ("-": standard input), on this machine until it is complete.

    A run of the same name is resumed: finished keys are skipped. Example: shardcrawl run urls.txt --rate 50
    """
    place = place_from(options)
    with RunScreen(Console(stderr=True)) as progress:
        end = run_async(run_in(place, job_from(job, options), listener_from(options, progress), os.environ))
    if as_json:
        print_json(screen.end_json(end))
    else:
        _print_end(end, place)
    sys.exit(exit_code_of(end))


@command("coordinate")
@click.argument("job", metavar="JOB")
@place_options("info")
@job_options
@health_option
def coordinate_command(job: str, health: str | None, **options: Any) -> None:
    """Plan and tidy one run for the workers of other machines; a second one stands by and takes over.

    Example: REDIS_URL=redis://… DATABASE_URL=postgresql://… shardcrawl coordinate job.toml
    """
    place = place_from(options)
    addresses = shared_addresses(place, "coordinate")
    with RunScreen(Console(stderr=True)) as progress:
        healthy = Health()
        listener = listener_from(options, progress, healthy)
        coordinate = partial(run_at, addresses, job_from(job, options), listener, os.environ, with_workers=False)
        end = run_async(healthy.serving(health, os.environ, coordinate))
    _print_end(end, place)
    sys.exit(exit_code_of(end))


@command("work")
@place_options("info")
@option("--workers", type=click.IntRange(1, 1024), help="Worker processes (default: cores).")
@option("--grace", type=click.FloatRange(0, 3600), default=25.0, show_default=True, help=GRACE_HELP)
@option(
    "--allow-parser",
    multiple=True,
    metavar="MODULE:FUNCTION",
    help="A parser or transform that jobs may run here, like parse:revisions; * is any text; may be given again.",
)
@option(
    "--allow-env",
    multiple=True,
    metavar="NAME",
    help="A secret of this environment that jobs may send, like TOKEN; * stands for any text; may be given again.",
)
@allow_private_option
@health_option
def work_command(
    workers: int | None,
    grace: float,
    allow_parser: tuple[str, ...],
    allow_env: tuple[str, ...],
    allow_private: tuple[str, ...],
    health: str | None,
    **options: Any,
) -> None:
    """Work on every active run of this Redis until stopped. A run that wants more than is allowed here is named.

    Example: REDIS_URL=redis://… DATABASE_URL=postgresql://… shardcrawl work --workers 8
    """
    for network in allow_private:
        parse_network(network)
    permissions = Permissions(allow_parser, allow_env, allow_private)
    addresses = shared_addresses(place_from(options), "work")
    healthy = Health()
    listener = listener_from(options, RunScreen(Console(stderr=True)), healthy)
    workers = workers or os.cpu_count() or 1
    do_work = partial(
        work, addresses, listener, os.environ, workers=workers, grace_seconds=grace, permissions=permissions
    )
    run_async(healthy.serving(health, os.environ, do_work))


@command("demo")
@place_options("info")
@click.option(
    "--keys", default=20_000, show_default=True, type=click.IntRange(1, 10_000_000), help="Size of the corpus."
)
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1, 64), help="Worker processes.")
@click.option(
    "--port", default=0, type=click.IntRange(0, 65_535), help="Port of the sample upstream (default: a free one)."
)
def demo_command(keys: int, workers: int, port: int, **options: Any) -> None:
    """Crawl a sample corpus from a bundled local upstream, start to end. Example: shardcrawl demo --keys 5000"""
    sys.exit(exit_code_of(run_async(_demo(place_from(options), options, keys=keys, workers=workers, port=port))))


async def _demo(place: Place, options: Mapping[str, Any], *, keys: int, workers: int, port: int) -> RunEnd:
    """Run a sample corpus against the bundled upstream, then show its outcomes and some rows."""
    from crawler.cli.inspect import query_rows  # `run` does not need it, and importing takes time

    async with services(place) as addresses, _sample_upstream(port) as url:
        corpus = _write_corpus(place.data, "".join(f"item-{number:07}\n" for number in range(keys)))
        document = {
            "run": {"name": f"demo-{datetime.now(UTC):%Y%m%d-%H%M%S}", "workers": workers},
            "source": {"path": str(corpus)},
            "request": {"url": f"{url}/item/{{key}}", "allow_private": ["127.0.0.0/8"]},
            "limits": {"*": {"rate": "none"}},
        }
        with RunScreen(Console(stderr=True)) as progress:
            progress.say(f"the sample upstream listens at {url}; {keys:,} keys, {workers} workers")
            job = read_job(document, str(corpus.parent))
            end = await run_at(addresses, job, listener_from(options, progress), os.environ)
        out, at = Console(), find_again(place)
        screen.print_summary(end, out, again="shardcrawl demo", at=at)
        if end.stored is not None:
            for query in DEMO_QUERIES:
                say(out, "")
                say(out, f'shardcrawl sql{at} "{query}"')
                screen.print_table(*await query_rows(addresses.database, query), out)
            say(out, f"everything is kept in {place.data}; next: shardcrawl run YOUR-URLS.txt --rate 10")
        return end


def _write_corpus(data: Path, text: str) -> Path:
    """Write the sample corpus into the data folder, which must be ours; returns its path."""
    with closing(open_folder(data)) as folder:
        demo = DataFolder(folder.path / "demo", folder.open_folder("demo"))
        with closing(demo), os.fdopen(demo.open_file("keys.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "w") as file:
            file.write(text)
        return demo.path / "keys.txt"


@asynccontextmanager
async def _sample_upstream(port: int) -> AsyncIterator[str]:
    """The URL of the bundled upstream, which runs as a process of its own until the context ends."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        upstream.__name__,
        "--port",
        str(port),
        "--stdin-guard",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        line = await process.stdout.readline()
        if not line:
            _, errors = await process.communicate()
            words = (errors.decode(errors="replace").strip().splitlines() or ["it ended at once"])[-1]
            raise ShardcrawlError(f"the sample upstream does not start: {words}; choose another --port")
        yield str(orjson.loads(line)["url"])
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def _print_end(end: RunEnd, place: Place) -> None:
    again = shlex.join(["shardcrawl", *(redacted(word) if "://" in word else word for word in sys.argv[1:])])
    screen.print_summary(end, Console(), again=again, at=find_again(place))


def exit_code_of(end: RunEnd) -> int:
    """The exit code of a command that ended so: 0 complete, 3 too many failed, 4 refused or held back because it falls
    short, 7 published without its files, 130 interrupted.
    """
    if end.stored is None:
        return GAVE_UP_EXIT_CODE if end.gave_up else INTERRUPTED_EXIT_CODE
    if end.stored.falls_short:
        return FALLS_SHORT_EXIT_CODE
    if end.files is not None and end.files.fault:
        return NO_FILES_EXIT_CODE
    return TOO_MANY_FAILED_EXIT_CODE if end.too_many_failed else 0
