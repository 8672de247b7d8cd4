"""The door: click commands; they build objects and hold no logic."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
import orjson
import uvloop
from rich.console import Console

from coordinator.errors import ShardcrawlError, redacted
from crawler.audit import auditor
from crawler.cli import check, commands, demo, limit, screen
from crawler.cli.progress import say
from crawler.job.overrides import JobOverrides, load_document
from crawler.local.child import INTERRUPTED
from crawler.local.run import DATA, Place, RunEnd, Voice, run
from crawler.telemetry import logs

Command = TypeVar("Command", bound=Callable[..., Any])

LEVELS = ("debug", "info", "warning", "error")
GRACE = "Seconds that a drain may take before the process leaves at once."


def _option(name: str, envvar: str | None = None, **attributes: Any) -> Callable[[Command], Command]:
    """An option that is read from the environment too, as SHARDCRAWL_NAME."""
    return click.option(name, envvar=envvar or f"SHARDCRAWL_{name[2:].replace('-', '_').upper()}", **attributes)


def _with(command: Command, *options: Callable[[Command], Command]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def placed(level: str) -> Callable[[Command], Command]:
    """Options that say where Redis and Postgres are, and how much is told: from `level` on, unless the user wants."""
    return lambda command: _with(
        command,
        _option("--redis", "REDIS_URL", metavar="URL", help="Redis; embedded in --data without it."),
        _option("--database", "DATABASE_URL", metavar="URL", help="Postgres; embedded in --data without it."),
        _option(
            "--data",
            type=click.Path(path_type=Path),
            default=DATA,
            show_default=True,
            help="Folder of the embedded Redis and Postgres.",
        ),
        _option(
            "--log-level",
            type=click.Choice(LEVELS, case_sensitive=False),
            default=level,
            show_default=True,
            help="Least level of log lines.",
        ),
        _option("--debug", is_flag=True, help="Tell everything; show tracebacks."),
    )


def tuned(command: Command) -> Command:
    """Options that beat the job file."""
    return _with(
        command,
        _option("--name", help="Name of the run; a run of the same name is resumed."),
        _option("--workers", type=click.IntRange(1, 1024), help="Worker processes (default: cores)."),
        _option("--concurrency", type=click.IntRange(1, 100_000), help="Requests in flight a worker."),
        _option("--rate", help='Requests a second of the whole fleet: 50, "50/s", "5000/h", "none".'),
        _option("--grace", type=click.FloatRange(0, 3600), help=f"{GRACE} (default: 25)"),
        _option("--batch-rows", type=click.IntRange(1, 100_000), help="Rows that wait for one commit, at most."),
        _option(
            "--allow-private",
            multiple=True,
            metavar="NETWORK",
            help="A network that is not public and may be fetched from, like 127.0.0.0/8; may be given again.",
        ),
    )


class _Command(click.Command):
    """Turns our errors into one line and an exit code; a traceback only with --debug."""

    def invoke(self, ctx: click.Context) -> Any:
        debug = bool(ctx.params.get("debug"))
        logs.configure("shardcrawl", "DEBUG" if debug else str(ctx.params.get("log_level", "info")))
        try:
            return super().invoke(ctx)
        except ShardcrawlError as error:
            if debug:
                traceback.print_exc()
            click.echo(f"error: {' '.join(str(error).split())}", err=True)
            ctx.exit(error.exit_code)
        except (KeyboardInterrupt, asyncio.CancelledError):
            ctx.exit(INTERRUPTED)


class _Group(click.Group):
    command_class = _Command


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="shardcrawl")
def main() -> None:
    """Refresh a corpus of keys from a rate-limited upstream into Postgres, exactly once."""


@main.command("run")
@click.argument("job", metavar="JOB|SOURCE")
@placed("info")
@tuned
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def run_command(job: str, as_json: bool, **options: Any) -> None:
    """Run a job file (.toml), or a file of URLs ("-": standard input), on this machine until it is complete.

    A run of the same name is resumed: finished keys are skipped. Example: shardcrawl run urls.txt --rate 50
    """
    place, voice, overrides = _split(options)
    document, folder = load_document(job, overrides)
    end = _await(run(place, document, folder, voice))
    _finish(end, place, as_json)


@main.command("demo")
@placed("info")
@click.option(
    "--keys", default=20_000, show_default=True, type=click.IntRange(1, 10_000_000), help="Size of the corpus."
)
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1, 64), help="Worker processes.")
@click.option(
    "--port", default=0, type=click.IntRange(0, 65_535), help="Port of the sample upstream (default: a free one)."
)
def demo_command(keys: int, workers: int, port: int, **options: Any) -> None:
    """Crawl a sample corpus from a bundled local upstream, start to end. Example: shardcrawl demo --keys 5000"""
    place, voice, _ = _split(options)
    end = _await(demo.demo(place, voice, keys=keys, workers=workers, port=port))
    sys.exit(_exit_code(end))


@main.command()
@click.argument("job", metavar="JOB")
@placed("info")
@tuned
def coordinate(job: str, **options: Any) -> None:
    """Plan and tidy one run for the workers of other machines; a second one stands by and takes over.

    Example: REDIS_URL=redis://… DATABASE_URL=postgresql://… shardcrawl coordinate job.toml
    """
    place, voice, overrides = _split(options)
    document, folder = load_document(job, overrides)
    end = _await(commands.coordinate(place, document, folder, voice))
    _finish(end, place, False)


@main.command()
@placed("info")
@_option("--workers", type=click.IntRange(1, 1024), help="Worker processes (default: cores).")
@_option("--grace", type=click.FloatRange(0, 3600), default=25.0, show_default=True, help=GRACE)
def work(workers: int | None, grace: float, **options: Any) -> None:
    """Work on every active run of this Redis until stopped.

    Example: REDIS_URL=redis://… DATABASE_URL=postgresql://… shardcrawl work --workers 8
    """
    place, voice, _ = _split(options)
    _await(commands.work(place, voice, workers=workers or os.cpu_count() or 1, grace=grace))


@main.command()
@click.argument("name", metavar="RUN", required=False)
@placed("warning")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(name: str | None, as_json: bool, **options: Any) -> None:
    """Show where a run stands, or every run that is not complete. Example: shardcrawl status my-run --json"""
    place, _, _ = _split(options)
    found = _await(commands.status(place, name))
    if as_json:
        listed = [screen.snapshot_json(snapshot) for snapshot in found]
        _print_json(listed[0] if name else listed)
        return
    console = Console()
    if not found:
        say(console, "no run is under way; `shardcrawl runs` lists the complete ones")
    for snapshot in found:
        screen.snapshot_text(snapshot, console)


@main.command()
@placed("warning")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def runs(as_json: bool, **options: Any) -> None:
    """List every run, with its counts. Example: shardcrawl runs --json"""
    place, _, _ = _split(options)
    columns, records = _await(commands.runs(place))
    _print_rows(columns, records, as_json=as_json, as_csv=False)


@main.command()
@click.argument("query")
@placed("warning")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
def sql(query: str, as_json: bool, as_csv: bool, **options: Any) -> None:
    """Query the results; reads only. Example: shardcrawl sql "select outcome, count(*) from pages group by 1" """
    place, _, _ = _split(options)
    columns, records = _await(commands.sql(place, query))
    _print_rows(columns, records, as_json=as_json, as_csv=as_csv)


@main.command()
@click.argument("name", metavar="RUN")
@placed("info")
def rebuild(name: str, **options: Any) -> None:
    """Make a run's state in Redis anew from Postgres; then run or coordinate go on. Example: shardcrawl rebuild my-run

    Call it where the job file is, so that a source with a relative path is found.
    """
    place, _, _ = _split(options)
    done = _await(commands.rebuild(place, name, str(Path.cwd())))
    say(Console(), f"run {name} is rebuilt: {done:,} keys are done; go on with shardcrawl run or coordinate")


@main.command()
@click.argument("name", metavar="RUN")
@click.option("--reason", metavar="TEXT", help="Only keys whose reason has this text in it.")
@placed("info")
def retry(name: str, reason: str | None, **options: Any) -> None:
    """Let the failed keys of a run go back into it, complete or not. Example: shardcrawl retry my-run --reason 503

    They are fetched by the next run, or by the coordinate that is under way. Everything else stays as it is.
    """
    place, _, _ = _split(options)
    keys = _await(commands.retry(place, name, reason))
    if not keys:
        say(Console(), f"run {name} has no failed keys{' with this reason' if reason else ''}: nothing is changed")
        return
    say(Console(), f"{keys:,} failed keys go back into run {name}; go on with shardcrawl run or coordinate")


@main.command("limit")
@click.argument("name", metavar="RUN")
@click.argument("upstream")
@placed("warning")
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
    place, _, _ = _split(options)
    changed = limit.change_limit(place, name, upstream, rate=rate, ceiling=ceiling, concurrency=concurrency)
    say(
        Console(),
        f"run {name}: the limit of {_await(changed)} is changed for every worker; `shardcrawl status` shows it",
    )


@main.command("check")
@click.argument("job", metavar="JOB|SOURCE")
@placed("warning")
@tuned
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def check_command(ctx: click.Context, /, job: str, as_json: bool, **options: Any) -> None:
    """Validate job, parser, source and services; sends no request. Example: shardcrawl check job.toml"""
    place, _, overrides = _split(options)
    document, folder = load_document(job, overrides)
    given = {
        name: source.name.lower()
        for name in options
        if (source := ctx.get_parameter_source(name)) is not None and source.name in ("COMMANDLINE", "ENVIRONMENT")
    }
    lines = _await(check.check(place, document, folder, given, os.environ))
    if as_json:
        _print_json([{"what": what, "value": value, "from": origin} for what, value, origin in lines])
        return
    _print_rows(["what", "value", "from"], lines, as_json=False, as_csv=False)
    click.echo("the job is fine; nothing was sent")


@main.command("audit")
@click.argument("name", metavar="RUN")
@placed("warning")
@click.option(
    "--requests",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The upstream's log, a path or URL last in each line: no key was asked for twice.",
)
@click.option(
    "--allowed",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    metavar="N",
    help="Requests in that log that may repeat a key: retries, and what killed workers had in flight.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def audit_command(name: str, requests: Path | None, allowed: int, as_json: bool, **options: Any) -> None:
    """Compare what source, Postgres and Redis say about a run; changes nothing. Example: shardcrawl audit my-run

    Exit code 0 when all of it agrees, 1 when not.
    """
    place, _, _ = _split(options)
    found = _await(auditor.audit(place, name, str(Path.cwd()), requests, allowed))
    if as_json:
        _print_json(found)
    else:
        rows = [(one.what, one.found, one.expected, "ok" if one.ok else "BROKEN", one.note) for one in found]
        _print_rows(["what", "found", "expected", "", "note"], rows, as_json=False, as_csv=False)
    if broken := sum(not one.ok for one in found):
        raise ShardcrawlError(
            f"run {name}: {broken} of {len(found)} findings do not hold; `--json` shows their notes in full"
        )


def _split(options: Mapping[str, Any]) -> tuple[Place, Voice, JobOverrides]:
    rest = dict(options)
    place = Place(redis=rest.pop("redis"), database=rest.pop("database"), data=rest.pop("data"))
    level, debug = rest.pop("log_level"), rest.pop("debug")
    voice = Voice(Console(stderr=True), level="DEBUG" if debug else level.upper(), debug=debug)
    return place, voice, JobOverrides(**rest)


def _await(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return uvloop.run(coroutine)


def _finish(end: RunEnd, place: Place, as_json: bool) -> None:
    if as_json:
        _print_json(screen.end_json(end))
    else:
        again = shlex.join(["shardcrawl", *(redacted(word) if "://" in word else word for word in sys.argv[1:])])
        screen.summary(end, Console(), again=again, at=place.options)
    sys.exit(_exit_code(end))


def _exit_code(end: RunEnd) -> int:
    if end.stored is None:
        return INTERRUPTED
    return 3 if end.too_many_failed else 0


def _print_json(value: Any) -> None:
    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())


def _print_rows(columns: list[str], records: list[Any], *, as_json: bool, as_csv: bool) -> None:
    if as_json:
        click.echo(screen.rows_json(columns, records))
    elif as_csv:
        click.echo(screen.rows_csv(columns, records), nl=False)
    else:
        screen.rows(columns, records, Console())
