"""Rows as files, as users export them: by a command that may be killed at any moment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from arro3.core import Table
from arro3.io import read_parquet

from crawler.sample.upstream import Upstream
from tests.live.examples import job
from tests.live.shell import Shell
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

TABLE = """
[[tables]]
name = "items"
columns = { id = "text", title = "text" }
"""


async def exported(folder: Path) -> list[str]:
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet")} == {
        file["name"] for file in manifest["files"]
    }
    keys: list[str] = []
    for file in manifest["files"]:
        found = Table(read_parquet(folder / file["name"])).column("_key").to_pylist()
        assert len(found) == file["rows"]
        keys += found
    return keys


async def test_a_killed_export_is_finished_by_the_same_command(
    shell: Shell, upstream: Upstream, environ: dict[str, str]
) -> None:
    keys = [f"{number:05}" for number in range(4000)]
    shell.write("keys.txt", keys)
    path = shell.write("job.toml", job(upstream, TABLE, name="items"))
    out = shell.folder / "out"
    early = await shell.run("export", "items", "-o", out, environ=environ, code=2)
    assert early.err.startswith("error: no run items")
    await shell.run("run", path, environ=environ)
    command = ["export", "items", "-o", str(out), "--rows-per-file", "100"]
    for files in (1, 10, 20):  # killed again and again
        running = await shell.start(*command, environ=environ)
        await eventually(lambda least=files: len(list(out.rglob("*.parquet"))) >= least, f"{files} files")
        if running.process.returncode is None:
            running.process.kill()
        await running.end()
    ended = await shell.run(*command, environ=environ)
    assert "4,000 rows in 40 files and manifest.json" in ended.out
    assert sorted(await exported(out)) == keys
    assert not list(out.rglob("*.tmp*"))
    assert not (out / "unfinished.json").exists()


async def test_a_run_is_published_though_its_files_cannot_be_written_and_publish_writes_them(
    shell: Shell, upstream: Upstream, environ: dict[str, str]
) -> None:
    keys = [f"{number:03}" for number in range(300)]
    shell.write("keys.txt", keys)
    (shell.folder / "out").write_text("no folder")
    path = shell.write("job.toml", job(upstream, TABLE + '[publish]\nexport = "parquet:out"\n', name="items"))
    ended = await shell.run("run", path, environ=environ, code=7)
    assert "readers of corpus job see it now" in ended.out
    assert "its files are not written (exit code 7): " in ended.out
    (shell.folder / "out").unlink()
    published = await shell.run("publish", "items", environ=environ)
    assert f"300 rows in 1 file and manifest.json, in {shell.folder}/out/items" in published.out
    assert sorted(await exported(shell.folder / "out/items")) == keys
    assert json.loads((shell.folder / "out/job.json").read_text())["run"] == "items"


@pytest.mark.slow
@pytest.mark.parametrize("step", ["filed", "listed", "whole"])
async def test_a_command_that_is_killed_while_it_writes_files_is_followed_by_one_that_ends_that(
    shell: Shell, upstream: Upstream, environ: dict[str, str], step: str
) -> None:
    """The job gives its runs no name, so the next command begins another run, after the files of the first one."""
    keys = [f"{number:03}" for number in range(300)]
    shell.write("keys.txt", keys)
    text = job(upstream, TABLE + '[publish]\nexport = "parquet:out"\n').replace('name = "test"', 'corpus = "items"')
    path = shell.write("job.toml", text)
    killed = await shell.run("run", path, environ={**environ, "FAILPOINT": f"export:{step}"}, code=-9)
    assert "is complete" in killed.err
    assert not (shell.folder / "out/items.json").exists()
    again = await shell.run("run", path, "--json", environ=environ)
    second = json.loads(again.out)
    (first,) = {one.parent for one in (shell.folder / "out").rglob("manifest.json")} - {Path(second["files"]["place"])}
    for folder in (first, Path(second["files"]["place"])):
        assert sorted(await exported(folder)) == keys
        assert not list(folder.rglob("unfinished.json"))
    assert json.loads((shell.folder / "out/items.json").read_text())["run"] == second["run"]
    back = await shell.run("rollback", "items", environ=environ)
    assert "300 rows in 1 file" in back.out
    assert json.loads((shell.folder / "out/items.json").read_text())["run"] == first.name


@pytest.mark.slow
async def test_a_run_that_goes_on_is_exported_only_if_that_is_wanted(
    shell: Shell, upstream: Upstream, environ: dict[str, str]
) -> None:
    shell.write("keys.txt", [str(number) for number in range(100)])
    path = shell.write("job.toml", job(upstream, TABLE, template="/slow/100/{key}", name="items"))
    running = await shell.start("run", path, "--concurrency", "2", environ=environ)
    await eventually(lambda: upstream.requests > 10, "10 requests")
    running.interrupt()
    await running.end()
    out = shell.folder / "out"
    refused = await shell.run("export", "items", "-o", out, environ=environ, code=2)
    assert refused.err == "error: export: run items is not complete; --partial exports what it has now\n"
    await shell.run("export", "items", "-o", out, "--partial", "--table", "pages", environ=environ)
    assert 0 < len(list(out.rglob("*.parquet"))) == 1


async def test_a_data_set_has_its_card(shell: Shell, upstream: Upstream, environ: dict[str, str]) -> None:
    shell.write("keys.txt", ["1", "2"])
    await shell.run("run", shell.write("job.toml", job(upstream, TABLE, name="items")), environ=environ)
    await shell.run("export", "items", "--format", "hf", "-o", shell.folder / "set", environ=environ)
    card = (shell.folder / "set" / "README.md").read_text()
    assert card.startswith('---\nconfigs:\n- config_name: "items"\n  data_files:\n  - split: train\n')
    assert (shell.folder / "set" / "data" / "items" / "train-00000.parquet").exists()
