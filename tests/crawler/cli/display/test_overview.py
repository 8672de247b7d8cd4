"""What `status --watch` reads, again and again."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from redis.asyncio import Redis

from coordinator.errors import PostgresUnavailable
from coordinator.model import Epoch
from crawler.cli.display import overview
from crawler.cli.display.overview import Overview
from crawler.store.catalogue import open_catalogue
from tests.crawler.examples import a_document
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

END_OTHERS = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


async def test_it_reads_on_after_postgres_has_closed_its_connection_or_did_not_respond(
    redis: Redis, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "POSTGRES_INTERVAL_SECONDS", 0.0)
    async with open_catalogue(database) as catalogue:
        await catalogue.prepare()
        await catalogue.make("one", a_document(run={"name": "one"}), Epoch("e"), [], corpus="corpus")
        looking = Overview(redis, database)
        assert [view.snapshot.name for view in await looking.read()] == ["one"]

        async def ended() -> bool:
            return not await catalogue.connection.fetch(END_OTHERS)

        await eventually(ended, "Postgres to have closed the connection")
        with suppress(PostgresUnavailable):  # unless its connection has noticed by itself
            await looking.read()
        assert len(await looking.read()) == 1
        async with catalogue.connection.transaction():
            await catalogue.connection.execute("LOCK TABLE runs IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await looking.read()
        assert len(await looking.read()) == 1
        looking.close()
