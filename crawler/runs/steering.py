"""A run is steered while it goes on: paused, resumed, given a bound on its workers.

Postgres remembers it, and Redis tells it to those who work on the run.
"""

from __future__ import annotations

from collections.abc import Callable

from redis.asyncio import Redis

from coordinator.errors import UsageError
from coordinator.model import Steering
from coordinator.queue.registry import Runs
from crawler.runs.naming import name_lock
from crawler.store.catalogue import open_catalogue
from crawler.store.postgres import postgres_errors
from crawler.store.queries import query


async def steer_run(client: Redis, database: str, name: str, change: Callable[[Steering], Steering]) -> Steering:
    """Steer a run otherwise, at once and for all who work on it; returns how it is steered now.

    Raises UsageError when it is unknown or complete, RunCancelled, RedisUnavailable, PostgresUnavailable,
    PostgresRefused.
    """
    async with name_lock(database, name), open_catalogue(database) as catalogue:
        await catalogue.prepare()
        run = await catalogue.find(name)
        if run is None:
            raise UsageError(f"run {name} is not known; `shardcrawl runs` lists every run")
        run.refuse_cancelled()
        steering = change(run.steering)
        arguments = (run.run_id, steering.paused, steering.max_workers)
        with postgres_errors():
            if await catalogue.connection.fetchval(query("steer-run"), *arguments) is None:
                raise UsageError(f"run {name} is complete: nobody works on it any more")
        await Runs(client).steer(name, steering)
    return steering
