"""The process that writes a columnar file is killed, stopped, or left behind: there is no file that is not whole."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
from arro3.io import read_parquet

from coordinator.errors import ShardcrawlError
from crawler.export.exporter import ExportedFile, ExportPlan, export
from crawler.export.place import Folder
from crawler.job.tables import TableSettings
from crawler.store.catalogue import Catalogue
from crawler.store.tables import RunTables
from tests.crawler.examples import LoadingRun, a_loading_run, a_page, finished

pytestmark = pytest.mark.anyio

ROWS = 20_000
TABLE = TableSettings(name="facts", column_settings={"word": "text"})


@pytest.fixture
async def run(database: str) -> AsyncIterator[LoadingRun]:
    async with a_loading_run(database, TABLE) as run:
        yield run


async def exported(
    run: LoadingRun, folder: Path, rows: int = ROWS, on_rows: Callable[[int], None] = lambda _: None
) -> list[ExportedFile]:
    """An export of so many rows into one file."""
    stored = await Catalogue(run.eye).find("test")
    if stored is not None and not stored.complete:
        await run.store([a_page("key", records=[("x" * 100,)] * rows)])
        await finished(run.eye, RunTables(run.run_id), run.epoch, [TABLE])
        stored = await Catalogue(run.eye).find("test")
    assert stored is not None
    return await export(run.eye, ExportPlan(stored, ["facts"], "parquet", rows), Folder(folder), on_rows)


def files_in(folder: Path) -> list[Path]:
    return [one for one in folder.rglob("*") if one.is_file()]


def sent_when_started(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    class Disturbed(Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.send_signal(number)

    monkeypatch.setattr("crawler.export.formats.Popen", Disturbed)


@pytest.mark.parametrize("rows", [1, ROWS])
async def test_an_export_whose_writing_process_is_killed_leaves_no_file_and_goes_on(
    run: LoadingRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    with monkeypatch.context() as patch:
        sent_when_started(signal.SIGKILL, patch)
        with pytest.raises(ShardcrawlError, match=r"part-00000.* has ended with -9; start the same export again"):
            await exported(run, tmp_path, rows)
    assert not files_in(tmp_path)
    await exported(run, tmp_path, rows)
    assert read_parquet(tmp_path / "facts/part-00000.parquet").read_all().num_rows == rows


async def test_one_that_ends_within_a_file_is_named(
    run: LoadingRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Popen[bytes]] = []

    class Kept(Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)

    def kill(_: int) -> None:
        for one in started:
            one.kill()

    monkeypatch.setattr("crawler.export.formats.Popen", Kept)
    with pytest.raises(ShardcrawlError, match=r"part-00000.* has ended with -9; start the same export again"):
        await exported(run, tmp_path, on_rows=kill)
    assert not files_in(tmp_path)


async def test_an_export_is_cancelled_also_while_its_writing_process_stands_still(
    run: LoadingRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent_when_started(signal.SIGSTOP, monkeypatch)
    is_stuck = asyncio.Event()

    def on_rows(rows: int) -> None:
        if rows > 1000:  # more than a pipe holds
            is_stuck.set()

    task = asyncio.create_task(exported(run, tmp_path, on_rows=on_rows))
    await is_stuck.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(20):
            await task
    assert not files_in(tmp_path)


def test_what_a_killed_export_still_writes_does_not_come_into_the_file_of_the_next_one(tmp_path: Path) -> None:
    with (tmp_path / "file.tmp").open("wb") as left, Folder(tmp_path).writing("file") as path:
        path.write_bytes(b"new")
        left.write(b"of the killed one")
        left.flush()
    assert (tmp_path / "file").read_bytes() == b"new"
