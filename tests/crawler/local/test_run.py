"""How often a command begins anew: without end when keys were put back, and not when Redis loses the run each time."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis.asyncio import Redis

from coordinator.errors import EpochLost
from coordinator.model import Epoch
from coordinator.queue.registry import RunRecord
from crawler.job.job import read_job
from crawler.local import run
from crawler.local.events import Listener
from crawler.local.run import MAX_REBUILDS, run_at
from crawler.local.services import Addresses
from crawler.store.catalogue import open_catalogue
from crawler.store.queries import query

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("change", "is_loss"),
    [(None, True), ("void-epoch", True), ("reopen-run", False)],
    ids=["Redis lost it", "a worker saw that", "retry"],
)
async def test_a_retry_is_no_loss_of_redis(
    redis: Redis,
    redis_url: str,
    database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: str | None,
    is_loss: bool,
) -> None:
    beginnings: list[Epoch] = []

    async def supervise(_: Addresses, __: Redis, record: RunRecord, *rest: object) -> bool:
        beginnings.append(record.epoch)
        if len(beginnings) > MAX_REBUILDS + 2:
            return False
        if change is not None:
            arguments = (record.run_id, record.epoch)[: 2 if is_loss else 1]
            async with open_catalogue(database) as catalogue:
                await catalogue.connection.execute(query(change), *arguments)
        raise EpochLost("it is gone")

    monkeypatch.setattr(run, "_supervise", supervise)
    (tmp_path / "keys.txt").write_text("1\n2\n")
    document = {"run": {"name": "test"}, "source": {"path": "keys.txt"}, "request": {"url": "http://h.example/{key}"}}
    job, listener = read_job(document, str(tmp_path)), Listener(lambda _: None, 1.0)
    ending = run_at(Addresses(redis_url, database), job, listener, {}, with_workers=False)
    if is_loss:
        with pytest.raises(EpochLost, match="it is gone"):
            await ending
        assert len(beginnings) == MAX_REBUILDS + 1
    else:
        assert (await ending).stored is None
        assert len(set(beginnings)) == MAX_REBUILDS + 3
