"""Redis and Postgres for the pages: one client, and a few connections that are used again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import asyncpg
from redis.asyncio import Redis

from coordinator.errors import PostgresUnavailable, Unavailable, UsageError, first_line
from coordinator.redis.connection import connect_redis
from crawler.local.services import Addresses
from crawler.store.catalogue import Catalogue
from crawler.store.postgres import connect_postgres
from crawler.store.rows.stored_run import StoredRun

# However many pages are open, Postgres has no more sessions than these.
MAX_CONNECTIONS = 4
# A table that is locked, or a server that vanished without a word, must not keep a session for ever.
READ_SECONDS = 60.0


class Stores:
    """Both services, wherever they are now: `addresses` returns None while they are in no place."""

    def __init__(self, addresses: Callable[[], Addresses | None], connections: int = MAX_CONNECTIONS) -> None:
        self._find = addresses
        self._addresses: Addresses | None = None
        self._client: Redis | None = None
        self._idle: list[Catalogue] = []
        self._free = asyncio.Semaphore(connections)

    @property
    def database(self) -> str:
        """The address of Postgres. Raises Unavailable."""
        return self._here().database

    @property
    def client(self) -> Redis:
        """A client of Redis. Raises Unavailable."""
        here = self._here()
        if self._client is None:
            self._client = connect_redis(here.redis)
        return self._client

    @asynccontextmanager
    async def catalogue(self, *, has_bound: bool = True) -> AsyncIterator[Catalogue]:
        """The runs in Postgres, for one caller at a time, and for READ_SECONDS if it `has_bound`.

        Raises Unavailable, PostgresRefused.
        """
        try:
            async with asyncio.timeout(READ_SECONDS if has_bound else None), self._connected() as catalogue:
                yield catalogue
        except TimeoutError as error:
            words = f"Postgres takes more than {READ_SECONDS:.0f} s; commands, like `shardcrawl diff`, have no bound"
            raise PostgresUnavailable(words) from error

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Catalogue]:
        async with self._free:
            here = self._here()
            idle = self._idle.pop() if self._idle else None
            is_new = idle is None or idle.connection.is_closed()
            catalogue = Catalogue(await connect_postgres(here.database)) if idle is None or is_new else idle
            try:
                if is_new:
                    await catalogue.prepare()
                yield catalogue
            except asyncpg.DataError as error:  # a text that Postgres cannot have
                catalogue.connection.terminate()
                raise UsageError(first_line(error)) from error
            except BaseException:
                catalogue.connection.terminate()
                raise
            if here is self._addresses:
                self._idle.append(catalogue)
            else:
                catalogue.connection.terminate()

    async def run(self, catalogue: Catalogue, name: str) -> StoredRun:
        """The run of that name. Raises UsageError when there is none."""
        if (run := await catalogue.find(name)) is None:
            raise UsageError(f"there is no run {name}")
        return run

    async def close(self) -> None:
        """Close all connections."""
        self._forget()
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def _here(self) -> Addresses:
        if (found := self._find()) is None:
            raise Unavailable("Redis and Postgres are being started or stopped")
        if found is not self._addresses:
            self._forget()
            self._addresses, client, self._client = found, self._client, None
            if client is not None:
                with suppress(RuntimeError):
                    asyncio.ensure_future(client.aclose())  # noqa: RUF006  (nobody waits for it)
        return found

    def _forget(self) -> None:
        while self._idle:
            self._idle.pop().connection.terminate()
