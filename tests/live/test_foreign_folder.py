"""A data folder that somebody else could have made or changed is refused by every command, and left as it is."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from coordinator.errors import ShardcrawlError
from crawler.cli.main import main
from crawler.local.embedded import running
from crawler.local.embedded.folder import find_folder, open_folder

NOBODY = 65_534
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
COMMANDS = [
    *(
        ("run", "urls.txt"),
        ("demo", "--keys", "10"),
        ("check", "urls.txt"),
        ("status",),
        ("runs",),
        ("sql", "select 1"),
    ),
    *(("audit", "urls"), ("retry", "urls"), ("rebuild", "urls"), ("limit", "urls", "*", "--rate", "5/s")),
]


def link(path: Path, target: Path) -> None:
    path.symlink_to(target)


def second_name(path: Path, target: Path) -> None:
    path.hardlink_to(target)


def open_file(path: Path, _: Path) -> None:
    path.touch()
    path.chmod(0o666)


def open_to_enter(path: Path, _: Path) -> None:
    path.mkdir()
    path.chmod(0o755)


def of_somebody_else(path: Path, _: Path) -> None:
    path.mkdir(mode=0o700)
    os.chown(path, NOBODY - 1, -1)


def snapshot(folder: Path) -> dict[str, tuple[int, int, float]]:
    """Every path below the folder with its mode, owner and time of change."""
    found = [folder, *folder.rglob("*")]
    return {str(path): ((at := path.lstat()).st_mode, at.st_uid, at.st_mtime) for path in found}


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of ours outside of the data folder, which a planted entry leads to."""
    path = tmp_path / "victim"
    path.write_text("precious")
    return path


@pytest.mark.parametrize(
    ("name", "plant", "wrong"),
    [
        *((name, link, "is a link") for name in ("lock", "redis.log", "postgres.log", "services.json", "demo")),
        *((name, link, "is a link") for name in ("redis", "postgres", "sockets", "services.json.new")),
        *((name, second_name, "is a link") for name in ("lock", "redis.log")),
        *((name, open_file, "is open to other users") for name in ("lock", "services.json")),
        *((name, open_to_enter, "is open to other users") for name in ("redis", "postgres", "postgres.new-x")),
        *(pytest.param(name, of_somebody_else, "belongs to user", marks=AS_ROOT) for name in ("redis", "sockets")),
    ],
)
def test_a_planted_entry_is_refused_and_nothing_is_written(
    tmp_path: Path, victim: Path, name: str, plant: Callable[[Path, Path], None], wrong: str
) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    plant(data / name, victim)
    before = snapshot(tmp_path)
    for use in (open_folder, find_folder, running):
        with pytest.raises(ShardcrawlError, match=rf"^cannot use .*{name}: it {wrong}.*--data$") as refusal:
            use(data)
        assert "\n" not in str(refusal.value)
    assert snapshot(tmp_path) == before
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("foreign", ["link", "open", pytest.param("of somebody else", marks=AS_ROOT)])
def test_every_command_refuses_a_foreign_folder_before_it_starts_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, foreign: str
) -> None:
    data = tmp_path / ".shardcrawl"
    if foreign == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        data.symlink_to("elsewhere")
    else:
        data.mkdir(mode=0o700)
        (data / "redis").mkdir(mode=0o700)
        if foreign == "open":
            data.chmod(0o777)
        else:
            os.chown(data, NOBODY, -1)
    (tmp_path / "urls.txt").write_text("http://127.0.0.1:9/\n")
    monkeypatch.chdir(tmp_path)
    for name in ("REDIS_URL", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    before = snapshot(tmp_path)
    for words in COMMANDS:
        refused(words, data)
    refused(("demo", "--redis", "redis://127.0.0.1:1", "--database", "postgresql://127.0.0.1:1/x"), data)
    assert snapshot(tmp_path) == before


def refused(words: Sequence[str], data: Path) -> None:
    ended = CliRunner().invoke(main, words)
    lines = ended.stderr.strip().splitlines()
    assert ended.exit_code == 1, (words, ended.output)
    assert lines[-1].startswith(f"error: cannot use {data}: it "), (words, lines)


def test_a_folder_is_closed_to_others_unless_it_has_more_in_it_than_ours(tmp_path: Path) -> None:
    for name, more, mode in (("new", None, 0o700), ("old", "lock", 0o700), ("home", "thesis.tex", 0o755)):
        data = tmp_path / name
        if more:
            data.mkdir()
            (data / more).touch(0o644)
            data.chmod(0o755)
        open_folder(data).close()
        assert stat.S_IMODE(data.stat().st_mode) == mode, name
