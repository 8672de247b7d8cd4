"""How a run comes to its end, on a real Redis and Postgres; nothing is fetched."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from redis.asyncio import Redis

from coordinator.errors import EpochLost
from coordinator.model import Outcome, RunState
from coordinator.queue.registry import RunRecord, Runs
from coordinator.redis.keys import RunKeys
from crawler.job.job import Job, read_job
from crawler.opening import open_run
from crawler.runner import Runner
from crawler.store.catalogue import Catalogue
from crawler.store.postgres import PostgresConnection
from crawler.store.reasons import PagesToRetry
from crawler.store.tables import RunTables
from crawler.store.writer import Writer
from tests.crawler.examples import a_document, a_page

pytestmark = pytest.mark.anyio

KEYS = ["https://upstream.example/1", "https://upstream.example/2", "https://upstream.example/3"]


@pytest.fixture
async def record(redis: Redis, database: str, tmp_path: Path) -> RunRecord:
    """A run that is resolved: every key has its page, one of them failed."""
    (tmp_path / "keys.txt").write_text("\n".join(KEYS) + "\n")
    record = (await open_run(redis, database, read_job(a_document(), str(tmp_path)))).record
    assert record is not None
    pages = [a_page(key) for key in KEYS]
    pages[0].fail("out of attempts")
    writer = Writer(database, RunTables(record.run_id), record.epoch, ())
    await writer.write(pages)
    await writer.close()
    await redis.hset(RunKeys(record.name).state, "state", RunState.RESOLVED.value)
    return record


async def test_a_resolved_run_is_completed_in_postgres_and_then_in_redis(
    record: RunRecord, redis: Redis, database: str, connection: PostgresConnection
) -> None:
    async with asyncio.timeout(60):
        await Runner(redis, database, {}).serve(record.name)
    run = await Catalogue(connection).find(record.name)
    assert run is not None
    assert (run.complete, run.counts) == (True, {Outcome.STORED: 2, Outcome.FAILED: 1})
    assert await Runs(redis).state(record.name) is RunState.COMPLETE


async def test_a_run_whose_failed_keys_were_put_back_while_it_ended_is_not_completed(
    record: RunRecord, redis: Redis, database: str, connection: PostgresConnection
) -> None:
    class PutBack(Runner):
        async def _work_for_one_lease(self, record: RunRecord, job: Job) -> RunState:
            state = await super()._work_for_one_lease(record, job)
            assert await Catalogue(connection).reopen(RunTables(record.run_id), PagesToRetry()) == {Outcome.FAILED: 1}
            return state

    async with asyncio.timeout(60):
        with pytest.raises(EpochLost):
            await PutBack(redis, database, {}).serve(record.name)
    run = await Catalogue(connection).find(record.name)
    assert run is not None
    assert not run.complete
    assert await Runs(redis).state(record.name) is RunState.RESOLVED
