"""Who works: the names of workers, and the burial of those whose death was seen."""

from __future__ import annotations

import os
import secrets
import socket

from redis.asyncio import Redis

from coordinator.model import RunState, WorkerId
from coordinator.queue.registry import Runs
from coordinator.redis.connection import as_text, translate_redis_errors
from coordinator.redis.keys import RunKeys
from coordinator.roles.election import Election


def new_worker_id() -> WorkerId:
    """A name for this process that nobody had before: host, process id, and a random part."""
    return WorkerId(f"{_prefix(os.getpid())}{secrets.token_hex(4)}")


async def release_dead(client: Redis, pid: int) -> int:
    """End the leases of a process of this machine whose end its parent has seen; returns how many there were.

    Its blocks are claimed, or its lead taken over, at once then, instead of when the lease would have ended.
    """
    runs = Runs(client)
    on_death = 0
    for run in await runs.names():
        if await runs.state(run) is RunState.COMPLETE:
            continue
        keys = RunKeys(run)
        with translate_redis_errors():
            names = [name.decode() for name in await client.zrange(keys.workers, 0, -1) if isinstance(name, bytes)]
            dead = [name for name in names if name.startswith(_prefix(pid))]
            if dead:
                on_death += await client.zrem(keys.workers, *dead)
            leader = as_text(await client.get(keys.leader) or "")
        if leader.startswith(_prefix(pid)):
            await Election(client, keys, leader).leave()
            on_death += 1
    return on_death


def _prefix(pid: int) -> str:
    return f"{socket.gethostname()}-{pid}-"
