"""`[publish] export`: files of the run that readers see, whole after any death, in a folder or a bucket."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from arro3.core import Table
from arro3.io import read_parquet
from obstore.store import MemoryStore

from coordinator.errors import ShardcrawlError, UsageError
from crawler.export.exporter import ExportPlan, export
from crawler.export.formats import SUFFIXES
from crawler.export.place import Bucket, Folder, open_place
from crawler.export.published import PublishedFiles, export_published
from crawler.job.tables import TableSettings
from crawler.store.catalogue import Catalogue
from crawler.store.queries import query
from crawler.store.tables import RunTables
from tests.crawler.examples import LoadingRun, a_job, a_loading_run, a_page, finished
from tests.servers.bucket import serve_bucket
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

TABLE = TableSettings(name="facts", column_settings={"n": "bigint"})
KEYS = [f"key-{number:02}" for number in range(25)]


class Died(Exception):
    """In the place of a kill."""


def dies_at(step: str, times: int = 1) -> Callable[[str], None]:
    reached: Counter[str] = Counter()

    def failpoint(name: str) -> None:
        reached[name] += 1
        if (name, reached[name]) == (step, times):
            raise Died

    return failpoint


@pytest.fixture
async def run(database: str) -> AsyncIterator[LoadingRun]:
    """A complete, published run of 25 keys."""
    async with a_loading_run(database, TABLE) as run:
        await run.store([a_page(key, records=[(number,)]) for number, key in enumerate(KEYS)])
        await finished(run.eye, RunTables(run.run_id), run.epoch, [TABLE])
        yield run


async def wants(run: LoadingRun, form_and_place: str) -> None:
    await run.eye.execute(
        "UPDATE runs SET spec = spec || jsonb_build_object('publish', jsonb_build_object('export', $1::text))",
        form_and_place,
    )


async def a_plan(run: LoadingRun) -> ExportPlan:
    stored = await Catalogue(run.eye).find("test")
    assert stored is not None
    return ExportPlan(stored, ["facts"], "parquet", rows_per_file=10)


def keys_in(folder: Path) -> list[str]:
    """The keys of a whole export: the folder has its files, and nothing else."""
    manifest = json.loads((folder / "manifest.json").read_text())
    names = {one["name"] for one in manifest["files"]}
    assert names | {"manifest.json"} == {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    }
    return sorted(key for name in names for key in Table(read_parquet(folder / name)).column("_key").to_pylist())


@pytest.mark.parametrize(
    ("step", "times"), [("filed", 1), ("filed", 2), ("listed", 1), ("listed", 3), ("whole", 1)], ids=str
)
async def test_an_export_that_dies_at_a_step_is_exact_afterwards(
    run: LoadingRun, tmp_path: Path, step: str, times: int
) -> None:
    with pytest.raises(Died):
        await export(run.eye, await a_plan(run), Folder(tmp_path), failpoint=dies_at(step, times))
    assert (tmp_path / "manifest.json").exists() == (step == "whole")
    await export(run.eye, await a_plan(run), Folder(tmp_path))
    assert keys_in(tmp_path) == KEYS


async def test_a_part_that_was_written_anew_and_files_that_somebody_has_deleted_leave_the_export_exact(
    run: LoadingRun, tmp_path: Path
) -> None:
    part = f"facts_r{run.run_id}"
    gone = {row["key"] for row in await run.eye.fetch(f"SELECT key FROM pages JOIN {part} USING (digest) WHERE n < 5")}
    await run.eye.execute(f"DELETE FROM {part} WHERE n < 5")
    left = sorted({*KEYS} - gone)
    with pytest.raises(Died):
        await export(run.eye, await a_plan(run), Folder(tmp_path), failpoint=dies_at("listed", 1))
    await run.eye.execute(f"VACUUM FULL {part}")  # each row lies elsewhere now
    await export(run.eye, await a_plan(run), Folder(tmp_path))
    assert keys_in(tmp_path) == left
    (tmp_path / "facts/part-00000.parquet").unlink()
    await export(run.eye, await a_plan(run), Folder(tmp_path))
    assert keys_in(tmp_path) == left


@pytest.mark.parametrize("form", ["parquet", "arrow", "csv", "jsonl.zst"])
async def test_a_full_disk_is_said_in_one_line(
    run: LoadingRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    class Full(Folder):
        @contextmanager
        def writing(self, name: str) -> Iterator[Path]:
            with super().writing(name) as path:
                path.symlink_to("/dev/full")
                yield path

    monkeypatch.setattr("crawler.export.published.open_place", lambda where: Full(Path(where)))
    await wants(run, f"{form}:out")
    found = await export_published(run.url, "test", folder=str(tmp_path))
    assert found is not None
    where = f"{tmp_path}/out/test/facts/part-00000{SUFFIXES[form]}"  # type: ignore[index]
    assert found.fault == f"{where}: No space left on device; name a folder that you can write to"


@pytest.mark.parametrize("run_id", [1, 7], ids=["completed again", "with the name of a deleted one"])
async def test_a_run_that_was_made_anew_is_another_export_which_replaces_the_first_one(
    run: LoadingRun, tmp_path: Path, run_id: int
) -> None:
    await export(run.eye, await a_plan(run), Folder(tmp_path))
    manifest = tmp_path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"run_id": 1', f'"run_id": {run_id}'))
    await run.eye.execute(f"DELETE FROM facts_r{run.run_id} WHERE n >= 5")
    await run.eye.execute("UPDATE runs SET finished_at = finished_at + interval '1 hour'")
    plan = await a_plan(run)
    with pytest.raises(UsageError, match="there is another export in its place"):
        await export(run.eye, plan, Folder(tmp_path))
    assert keys_in(tmp_path) == KEYS

    class Fails(Folder):
        def remove(self, name: str) -> None:
            if name.endswith("00001.parquet"):
                raise Died
            super().remove(name)

    with pytest.raises(Died):
        await export(run.eye, plan, Fails(tmp_path), replaces=True)
    await export(run.eye, plan, Folder(tmp_path), replaces=True)
    assert keys_in(tmp_path) == KEYS[:5]


async def test_a_run_that_changes_meanwhile_is_not_exported(run: LoadingRun, tmp_path: Path) -> None:
    plan = await a_plan(run)
    await run.eye.execute("UPDATE runs SET state = 'running', finished_at = NULL")
    with pytest.raises(UsageError, match="has changed just now"):
        await export(run.eye, plan, Folder(tmp_path))
    assert list(tmp_path.iterdir()) == []


async def test_the_files_of_a_published_run_are_in_its_folder_and_one_file_names_it(
    run: LoadingRun, tmp_path: Path
) -> None:
    assert await export_published(run.url, "test", "test", folder=str(tmp_path)) is None
    await wants(run, "parquet:out")
    with pytest.raises(Died):
        await export_published(run.url, "test", folder=str(tmp_path), failpoint=dies_at("whole"))
    assert not (tmp_path / "out/test.json").exists()
    found = await export_published(run.url, "test", "test", folder=str(tmp_path))
    assert found == PublishedFiles("test", str(tmp_path / "out/test"), files=1, rows=25)
    assert keys_in(tmp_path / "out/test") == KEYS
    named = json.loads((tmp_path / "out/test.json").read_text())
    assert named == {"corpus": "test", "run": "test", "run_id": run.run_id, "manifest": "test/manifest.json"}


@pytest.mark.parametrize("change", ["UPDATE corpora SET current_run = NULL", "UPDATE runs SET state = 'running'"])
async def test_a_run_that_readers_do_not_see_or_that_goes_on_is_not_exported(
    run: LoadingRun, tmp_path: Path, change: str
) -> None:
    await wants(run, f"csv:{tmp_path}/out")
    await run.eye.execute(change)
    assert await export_published(run.url, "test", "test") is None
    assert not (tmp_path / "out").exists()


WAITING = """
    SELECT pid FROM pg_locks JOIN pg_database ON pg_database.oid = database
    WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()
"""


async def test_two_exports_to_one_place_wait_for_each_other_and_a_lost_connection_is_opened_again(
    run: LoadingRun, tmp_path: Path
) -> None:
    await wants(run, f"parquet:{tmp_path}")
    async with run.eye.transaction():
        await run.eye.execute(query("lock-place"), str(tmp_path / "test"))
        second = asyncio.create_task(export_published(run.url, "test"))
        lost: set[int] = set()

        async def another_waits() -> bool:
            found = {row["pid"] for row in await run.eye.fetch(WAITING)} - lost
            lost.update(found)
            return bool(found)

        await eventually(another_waits, "an export that waits")
        await run.eye.execute("SELECT pg_terminate_backend($1)", lost.copy().pop())
        await eventually(another_waits, "the same on another connection")
        assert not (tmp_path / "test").exists()
    await second
    assert keys_in(tmp_path / "test") == KEYS


async def test_what_another_process_writes_to_is_left_alone_also_by_the_export_of_another_database(
    run: LoadingRun, tmp_path: Path
) -> None:
    with Folder(tmp_path).alone():
        with pytest.raises(ShardcrawlError, match="another command exports to this place now"):
            await export(run.eye, await a_plan(run), Folder(tmp_path))
        assert list(tmp_path.iterdir()) == []
    await export(run.eye, await a_plan(run), Folder(tmp_path))
    assert keys_in(tmp_path) == KEYS


def test_who_was_stopped_writes_nothing_more_to_a_bucket_that_another_one_has_taken(tmp_path: Path) -> None:
    store = MemoryStore()
    stopped, other = Bucket("memory:///", store), Bucket("memory:///", store)

    def write_file() -> None:
        with stopped.writing("file") as path:
            path.write_bytes(b"old")

    with stopped.alone():
        write_file()
        with other.alone():
            for write in (write_file, lambda: stopped.write("file", b"old"), lambda: stopped.remove("file")):
                with pytest.raises(ShardcrawlError, match="another command exports to this place now"):
                    write()
            other.write("file", b"new")
        stopped._writer = None  # nobody has it
    assert [one["path"] for one in store.list().collect()] == ["file"]
    assert other.read("file") == b"new"


async def test_what_keeps_files_away_is_said_and_does_not_raise(run: LoadingRun, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    await wants(run, "csv:out")
    found = await export_published(run.url, "test", folder=str(tmp_path))
    assert found is not None
    where = tmp_path / "out/test/manifest.json"
    assert found.fault == f"{where}: Not a directory; name a folder that you can write to"
    await run.eye.execute("UPDATE runs SET spec = spec || '{\"weather\": 1}'")  # the job of another version
    found = await export_published(run.url, "test", folder=str(tmp_path))
    assert found is not None
    assert "no key 'weather'" in found.fault


async def test_a_bucket_has_the_same_files(run: LoadingRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve_bucket(tmp_path) as environ:
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(Died):
            await export(
                run.eye, await a_plan(run), open_place("s3://bucket/facts"), failpoint=dies_at("filed", times=2)
            )
        await export(run.eye, await a_plan(run), open_place("s3://bucket/facts"))
        assert keys_in(tmp_path / "bucket/facts") == KEYS
        await wants(run, "parquet:s3://bucket/all")
        found = await export_published(run.url, "test")
        assert found == PublishedFiles("test", "s3://bucket/all/test", files=1, rows=25)
        assert keys_in(tmp_path / "bucket/all/test") == KEYS
        assert (tmp_path / "bucket/all/test.json").exists()
        await wants(run, "parquet:s3://nowhere/all")
        found = await export_published(run.url, "test")
        assert found is not None
        assert found.fault.startswith("s3://nowhere/all/test: ")


@pytest.mark.parametrize("given", ["parquet", "parquet:", "excel:out", ":out"])
def test_an_export_is_a_format_and_a_place(given: str) -> None:
    with pytest.raises(UsageError, match=r"\[publish\] export is .*; write a format \(parquet, arrow, jsonl\.zst, csv"):
        a_job(publish={"export": given})
