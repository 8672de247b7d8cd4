"""Redis and Postgres for a command: at the user's addresses, or started here where there is none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from crawler.local.embedded import Embedded, running


@dataclass(frozen=True, slots=True)
class Place:
    """Where Redis and Postgres are: at the user's addresses, or embedded in the folder `data` where there is none."""

    redis: str | None
    database: str | None
    data: Path


@dataclass(frozen=True, slots=True)
class Addresses:
    """Both services' addresses; `embedded` runs those that this process has started, if any."""

    redis: str
    database: str
    embedded: Embedded | None = None


@asynccontextmanager
async def services(place: Place, *, share: bool = False) -> AsyncIterator[Addresses]:
    """Both services, started here where no address is given; `share` uses those that a running command has started.

    Raises DataInUse, RedisUnavailable, RedisRefused, PostgresUnavailable, PostgresRefused.
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
