from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest

from crawler.local.embedded import Services
from crawler.store.postgres import PostgresConnection, connect_postgres

EMPTY_THE_DATABASE = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid();
    DO $$ DECLARE name text; BEGIN
        EXECUTE format('ALTER DATABASE %I RESET ALL', current_database());
        FOR name IN SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' LOOP
            EXECUTE format('DROP SCHEMA %I CASCADE', name);
        END LOOP;
    END $$;
    CREATE SCHEMA public AUTHORIZATION pg_database_owner;
    GRANT USAGE ON SCHEMA public TO PUBLIC;
"""


@pytest.fixture
async def database(services: Services) -> AsyncIterator[str]:
    """The address of an empty Postgres database. It is emptied after the test: a new one costs ten times as much."""
    assert services.database_url is not None
    admin = await asyncpg.connect(services.database_url)
    if not await admin.fetchval("SELECT count(*) FROM pg_database WHERE datname = 'emptied'"):
        await admin.execute("CREATE DATABASE emptied")
    await admin.close()
    url = services.database_url.replace("/shardcrawl?", "/emptied?")
    yield url
    emptying = await asyncpg.connect(url)
    await emptying.execute(EMPTY_THE_DATABASE)
    await emptying.close()


@pytest.fixture
async def connection(database: str) -> AsyncIterator[PostgresConnection]:
    connection = await connect_postgres(database)
    yield connection
    await connection.close()
