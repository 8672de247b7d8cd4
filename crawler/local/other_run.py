"""A refresh that is started while the former one of its corpus goes on, as a schedule does."""

from __future__ import annotations

from coordinator.errors import StillRunning
from coordinator.redis.connection import connect_redis
from coordinator.status import read_snapshot
from crawler.job.job import Job
from crawler.local.services import Addresses
from crawler.store.catalogue import open_catalogue


async def refuse_beside_another(addresses: Addresses, job: Job) -> None:
    """Raise StillRunning while somebody works on a run of the job's corpus that is not complete."""
    async with open_catalogue(addresses.database) as catalogue:
        await catalogue.prepare(upgrade=True)
        begun = [run for run in await catalogue.all() if run.corpus == job.corpus and run.unfinished]
    client = connect_redis(addresses.redis)
    try:
        for run in begun:
            now = await read_snapshot(client, run.name, None)
            if now.leader or now.workers:
                raise StillRunning(
                    f"{job.corpus}: run {run.name} goes on, so no other refresh begins beside it; "
                    f"`shardcrawl status {run.name}` shows where it stands"
                )
    finally:
        await client.aclose()
