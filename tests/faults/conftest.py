from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.faults import table
from tests.faults.crawl import Crawl
from tests.faults.table import Row
from tests.live.shell import Shell
from tests.servers.disturbed import Disturbed
from tests.servers.own_servers import SmallDisk


@pytest.fixture
async def upstream() -> AsyncIterator[Disturbed]:
    async with Disturbed() as upstream:
        yield upstream


@pytest.fixture
def report(record_property: Callable[[str, object], None]) -> Callable[[Row], None]:
    """Add a row to the table that is printed after all tests."""
    return lambda row: record_property(table.FAULT, row.as_property())


@pytest.fixture
def embedded_crawl(shell: Shell, upstream: Disturbed, report: Callable[[Row], None]) -> Crawl:
    """A run that starts Redis and Postgres itself."""
    return Crawl(shell, upstream, report)


@pytest.fixture
def crawl(shell: Shell, upstream: Disturbed, report: Callable[[Row], None], environ: dict[str, str]) -> Crawl:
    """A run on the session's Redis and Postgres, which a test can connect to."""
    return Crawl(shell, upstream, report, environ)


@pytest.fixture
async def small_disk() -> AsyncIterator[SmallDisk]:
    """A disk of 48 MB that a test may fill. Skips the test where this process may not mount one: only root may."""
    path = Path(tempfile.mkdtemp(prefix="faults-"))  # unlike tmp_path, where the account of Postgres can enter
    mount = ["mount", "-t", "tmpfs", "-o", "size=48m,mode=0755", "tmpfs", str(path)]
    if os.geteuid() != 0 or sys.platform != "linux" or subprocess.run(mount, check=False).returncode:
        path.rmdir()
        pytest.skip("only root may mount a small disk")
    disk = SmallDisk(path)
    yield disk
    await disk.drop()
    subprocess.run(["umount", "--lazy", str(path)], check=True)
    path.rmdir()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    rows = [
        row
        for outcome in ("passed", "failed", "xfailed")
        for done in terminalreporter.getreports(outcome)
        if done.when == "call"
        for row in table.rows_of(done.user_properties)
    ]
    if rows:
        terminalreporter.section("faults")
        for line in table.table_lines(rows):
            terminalreporter.write_line(line)
