from __future__ import annotations

import asyncio
import csv
import errno
import io
import json
import os
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn

import pytest
import zstandard
from arro3.core import Table
from arro3.io import read_ipc, read_parquet

from coordinator.errors import ShardcrawlError, UsageError
from crawler.export.exporter import ExportPlan, export
from crawler.export.formats import ROW_GROUP_BYTES, rows_of_fetch
from crawler.export.place import Folder
from crawler.job.sections.publish import Format
from crawler.job.tables import TableSettings
from crawler.store.catalogue import Catalogue
from crawler.store.tables import RunTables
from tests.crawler.examples import LoadingRun, a_loading_run, a_page, finished

pytestmark = pytest.mark.anyio

COLUMNS = {
    "small": "smallint",
    "big": "bigint",
    "price": "numeric(10, 2)",
    "exact": "numeric",
    "real": "double precision",
    "yes": "boolean",
    "word": "text",
    "day": "date",
    "at": "timestamptz",
    "local": "timestamp",
    "clock": "time",
    "doc": "jsonb",
    "raw": "bytea",
    "raws": "bytea[]",
    "lag": "interval",
    "numbers": "bigint[]",
    "prices": "numeric(8,3)[]",
    "words": "text[]",
}
ROW: dict[str, Any] = {
    "small": -7,
    "big": 2**62 + 1,
    "price": Decimal("-12345678.90"),
    "exact": Decimal("1234567890123456789.000000001"),
    "real": 0.1,
    "yes": True,
    "word": 'é "quoted", and\nanother line',
    "day": date(1969, 12, 31),
    "at": datetime(2026, 11, 27, 1, 2, 3, 456789, tzinfo=UTC),
    "local": datetime(1950, 1, 1, 0, 0, 0, 1),
    "clock": time(23, 59, 59, 999999),
    "doc": '{"a": [1, null]}',
    "raw": b"\x00\xff",
    "raws": [b"\x00\xff", None],
    "lag": None,
    "numbers": [1, None, 3],
    "prices": [Decimal("1.500"), None],
    "words": [],
}
IN_ARROW = ROW | {"exact": str(ROW["exact"])}
TABLE = TableSettings(name="facts", column_settings=COLUMNS)
NULLS = dict.fromkeys(COLUMNS)


@pytest.fixture
async def run(database: str) -> AsyncIterator[LoadingRun]:
    """A complete run of 25 keys: one with all values, one with a row of nulls, the others with a number."""
    async with a_loading_run(database, TABLE) as run:
        pages = [a_page("first", records=[tuple(ROW.values())]), a_page("second", records=[tuple(NULLS.values())])]
        pages += [a_page(f"key-{n}", records=[tuple((NULLS | {"big": n}).values())]) for n in range(23)]
        await run.store(pages)
        await finished(run.eye, RunTables(run.run_id), run.epoch, [TABLE])
        yield run


async def a_plan(run: LoadingRun, form: Format, *, rows: int = 10, tables: tuple[str, ...] = ("facts",)) -> ExportPlan:
    stored = await Catalogue(run.eye).find("test")
    assert stored is not None
    return ExportPlan(stored, tables, form, rows)


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of one exported file."""
    match path.suffix:
        case ".parquet":
            table = Table(read_parquet(path))
        case ".arrow":
            table = Table(read_ipc(path))
        case ".csv":
            return list(csv.DictReader(io.StringIO(path.read_text())))
        case _:
            return [json.loads(line) for line in zstandard.decompress(path.read_bytes(), 10**7).splitlines()]
    names = table.schema.names
    columns = [[value.as_py() for value in table.column(name)] for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def written_at(path: Path) -> tuple[int, int]:
    """Which file it is, and when it was written: reading it changes neither."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns


@pytest.mark.parametrize("form", ["parquet", "arrow"])
async def test_every_type_comes_back_as_it_was_stored(run: LoadingRun, tmp_path: Path, form: Format) -> None:
    files = await export(run.eye, await a_plan(run, form), Folder(tmp_path))
    assert [one.rows for one in files] == [10, 10, 5]
    rows = {row["_key"]: row for one in files for row in read(tmp_path / one.name)}
    assert len(rows) == 25
    first = {name: rows["first"][name] for name in COLUMNS}
    first["doc"] = json.loads(first["doc"])
    assert first == IN_ARROW | {"doc": {"a": [1, None]}}
    assert {rows["second"][name] for name in COLUMNS} == {None}


async def test_texts_have_every_value_exactly(run: LoadingRun, tmp_path: Path) -> None:
    for form in ("csv", "jsonl.zst"):
        await export(run.eye, await a_plan(run, form, rows=100), Folder(tmp_path / form))
    (row,) = [row for row in read(tmp_path / "csv/facts/part-00000.csv") if row["_key"] == "first"]
    assert (row["exact"], row["word"], row["raw"], row["at"]) == (
        *(str(ROW["exact"]), ROW["word"], "\\x00ff", "2026-11-27 01:02:03.456789+00"),
    )
    (row,) = [row for row in read(tmp_path / "jsonl.zst/facts/part-00000.jsonl.zst") if row["_key"] == "first"]
    assert (row["exact"], row["prices"], row["doc"], row["raw"], row["raws"], row["big"]) == (
        *(str(ROW["exact"]), ["1.500", None], {"a": [1, None]}, "00ff", ["00ff", None], ROW["big"]),
    )


async def test_an_export_that_was_interrupted_goes_on_and_a_whole_one_is_left_as_it_is(
    run: LoadingRun, tmp_path: Path
) -> None:
    plan, written = await a_plan(run, "parquet"), 0

    def interrupt(rows: int) -> None:
        nonlocal written
        written += rows
        if written > 10:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await export(run.eye, plan, Folder(tmp_path), interrupt)
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["part-00000.parquet", "unfinished.json"]
    first = written_at(tmp_path / "facts/part-00000.parquet")
    files = await export(run.eye, plan, Folder(tmp_path))
    assert written_at(tmp_path / "facts/part-00000.parquet") == first
    keys = [row["_key"] for one in files for row in read(tmp_path / one.name)]
    assert len(keys) == len(set(keys)) == 25
    assert not (tmp_path / "unfinished.json").exists()
    assert await export(run.eye, plan, Folder(tmp_path)) == files
    assert written_at(tmp_path / "facts/part-00000.parquet") == first


async def test_an_export_that_is_cancelled_within_a_file_can_go_on_with_the_same_connection(
    run: LoadingRun, tmp_path: Path
) -> None:
    plan, written = await a_plan(run, "parquet"), 0

    def cancel(rows: int) -> None:
        nonlocal written
        written += rows
        if written > 10:
            task.cancel()

    task = asyncio.create_task(export(run.eye, plan, Folder(tmp_path), cancel))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["part-00000.parquet", "unfinished.json"]
    files = await export(run.eye, plan, Folder(tmp_path))
    keys = [row["_key"] for one in files for row in read(tmp_path / one.name)]
    assert len(keys) == len(set(keys)) == 25


async def test_another_export_is_not_overwritten(run: LoadingRun, tmp_path: Path) -> None:
    await export(run.eye, await a_plan(run, "csv"), Folder(tmp_path))
    of_another_form, of_other_files = await a_plan(run, "parquet"), await a_plan(run, "csv", rows=7)
    for other, differs in ((of_another_form, "format: csv"), (of_other_files, "rows_per_file: 10")):
        with pytest.raises(UsageError, match=rf"there is another export in its place \({differs}\);"):
            await export(run.eye, other, Folder(tmp_path))
    outside = {"table": "facts", "name": "../facts/part-00000.csv", "rows": 1, "last": "(0,1)"}
    for foreign in ([], {"files": [outside], "run_id": run.run_id}):
        (tmp_path / "manifest.json").write_text(json.dumps(foreign))
        with pytest.raises(UsageError, match=r"another manifest\.json"):
            await export(run.eye, await a_plan(run, "csv"), Folder(tmp_path), replaces=True)


async def test_a_run_that_merges_is_exported_anew_when_it_is_published(run: LoadingRun, tmp_path: Path) -> None:
    """Then it has got what stays of the run before, each record with the key of its page."""
    await run.eye.execute("UPDATE runs SET published_at = NULL, spec = jsonb_set(spec, '{tables,0,mode}', '\"merge\"')")
    await export(run.eye, await a_plan(run, "jsonl.zst", rows=100), Folder(tmp_path))
    await run.eye.execute(
        "UPDATE runs SET published_at = now(); INSERT INTO facts_r1 (run_id, digest, big) "
        "SELECT 1, digest || '\\x00', 99 FROM pages WHERE key = 'key-7'"
    )
    plan = await a_plan(run, "jsonl.zst", rows=100)
    with pytest.raises(UsageError, match="another export"):
        await export(run.eye, plan, Folder(tmp_path))
    (file,) = await export(run.eye, plan, Folder(tmp_path), replaces=True)
    assert [row["_key"] for row in read(tmp_path / file.name) if row["big"] == 99] == ["key-7"]


async def test_a_table_without_rows_is_a_file_with_its_columns(database: str, tmp_path: Path) -> None:
    async with a_loading_run(database, TABLE) as run:
        await finished(run.eye, RunTables(run.run_id), run.epoch, [TABLE])
        (file,) = await export(run.eye, await a_plan(run, "parquet"), Folder(tmp_path))
        assert Table(read_parquet(tmp_path / file.name)).schema.names == ["_key", "run_id", "digest", *COLUMNS]


async def test_pages_are_a_table_too(run: LoadingRun, tmp_path: Path) -> None:
    files = await export(run.eye, await a_plan(run, "parquet", tables=("pages", "facts")), Folder(tmp_path))
    assert {one.table: one.rows for one in files} == {"pages": 5, "facts": 5}
    row = read(tmp_path / "pages/part-00000.parquet")[0]
    assert (row["outcome"], row["body"], row["status"]) == ("stored", '{"a": 1}', 200)


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("price", Decimal("NaN"), "NaN"),
        ("day", date.max, "infinite date"),
        ("numbers", [[1, 2], [3, 4]], "array of arrays"),
    ],
)
async def test_what_arrow_cannot_hold_is_said(
    database: str, tmp_path: Path, column: str, value: Any, words: str
) -> None:
    async with a_loading_run(database, TABLE) as run:
        await run.store([a_page("a", records=[tuple((NULLS | {column: value}).values())])])
        await finished(run.eye, RunTables(run.run_id), run.epoch, [TABLE])
        with pytest.raises(UsageError, match=words):
            await export(run.eye, await a_plan(run, "parquet"), Folder(tmp_path))
        assert list(tmp_path.rglob("*.*")) == []


def test_a_batch_grows_until_its_rows_have_enough_bytes() -> None:
    batches: list[list[Any]] = [[("x" * size,)] * rows for size, rows in ((1, 2), (1, 900), (100_000, 10), (10**7, 1))]
    assert [rows_of_fetch(rows) for rows in batches] == [20, 2000, 5, 1]


async def test_a_row_group_is_small_also_where_the_first_rows_are_much_smaller_than_the_others(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = TableSettings(name="facts", column_settings={"word": "text"})
    groups: list[int] = []

    def starting(command: Sequence[str], **_: Any) -> NoReturn:
        groups.append(int(command[-2]))
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.setattr("crawler.export.formats.Popen", starting)
    async with a_loading_run(database, table) as run:
        rows = [(None,)] * 500 + [("x" * 1500,)] * 500
        await run.store([a_page(f"key-{number}", records=[row]) for number, row in enumerate(rows)])
        await finished(run.eye, RunTables(run.run_id), run.epoch, [table])
        with pytest.raises(ShardcrawlError, match="No such file"):  # nothing is written here
            await export(run.eye, await a_plan(run, "parquet", rows=1000), Folder(tmp_path))
    assert ROW_GROUP_BYTES / 2000 < groups[0] < ROW_GROUP_BYTES / 700
