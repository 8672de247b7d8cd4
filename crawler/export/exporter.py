"""Exports the tables of one run, file by file. The manifest is written last: who finds it finds all files.

What is written so far stands beside it until then, so that the same command goes on where it was interrupted. A
complete run's parts do not change, and their rows are taken in the order in which they lie: the same ones each time,
until Postgres writes a part anew (VACUUM FULL, CLUSTER): then the files of an unfinished export are, too.
When `retry` was called, the run is complete since another moment, which makes it another export.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import asyncpg
import orjson

from coordinator.errors import UsageError, first_line
from coordinator.failpoints import Failpoint, no_failpoint
from crawler.export.columns import ExportColumn, export_column
from crawler.export.formats import SUFFIXES, need_columns_extra, write_file
from crawler.export.place import FilePlace
from crawler.job.sections.publish import Format
from crawler.store.catalogue import Catalogue
from crawler.store.postgres import PostgresConnection, postgres_errors
from crawler.store.queries import query
from crawler.store.rows.stored_run import StoredRun
from crawler.store.tables import PAGES, RunTables, quoted

logger = logging.getLogger(__name__)

MANIFEST, PROGRESS, CARD = "manifest.json", "unfinished.json", "README.md"
DEFAULT_ROWS_PER_FILE = 1_000_000
_FIRST_PLACE = "(0,0)"
# Whoever wrote the manifest, what is removed because it names it is a file of an export.
_OUR_FILE = r"(?:data/)?\w+/(?:part|train)-\d{5,}\.[a-z.]+"


@dataclass(frozen=True, slots=True)
class ExportedFile:
    """A file that is there: its name, its number of rows, and where in the part, as `filenode` has it, these end."""

    table: str
    name: str
    rows: int
    last: str
    filenode: int


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """What is exported: these tables of a run, as which format, in files of so many rows."""

    run: StoredRun
    tables: Sequence[str]
    form: Format
    rows_per_file: int = DEFAULT_ROWS_PER_FILE

    def head(self) -> dict[str, object]:
        """What the manifest says beside the files. An export goes on where this is the same.

        A table that merges gets records of the run before when its run is published, and is not complete until then.
        """
        tables = self.run.document.get("tables", ())
        merges = any(table.get("mode") == "merge" and table["name"] in self.tables for table in tables)
        return {
            "corpus": self.run.corpus,
            "run": self.run.name,
            "run_id": self.run.run_id,
            "complete": self.run.complete and not (merges and self.run.published_at is None),
            "finished_at": self.run.finished_at and self.run.finished_at.isoformat(),
            "format": self.form,
            "rows_per_file": self.rows_per_file,
            "tables": list(self.tables),
        }


async def export(
    connection: PostgresConnection,
    plan: ExportPlan,
    place: FilePlace,
    on_rows: Callable[[int], None] = lambda _: None,
    *,
    replaces: bool = False,
    failpoint: Failpoint = no_failpoint,
) -> list[ExportedFile]:
    """Export a run to a place; returns the files. `on_rows` is told how many rows more are written.

    What the place has of this run in another state or format, or of one that was deleted and had its name, is removed
    first if this `replaces` it. Raises UsageError when another export is there, or a value does not fit;
    ShardcrawlError, PostgresUnavailable, PostgresRefused.
    """
    need_columns_extra(plan.form)
    with postgres_errors():
        async with connection.transaction(readonly=True, isolation="repeatable_read"):
            await connection.execute(query("export-settings"))
            if not await connection.fetchval(query("try-lock-place"), place.address):
                logger.info("another command exports to %s: this one waits for it", place.address)
                await connection.execute(query("lock-place"), place.address)
            now = await Catalogue(connection).find(plan.run.name)
            if now is None or now.finished_at != plan.run.finished_at:
                raise UsageError(f"export: run {plan.run.name} has changed just now; start again")
            if not replaces:
                _files_there(plan, place, replaces=False)  # what belongs to another export is left alone
            with place.alone():
                files = _files_there(plan, place, replaces=replaces)
                if place.read(MANIFEST) is None or not all(place.has(one.name) for one in files):
                    files, found = await _usable(connection, plan, place, files), files
                    if len(files) < len(found):
                        place.write(PROGRESS, _encoded(plan, files))
                        place.remove(MANIFEST)
                    for table in plan.tables:
                        await _export_table(connection, plan, table, place, files, on_rows, failpoint)
                    if plan.form == "hf":
                        place.write(CARD, data_set_card(plan).encode())
                    place.write(MANIFEST, _encoded(plan, files))
                    failpoint("whole")
                place.remove(PROGRESS)
    return files


async def _usable(
    connection: PostgresConnection, plan: ExportPlan, place: FilePlace, files: Sequence[ExportedFile]
) -> list[ExportedFile]:
    """Of each table the files with which an unfinished export goes on, up to the first that it cannot use."""
    found: list[ExportedFile] = []
    for table in plan.tables:
        stored = await connection.fetchrow(query("part-as-stored"), RunTables.of(plan.run).part(table))
        for one in (one for one in files if one.table == table):
            if stored is None or one.filenode != stored["filenode"] or not place.has(one.name):
                break
            found.append(one)
    return found


async def _export_table(
    connection: PostgresConnection,
    plan: ExportPlan,
    table: str,
    place: FilePlace,
    files: list[ExportedFile],
    on_rows: Callable[[int], None],
    failpoint: Failpoint,
) -> None:
    part = RunTables.of(plan.run).part(table)
    stored = await connection.fetchrow(query("part-as-stored"), part)
    own = [one for one in files if one.table == table]
    on_rows(sum(one.rows for one in own))
    while True:
        end = await connection.fetchrow(
            query("end-of-file", part=part), own[-1].last if own else _FIRST_PLACE, plan.rows_per_file
        )
        assert end is not None
        assert stored is not None
        if not end["rows"] and own:
            return
        name = file_name(plan.form, table, len(own))
        first, last = end["first"] or _FIRST_PLACE, end["last"] or _FIRST_PLACE
        columns = await export_columns(connection, plan.run, table)
        keys = ""
        if table != PAGES:
            columns[0], keys = await _joined_key(connection, plan.run, columns[0], part, (first, last))
        selected = selection(columns, plan.form)
        statement = query("rows-between", columns=selected, part=part, keys=keys, first=first, last=last)
        async with _in_thread(place.writing(name)) as path:
            row_bytes = stored["bytes"] // max(1, stored["rows"], end["rows"])
            try:
                await write_file(connection, statement, columns, plan.form, path, on_rows, row_bytes)
            except asyncpg.DataError as error:
                words = f"a value of table {table} cannot be exported as {plan.form}: {first_line(error)}"
                raise UsageError(f"export: {words}; an infinite date, for one") from error
        failpoint("filed")
        own.append(ExportedFile(table, name, end["rows"], last, stored["filenode"]))
        files.append(own[-1])
        place.write(PROGRESS, _encoded(plan, files))
        failpoint("listed")
        if not end["rows"]:  # a table without a row has one file, which says which columns it has
            return


@asynccontextmanager
async def _in_thread(writing: AbstractContextManager[Path]) -> AsyncIterator[Path]:
    """The same, beside the event loop: a bucket may take its time."""
    with ExitStack() as stack:
        path = await asyncio.to_thread(stack.enter_context, writing)
        try:
            yield path
        finally:
            await asyncio.to_thread(stack.pop_all().__exit__, *sys.exc_info())


async def _joined_key(
    connection: PostgresConnection, run: StoredRun, key: ExportColumn, part: str, ends: tuple[str, str]
) -> tuple[ExportColumn, str]:
    """The column of the key, and a join that has most keys of the records between two places."""
    pages = RunTables.of(run).pages
    about = await connection.fetchrow(query("pages-between", part=part, pages=pages), *ends)
    assert about is not None
    joined = query("keys-between", pages=pages, first=about["first"], last=about["last"])
    return export_column(key.name, key.type, query("key-between", key=key.source)), joined


async def export_columns(connection: PostgresConnection, run: StoredRun, table: str) -> list[ExportColumn]:
    """The columns of an export of this table: the key, what says whose row it is, and the table's own."""
    tables = RunTables.of(run)
    rows = await connection.fetch(query("columns-of"), tables.part(table))
    found = [export_column(row["name"], row["type"]) for row in rows]
    if table == PAGES:
        return found
    key = query("key-of-record", pages=tables.pages, run_id=run.run_id)
    return [export_column("_key", "text", key), *found]


def selection(columns: Sequence[ExportColumn], form: Format) -> str:
    """Pure: what is selected for these columns in this format, as in SELECT."""

    def expression(column: ExportColumn) -> str:
        if form == "csv":
            return column.source
        return column.in_json if form == "jsonl.zst" else column.expression

    return ", ".join(f"{expression(column)} AS {quoted(column.name)}" for column in columns)


async def run_named(catalogue: Catalogue, name: str) -> StoredRun:
    """The run of this name, or the current run of the corpus of this name. Raises UsageError when there is none."""
    await catalogue.prepare()
    if (run := await catalogue.find(name) or await catalogue.current(name)) is None:
        known = ", ".join(sorted({one.name for one in await catalogue.all()})) or "none"
        raise UsageError(f"no run {name}, and no corpus {name} with a published run; known runs: {known}")
    return run


async def count_rows(connection: PostgresConnection, plan: ExportPlan) -> int:
    """How many rows an export has in all."""
    tables = RunTables.of(plan.run)
    with postgres_errors():
        return sum(
            [int(await connection.fetchval(query("count-rows", part=tables.part(table)))) for table in plan.tables]
        )


def file_name(form: Format, table: str, number: int) -> str:
    """Pure: the name of a table's file."""
    if form == "hf":
        return f"data/{table}/train-{number:05}{SUFFIXES[form]}"
    return f"{table}/part-{number:05}{SUFFIXES[form]}"


def data_set_card(plan: ExportPlan) -> str:
    """Pure: the README of a folder that `datasets.load_dataset` reads, with a configuration for each table."""
    configs = "".join(
        f'- config_name: "{table}"\n  data_files:\n  - split: train\n    path: data/{table}/*.parquet\n'
        + ("  default: true\n" if table == plan.tables[0] else "")
        for table in plan.tables
    )
    return f"---\nconfigs:\n{configs}---\n\nRun {plan.run.name} of corpus {plan.run.corpus}, exported by shardcrawl.\n"


def _files_there(plan: ExportPlan, place: FilePlace, *, replaces: bool) -> list[ExportedFile]:
    """The files of this export that are there. Raises UsageError when there is another one, which is not replaced."""
    content = place.read(MANIFEST) or place.read(PROGRESS)
    if content is None:
        return []
    try:
        found = orjson.loads(content)
        files = [ExportedFile(**one) for one in found.pop("files")]
        if not all(re.fullmatch(_OUR_FILE, one.name) for one in files):
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError("export: there is another manifest.json in its place; name another one with -o") from error
    if found == plan.head():
        return files
    if not replaces or (found.get("corpus"), found.get("run")) != (plan.run.corpus, plan.run.name):
        other = ", ".join(f"{name}: {found.get(name)}" for name, own in plan.head().items() if found.get(name) != own)
        raise UsageError(
            f"export: there is another export in its place ({other}); name another one with -o, or remove that one"
        )
    place.write(PROGRESS, content)  # so that a crash leaves no file of which nobody knows
    for name in (MANIFEST, CARD, *(one.name for one in files), PROGRESS):
        place.remove(name)
    return []


def _encoded(plan: ExportPlan, files: Sequence[ExportedFile]) -> bytes:
    return orjson.dumps({**plan.head(), "files": [asdict(one) for one in files]}, option=orjson.OPT_INDENT_2)
