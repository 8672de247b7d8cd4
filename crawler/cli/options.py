"""What all commands share: their options, and turning an error into one line and an exit code."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import select
import shlex
import sys
import traceback
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click
import orjson
import uvloop

from coordinator.errors import ShardcrawlError, UsageError
from coordinator.source import STANDARD_INPUT
from crawler.cli.display.progress import RunScreen, printable
from crawler.job.document import JobOverrides, load_document
from crawler.job.job import Job, read_job
from crawler.local.child_spec import INTERRUPTED_EXIT_CODE
from crawler.local.events import Listener
from crawler.local.services import Addresses, Place
from crawler.telemetry import logs
from crawler.telemetry.health import Health

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
CommandResult = TypeVar("CommandResult")

# As the shell shows a program that SIGPIPE has ended.
BROKEN_PIPE_EXIT_CODE = 141
DATA_FOLDER = Path(".shardcrawl")
logger = logging.getLogger(__name__)

LOG_LEVELS = ("debug", "info", "warning", "error")
_OPEN_FILE = re.compile(r"/dev/stdin|/(?:dev|proc/self)/fd/([0-9]+)")
GRACE_HELP = "Seconds that a drain may take before the process leaves at once."


class Command(click.Command):
    """Turns our errors into one line and an exit code; a traceback only with --debug."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; every ShardcrawlError and interruption ends here."""
        debug = bool(ctx.params.get("debug"))
        level = "DEBUG" if debug else str(ctx.params.get("log_level", "info"))
        as_json = ctx.params.get("log_format") == logs.JSON
        for_people = logs.TIME if sys.stderr.isatty() else logs.DATE_AND_TIME
        logs.configure("shardcrawl", level, logs.JSON if as_json else for_people, in_thread=as_json)
        try:
            return super().invoke(ctx)
        except ShardcrawlError as error:
            if debug:
                traceback.print_exc()
            text = " ".join(str(error).split())
            if as_json:
                logger.error("%s", text, extra={"event": "command_failed"})
            else:
                click.echo(f"error: {printable(text)}", err=True)
            ctx.exit(error.exit_code)
        except (KeyboardInterrupt, asyncio.CancelledError):
            ctx.exit(INTERRUPTED_EXIT_CODE)
        except ConnectionError:
            if not _reader_is_gone(sys.stdout.fileno()):
                raise
            # Who reads our output, like `head`, has enough. What is still to be flushed must not fail at the exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(BROKEN_PIPE_EXIT_CODE)


def _reader_is_gone(output: int) -> bool:
    """Whether nobody reads a pipe or socket any more: a socket may say "reset" first, where a pipe says "broken"."""
    ready = select.poll()
    ready.register(output, 0)
    return any(state & (select.POLLERR | select.POLLHUP) for _, state in ready.poll(0))


command = partial(click.command, cls=Command)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def option(name: str, envvar: str | None = None, **attributes: Any) -> Callable[[Decorated], Decorated]:
    """An option that is read from the environment too, as SHARDCRAWL_NAME."""
    return click.option(name, envvar=envvar or f"SHARDCRAWL_{name[2:].replace('-', '_').upper()}", **attributes)


health_option = option(
    "--health",
    metavar="[HOST:]PORT",
    help="Answer /healthz there: 200 while all processes move, else 503 (HOST: 127.0.0.1 by default).",
)
allow_private_option = option(
    "--allow-private",
    multiple=True,
    metavar="NETWORK",
    help="A network that is not public and may be fetched from, like 127.0.0.0/8; may be given again.",
)


def place_options(level: str) -> Callable[[Decorated], Decorated]:
    """Options that say where Redis and Postgres are, and which log lines are shown (by default from `level` on)."""
    return lambda function: _with_options(
        function,
        option("--redis", "REDIS_URL", metavar="URL", help="Redis; embedded in --data without it."),
        option("--database", "DATABASE_URL", metavar="URL", help="Postgres; embedded in --data without it."),
        option(
            "--data",
            type=click.Path(path_type=Path),
            default=DATA_FOLDER,
            show_default=True,
            help="Folder of the embedded Redis and Postgres.",
        ),
        option(
            "--log-level",
            type=click.Choice(LOG_LEVELS, case_sensitive=False),
            default=level,
            show_default=True,
            help="Least level of log lines; above info no progress is shown, but on a terminal.",
        ),
        option(
            "--log-format",
            type=click.Choice(("text", logs.JSON)),
            default="text",
            show_default=True,
            help="How log lines are written: for people, or an object of JSON a line.",
        ),
        option("--debug", is_flag=True, help="Tell everything; show tracebacks."),
    )


def job_options(function: Decorated) -> Decorated:
    """Options that beat the job file."""
    return _with_options(
        function,
        option("--name", help="Name of the run; a run of the same name is resumed."),
        option("--refresh", is_flag=True, help="Ask only for what has changed since the corpus' current run."),
        option("--workers", type=click.IntRange(1, 1024), help="Worker processes (default: cores)."),
        option("--concurrency", type=click.IntRange(1, 100_000), help="Requests in flight a worker."),
        option("--rate", help='Requests a second of the whole fleet: 50, "50/s", "5000/h", "none".'),
        option("--grace", type=click.FloatRange(0, 3600), help=f"{GRACE_HELP} (default: 25)"),
        option("--batch-rows", type=click.IntRange(1, 100_000), help="Rows that wait for one commit, at most."),
        allow_private_option,
    )


def place_from(options: Mapping[str, Any]) -> Place:
    """Where Redis and Postgres are, from the options of a command."""
    return Place(redis=options["redis"], database=options["database"], data=options["data"])


def shared_addresses(place: Place, name: str) -> Addresses:
    """The user's addresses, for a command that several machines run. Raises UsageError when one is missing."""
    if not place.redis or not place.database:
        raise UsageError(
            f"{name} serves several machines and needs shared services: set REDIS_URL and DATABASE_URL "
            "(on one machine `shardcrawl run` starts its own)"
        )
    return Addresses(place.redis, place.database)


def find_again(place: Place) -> str:
    """The option with which another command finds the same place: none, or --data."""
    return "" if place.database or place.data == DATA_FOLDER else f" --data {shlex.quote(str(place.data))}"


def job_from(argument: str, options: Mapping[str, Any]) -> Job:
    """The job of a job file or of a bare source, with the command's options in it. Raises UsageError."""
    overrides = JobOverrides(**{field.name: options[field.name] for field in fields(JobOverrides)})
    document, folder, names_corpus = load_document(_or_standard_input(argument), overrides)
    source = document.get("source")
    if isinstance(source, dict) and isinstance(source.get("path"), str):
        source["path"] = _or_standard_input(source["path"])
    return replace(read_job(document, folder), names_corpus=names_corpus)


def _or_standard_input(path: str) -> str:
    """The path; "-" for one that names an open file of this process, such as /dev/stdin, or what bash makes of <(…).

    That file becomes standard input, which is the only one that the reading child inherits.
    """
    if (named := _OPEN_FILE.fullmatch(path)) is None:
        return path
    if number := int(named[1] or 0):
        try:
            os.dup2(number, 0)
        except OSError as error:
            raise UsageError(f"source {path}: {error.strerror}; open it for this command, or name a file") from error
    return STANDARD_INPUT


def listener_from(options: Mapping[str, Any], screen: RunScreen, health: Health | None = None) -> Listener:
    """A listener that shows events on this screen; the options say which, and how much children log."""
    on_children = None if health is None else health.watch
    debug = options["debug"]
    level = "DEBUG" if debug else options["log_level"].upper()
    on_event = screen if level in ("DEBUG", "INFO") else screen.only_what_is_wrong
    return Listener(on_event, screen.progress_seconds, log_level=level, debug=debug, on_children=on_children)


def run_async(coroutine: Coroutine[Any, Any, CommandResult]) -> CommandResult:
    """The result of a command's coroutine."""
    return uvloop.run(coroutine)


def print_json(value: Any) -> None:
    """Print a value as JSON for people and programs."""
    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2))


def _with_options(function: Decorated, *options: Callable[[Decorated], Decorated]) -> Decorated:
    for add in reversed(options):
        function = add(function)
    return function
