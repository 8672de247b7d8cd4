from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.faults import table
from tests.faults.crawl import Crawl
from tests.faults.table import Row
from tests.live.shell import Shell
from tests.servers.disturbed import Disturbed
from tests.servers.own_servers import SmallDisk


@pytest.fixture
async def shell(tmp_path: Path) -> AsyncIterator[Shell]:
    shell = Shell(tmp_path)
    yield shell
    await shell.sweep()


@pytest.fixture
async def upstream() -> AsyncIterator[Disturbed]:
    async with Disturbed() as upstream:
        yield upstream


@pytest.fixture
def report(record_property: Callable[[str, object], None]) -> Callable[[Row], None]:
    return lambda row: record_property(table.FAULT, row.packed())


@pytest.fixture
def embedded_crawl(shell: Shell, upstream: Disturbed, report: Callable[[Row], None]) -> Crawl:
    """A run that starts Redis and Postgres by itself."""
    return Crawl(shell, upstream, report)


@pytest.fixture
def crawl(
    shell: Shell, upstream: Disturbed, report: Callable[[Row], None], redis: Redis, redis_url: str, database: str
) -> Crawl:
    """A run on the session's Redis and Postgres, where a test can reach both."""
    return Crawl(shell, upstream, report, {"REDIS_URL": redis_url, "DATABASE_URL": database})


@pytest.fixture
async def small_disk(tmp_path: Path) -> AsyncIterator[SmallDisk]:
    """A disk that a test may fill; only root may mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=48m,mode=0755", "tmpfs", str(path)]
    if os.geteuid() != 0 or sys.platform != "linux" or subprocess.run(mount, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    disk = SmallDisk(path)
    yield disk
    await disk.drop()
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    rows = [
        row
        for outcome in ("passed", "failed", "xfailed")
        for found in terminalreporter.getreports(outcome)
        if found.when == "call"
        for row in table.rows_of(found.user_properties)
    ]
    if rows:
        terminalreporter.section("faults")
        for line in table.lines(rows):
            terminalreporter.write_line(line)
