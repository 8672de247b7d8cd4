"""A refresh that is started while the former one of its corpus goes on, as a schedule does."""

from __future__ import annotations

from contextlib import suppress

from coordinator.errors import DataInUse, StillRunning, Unavailable
from coordinator.redis.connection import connect_redis
from coordinator.status import read_snapshot
from crawler.job.job import Job
from crawler.local.services import Addresses, Place, services
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


async def refuse_beside_its_like(place: Place, job: Job) -> None:
    """Raise StillRunning while the command that uses the data folder works on the job's corpus, not on another one."""
    with suppress(DataInUse, Unavailable):  # it begins or ends just now
        async with services(place, share=True) as addresses:
            await refuse_beside_another(addresses, job)
