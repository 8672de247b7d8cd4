"""The command line: `shardcrawl` and its commands."""

from __future__ import annotations

import atexit
import gc
import sys
from importlib import import_module
from io import TextIOWrapper
from typing import Any

import click

# The module of each command. Only that of the named one is imported, so that a command begins sooner.
MODULES = {
    **dict.fromkeys(("run", "demo", "coordinate", "work"), "run"),
    **dict.fromkeys(("status", "runs", "sql", "audit"), "inspect"),
    **dict.fromkeys(("pause", "resume", "workers", "limit", "retry", "rebuild"), "steer"),
    **dict.fromkeys(("publish", "rollback", "cancel", "prune"), "versions"),
    **dict.fromkeys(("init", "check", "schema"), "check"),
    **{name: f"rows.{name}" for name in ("diff", "export")},
    **{name: name for name in ("fetch", "serve")},
}


class CommandGroup(click.Group):
    """The commands, each imported when it is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click passes it
        """The names of all commands, in order."""
        return sorted(MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click passes it
        """The command of this name; None when there is none."""
        if cmd_name not in MODULES:
            return None
        gc.disable()  # what is imported stays: looking for garbage in it took a sixth of the time
        try:
            command: click.Command = getattr(import_module(f"crawler.cli.{MODULES[cmd_name]}"), f"{cmd_name}_command")
        finally:
            gc.enable()
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; here ends an interruption that came while it was imported."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(130)  # INTERRUPTED_EXIT_CODE of crawler.local, which is not imported yet


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="shardcrawl")
def main() -> None:
    """Refresh a corpus of keys from a rate-limited upstream into Postgres, exactly once."""
    atexit.register(gc.freeze)  # the end of the process frees everything: a last search for garbage takes time
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal that cannot show a character shows its number
            stream.reconfigure(errors="backslashreplace")
