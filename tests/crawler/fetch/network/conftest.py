from __future__ import annotations

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """The loop of the standard library: a test looks at its transports."""
    return "asyncio"
