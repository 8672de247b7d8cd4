"""The command init: a commented job to begin with, from the files in starts/."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import click

from coordinator.errors import ShardcrawlError, UsageError
from crawler.cli.options import Decorated, command

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
