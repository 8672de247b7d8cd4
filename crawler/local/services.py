"""Redis and Postgres for a command: those at the user's addresses, and embedded ones where no address is given."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from crawler.local.embedded import Embedded, running

# In the place of Postgres' address, for a command that needs none.
NO_DATABASE = "none"


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
async def redis_alone(place: Place) -> AsyncIterator[str]:
    """Redis' address, as `services` with `share` finds or starts it; Postgres is not started. Raises what they do."""
    async with services(replace(place, database=NO_DATABASE), share=True) as addresses:
        yield addresses.redis
