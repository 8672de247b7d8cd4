"""The command `export`: a run's rows as files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any, get_args

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from coordinator.errors import UsageError
from coordinator.failpoints import failpoint_at
from crawler.cli.display.progress import say
from crawler.cli.options import command, json_option, place_from, place_options, print_json, run_async
from crawler.export import exporter
from crawler.export.exporter import DEFAULT_ROWS_PER_FILE, ExportedFile, ExportPlan, run_named
from crawler.export.place import open_place
from crawler.job.sections.publish import Format
from crawler.local.child_spec import FAILPOINT_VARIABLE
from crawler.local.services import Place, services
from crawler.store.catalogue import open_catalogue
from crawler.store.rows.stored_run import StoredRun
from crawler.store.tables import PAGES


@command("export")
@click.argument("name", metavar="RUN|CORPUS")
@click.option("--table", "tables", multiple=True, help="Only this table; pages is one, too; may be given again.")
@click.option(
    "--format",
    "form",
    type=click.Choice(get_args(Format)),
    default="parquet",
    show_default=True,
    help="hf is a folder that `datasets.load_dataset` reads.",
)
@click.option("-o", "--output", required=True, metavar="DIR|s3://…", help="A folder, or a bucket with a folder in it.")
@click.option(
    "--rows-per-file", type=click.IntRange(1), default=DEFAULT_ROWS_PER_FILE, show_default=True, help="Rows of a file."
)
@click.option(
    "--partial", "unfinished", is_flag=True, help="Also of a run that is not complete, with the rows that it has now."
)
@place_options("warning")
@json_option
def export_command(
    name: str,
    tables: tuple[str, ...],
    form: Format,
    output: str,
    rows_per_file: int,
    unfinished: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Write the rows of a run, or of a corpus' current run, as files; manifest.json comes last.

    The same command goes on with an export that was interrupted. Example: shardcrawl export my-corpus -o out/
    """
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not Console(stderr=True).is_terminal,
    )
    with progress:
        files = run_async(_export(place_from(options), name, tables, form, output, rows_per_file, unfinished, progress))
    if as_json:
        print_json(files)
        return
    rows = sum(one.rows for one in files)
    say(
        Console(),
        f"{rows:,} rows in {len(files):,} file{'' if len(files) == 1 else 's'} and manifest.json, in {output}",
    )


async def _export(
    place: Place,
    name: str,
    tables: Sequence[str],
    form: Format,
    output: str,
    rows_per_file: int,
    unfinished: bool,
    progress: Progress,
) -> list[ExportedFile]:
    async with services(place, share=True) as addresses, open_catalogue(addresses.database) as catalogue:
        run = await run_named(catalogue, name)
        if not run.complete and not unfinished:
            raise UsageError(f"export: run {run.name} is not complete; --partial exports what it has now")
        plan = ExportPlan(run, _chosen(run, tables), form, rows_per_file)
        task = progress.add_task(run.name, total=await exporter.count_rows(catalogue.connection, plan))
        on_rows = partial(progress.advance, task)
        failpoint = failpoint_at(os.environ.get(FAILPOINT_VARIABLE), "export")
        return await exporter.export(catalogue.connection, plan, open_place(output), on_rows, failpoint=failpoint)


def _chosen(run: StoredRun, tables: Sequence[str]) -> list[str]:
    """The tables to export: by default those of the job, or pages when it has none. Raises UsageError."""
    own = run.table_names
    if unknown := [table for table in tables if table not in (PAGES, *own)]:
        raise UsageError(f"export: run {run.name} has no table {unknown[0]}; it has {', '.join([PAGES, *own])}")
    return list(tables) or own or [PAGES]
