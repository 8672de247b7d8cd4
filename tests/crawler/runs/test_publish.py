"""Whether a complete run is published by itself, in a real Postgres."""

from __future__ import annotations

import pytest

from coordinator.model import Epoch
from crawler.runs.publish import finish_run, publish_run, roll_back
from crawler.store.catalogue import Catalogue
from crawler.store.postgres import PostgresConnection
from crawler.store.rows.stored_run import StoredRun
from tests.crawler.examples import a_document, a_job

pytestmark = pytest.mark.anyio

EPOCH = Epoch("x")


async def made(connection: PostgresConnection, name: str, base_run: int | None = None) -> StoredRun:
    catalogue = Catalogue(connection)
    await catalogue.prepare()
    await catalogue.make(name, a_document(), EPOCH, (), corpus="afd", base_run=base_run)
    run = await catalogue.find(name)
    assert run is not None
    return run


async def test_a_refresh_does_not_undo_a_rollback(connection: PostgresConnection, database: str) -> None:
    """Who went back behind its base did not want what the base has."""
    for name in ("first", "second"):
        base = await finish_run(database, await made(connection, name), a_job())
        assert base.published_at
    refresh = await made(connection, "third", base.run_id)
    await roll_back(connection, "afd")
    third = await finish_run(database, refresh, a_job())
    assert third.complete
    assert third.published_at is None
    assert "went back" in (third.shortfall or "")
    assert "`shardcrawl publish third`" in (third.shortfall or "")
    assert (await publish_run(connection, "third"))[1] == ""
    current = await Catalogue(connection).current("afd")
    assert current is not None
    assert current.name == "third"
