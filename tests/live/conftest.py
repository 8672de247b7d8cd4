from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from crawler.sample.upstream import Upstream


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream(size=300) as upstream:
        yield upstream
