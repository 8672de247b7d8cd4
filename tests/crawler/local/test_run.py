"""How often a command begins anew: without end when keys were put back, and not when Redis loses the run each time, or
its user has interrupted it."""

from __future__ import annotations

from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from coordinator.errors import EpochLost
from coordinator.model import Epoch
from coordinator.queue.registry import RunRecord, Runs
from crawler.job.job import read_job
from crawler.local import run
from crawler.local.events import Listener, RunEnd
from crawler.local.run import MAX_REBUILDS, run_at
from crawler.local.services import Addresses
from crawler.local.supervisor import Supervisor
from crawler.store.catalogue import open_catalogue
from crawler.store.queries import query

pytestmark = pytest.mark.anyio


def running(addresses: Addresses, folder: Path) -> Coroutine[Any, Any, RunEnd]:
    """A command that works on a run of two keys, without workers."""
    (folder / "keys.txt").write_text("1\n2\n")
    document = {"run": {"name": "test"}, "source": {"path": "keys.txt"}, "request": {"url": "http://h.example/{key}"}}
    listener = Listener(lambda _: None, 1.0, on_drain=lambda _: None)
    return run_at(addresses, read_job(document, str(folder)), listener, {}, with_workers=False)


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

    async def supervise(_: Supervisor, __: Addresses, ___: Redis, record: RunRecord, *rest: object) -> bool:
        beginnings.append(record.epoch)
        if len(beginnings) > MAX_REBUILDS + 2:
            return False
        if change is not None:
            arguments = (record.run_id, record.epoch)[: 2 if is_loss else 1]
            async with open_catalogue(database) as catalogue:
                await catalogue.connection.execute(query(change), *arguments)
        raise EpochLost("it is gone")

    monkeypatch.setattr(run, "_supervise", supervise)
    ending = running(Addresses(redis_url, database), tmp_path)
    if is_loss:
        with pytest.raises(EpochLost, match="it is gone"):
            await ending
        assert len(beginnings) == MAX_REBUILDS + 1
    else:
        assert (await ending).stored is None
        assert len(set(beginnings)) == MAX_REBUILDS + 3


async def test_a_command_that_is_interrupted_while_its_run_is_rebuilt_does_not_go_on(
    redis: Redis, redis_url: str, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisors: list[Supervisor] = []
    supervise = run._supervise

    async def interrupted(supervisor: Supervisor, *rest: Any) -> bool:
        supervisors.append(supervisor)
        if len(supervisors) > 1:
            return await supervise(supervisor, *rest)
        supervisor.drain()
        await redis.flushall()
        raise EpochLost("it is gone")

    monkeypatch.setattr(run, "_supervise", interrupted)
    assert (await running(Addresses(redis_url, database), tmp_path)).stored is None
    assert len(supervisors) == 2
    assert (await Runs(redis).find("test")) is not None, "so that what it says of the run is true"
