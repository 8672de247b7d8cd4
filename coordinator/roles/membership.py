"""The ids of workers and coordinators, and the end of their leases when their process is known to be dead."""

from __future__ import annotations

import os
import secrets
import socket
from contextlib import suppress
from typing import cast

from redis.asyncio import Redis

from coordinator.errors import RedisDamaged
from coordinator.model import RunState, WorkerId
from coordinator.queue.registry import Runs
from coordinator.redis.connection import as_text, translate_redis_errors
from coordinator.redis.keys import RunKeys
from coordinator.roles.election import Election


def new_worker_id() -> WorkerId:
    """An id that was never used before: host, process id, and a random part."""
    return WorkerId(f"{_prefix(os.getpid())}{secrets.token_hex(4)}")


async def release_dead(client: Redis, pid: int) -> int:
    """End all leases of a process of this machine that is known to be dead; returns how many it had.

    Others need not wait until its leases end by themselves to claim its blocks, or to lead. Raises RedisUnavailable.
    """
    runs = Runs(client)
    released = 0
    for run in await runs.names():
        if await runs.state(run) is not RunState.COMPLETE:  # of a cancelled one `cancel` waits for the leases
            with suppress(RedisDamaged):  # those who work on that run will find out
                released += await _release(client, RunKeys(run), pid)
    return released


async def _release(client: Redis, keys: RunKeys, pid: int) -> int:
    with translate_redis_errors():
        workers = [as_text(cast("bytes", name)) for name in await client.zrange(keys.workers, 0, -1)]
        dead = [name for name in workers if name.startswith(_prefix(pid))]
        released = int(await client.zrem(keys.workers, *dead)) if dead else 0
        leader = as_text(await client.get(keys.leader) or "")
    if leader.startswith(_prefix(pid)):
        await Election(client, keys, leader).leave()
        released += 1
    return released


def _prefix(pid: int) -> str:
    return f"{socket.gethostname()}-{pid}-"
