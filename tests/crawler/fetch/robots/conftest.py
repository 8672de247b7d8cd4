from __future__ import annotations

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """The event loop of the standard library, because tests look at its transports."""
    return "asyncio"
