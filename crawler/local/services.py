"""Redis and Postgres for a command: those at the user's addresses, and embedded ones where no address is given."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from redis.asyncio import Redis

from coordinator.errors import DataInUse
from coordinator.redis.connection import connect_redis
from coordinator.tasks import cancel_and_wait
from crawler.local.embedded import Embedded, running
from crawler.store.catalogue import Catalogue
from crawler.store.postgres import PostgresConnection, connect_postgres

# In the place of Postgres' address, for a command that needs none.
NO_DATABASE = "none"
SERVICES_POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Place:
    """Where Redis and Postgres are: at these URLs, or embedded in the folder `data` where the URL is None."""

    redis: str | None
    database: str | None
    data: Path


@dataclass(frozen=True, slots=True)
class Addresses:
    """The URLs of both services; `embedded` are the servers that this process has started, if any."""

    redis: str
    database: str
    embedded: Embedded | None = None


@asynccontextmanager
async def services(place: Place, *, share: bool = False) -> AsyncIterator[Addresses]:
    """Start the services that have no address, and stop them at the end; yields the addresses of both.

    With `share` those that another command has started in the same folder are used. Raises DataInUse, RedisRefused,
    PostgresRefused, or ShardcrawlError when a server or the folder cannot be used.
    """
    if place.redis and place.database:
        yield Addresses(place.redis, place.database)
        return
    shared = running(place.data) if share else None
    if shared is not None and (place.redis or shared.redis_url) and (place.database or shared.database_url):
        yield Addresses(place.redis or str(shared.redis_url), place.database or str(shared.database_url))
        return
    async with Embedded(place.data, redis=not place.redis, postgres=not place.database) as embedded:
        urls = embedded.services
        yield Addresses(place.redis or str(urls.redis_url), place.database or str(urls.database_url), embedded)


@asynccontextmanager
async def opened_services(place: Place) -> AsyncIterator[tuple[PostgresConnection, Redis, str]]:
    """A connection to Postgres with the schema made, a client of Redis, and Postgres' address, of shared `services`."""
    async with services(place, share=True) as addresses:
        connection = await connect_postgres(addresses.database)
        client = connect_redis(addresses.redis)
        try:
            await Catalogue(connection).prepare()
            yield connection, client, addresses.database
        finally:
            await client.aclose()
            connection.terminate()


@asynccontextmanager
async def redis_alone(place: Place) -> AsyncIterator[str]:
    """Redis' address, as `services` with `share` finds or starts it; Postgres is not started. Raises what they do."""
    async with services(replace(place, database=NO_DATABASE), share=True) as addresses:
        yield addresses.redis


class LookedAt:
    """Redis and Postgres for a command that looks on and stays: those at the addresses of the place, else those that
    another command has in its folder, else its own, which make way for a command that wants the folder.

    `addresses` is None while there are none.
    """

    def __init__(self, place: Place) -> None:
        self.addresses = Addresses(place.redis, place.database) if place.redis and place.database else None
        self._place = place

    async def keep(self) -> None:
        """Keep the addresses right until cancelled. Raises ShardcrawlError when the folder cannot be used."""
        if self.addresses is not None:
            await asyncio.Event().wait()
        while True:
            with suppress(DataInUse):
                async with services(self._place, share=True) as self.addresses:
                    await self._while_here(self.addresses)
            self.addresses = None
            await asyncio.sleep(SERVICES_POLL_SECONDS)

    async def _while_here(self, addresses: Addresses) -> None:
        if addresses.embedded is None:
            before = running(self._place.data)
            while before is not None and running(self._place.data) == before:
                await asyncio.sleep(SERVICES_POLL_SECONDS)
        else:
            watching = asyncio.create_task(addresses.embedded.watch())
            try:
                while not (addresses.embedded.is_wanted or watching.done()):
                    await asyncio.sleep(SERVICES_POLL_SECONDS)
            finally:
                await cancel_and_wait([watching])
        self.addresses = None
