from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from crawler.sample.upstream import Upstream
from tests.live.shell import Shell


@pytest.fixture
async def shell(tmp_path: Path) -> AsyncIterator[Shell]:
    shell = Shell(tmp_path)
    yield shell
    await shell.sweep()


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream(size=300) as upstream:
        yield upstream
