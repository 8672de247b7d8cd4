"""Chromium for a test, which is skipped where there is none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from ops.browser import Browser, ChromiumMissing, open_chromium


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """A browser."""
    try:
        async with open_chromium() as browser:
            yield browser
    except ChromiumMissing as missing:
        pytest.skip(str(missing))
