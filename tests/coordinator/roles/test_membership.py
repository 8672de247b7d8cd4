"""The names of workers, and the end of the leases of a dead process."""

from __future__ import annotations

import os
import socket

import pytest
from redis.asyncio import Redis

from coordinator.errors import LeaseLost
from coordinator.model import WorkerId
from coordinator.roles.election import Election
from coordinator.roles.membership import new_worker_id, release_dead
from tests.coordinator.parts import ONE, Run, record_of

pytestmark = pytest.mark.anyio


def worker_of(pid: int, host: str | None = None) -> WorkerId:
    here = f"{socket.gethostname()}-{os.getpid()}-"
    return WorkerId(new_worker_id().replace(here, f"{host or socket.gethostname()}-{pid}-"))


def test_a_name_says_where_and_is_never_given_twice() -> None:
    names = {new_worker_id() for _ in range(100)}
    assert len(names) == 100
    assert all(name.startswith(f"{socket.gethostname()}-{os.getpid()}-") for name in names)


async def test_the_blocks_of_a_process_that_was_seen_to_die_are_claimed_at_once(redis: Redis) -> None:
    run = await Run.create(redis)
    await run.publish(["a"])
    dead = worker_of(4_000_001)
    await run.streams.join(dead)
    assert await run.next(dead)
    assert await release_dead(redis, 4_000_001) == 1
    with pytest.raises(LeaseLost):
        await run.streams.renew(dead)
    await run.streams.join(ONE)
    claim = await run.next(ONE)
    assert claim
    assert claim.deliveries == 2, "it may have died of it"


async def test_the_lead_of_a_process_that_was_seen_to_die_is_free_at_once_in_every_run(redis: Redis) -> None:
    dead = worker_of(4_000_001)
    runs = [await Run.create(redis, record_of(name)) for name in ("a", "b", "complete", "led by another")]
    for run in runs[:3]:
        await redis.delete(run.keys.leader)
        await Election(redis, run.keys, dead).gain()
        await run.streams.join(worker_of(4_000_001))
    await runs[2].runs.finish(runs[2].record, {})
    assert await release_dead(redis, 4_000_001) == 4
    assert [await redis.exists(run.keys.leader) for run in runs] == [0, 0, 1, 1]
    assert await release_dead(redis, 4_000_001) == 0


@pytest.mark.parametrize(
    "other",
    [worker_of(40), worker_of(4_000), worker_of(400, "another.host"), worker_of(1_400)],
    ids=["40", "4000", "400 elsewhere", "1400"],
)
async def test_only_the_dead_are_released(redis: Redis, other: WorkerId) -> None:
    run = await Run.create(redis)
    await run.streams.join(other)
    await redis.delete(run.keys.leader)
    await Election(redis, run.keys, other).gain()
    before = await run.everything()
    assert await release_dead(redis, 400) == 0
    after = await run.everything()
    assert {key: value for key, value in after.items() if b"leader" not in key} == {
        key: value for key, value in before.items() if b"leader" not in key
    }
    assert await redis.get(run.keys.leader) == other.encode()
    await run.streams.renew(other)
