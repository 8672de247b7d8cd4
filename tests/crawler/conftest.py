from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from crawler.store.postgres import PostgresConnection, connect_postgres


@pytest.fixture
async def connection(database: str) -> AsyncIterator[PostgresConnection]:
    connection = await connect_postgres(database)
    yield connection
    await connection.close()
