"""Starts, watches and stops the embedded services of one data folder."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Coroutine, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from coordinator.errors import ShardcrawlError
from crawler.local.embedded import folder
from crawler.local.embedded.folder import RunningServers, Services
from crawler.local.embedded.postgres import PostgresServer
from crawler.local.embedded.redis import RedisServer
from crawler.local.embedded.server import Server, StartError

logger = logging.getLogger(__name__)

# A server that dies this often within this time is not restarted any more.
MAX_DEATHS = 5
DEATHS_WINDOW_SECONDS = 10.0
WATCH_POLL_SECONDS = 0.1


class Embedded:
    """Redis and Postgres as children of this process; what they store stays in the folder for the next time."""

    def __init__(self, data: Path, *, redis: bool = True, postgres: bool = True) -> None:
        self._data = data.resolve()
        self._sockets = folder.sockets(self._data, Path(tempfile.gettempdir()), os.geteuid())
        both = (RedisServer(self._data, self._sockets), PostgresServer(self._data, self._sockets))
        self._servers: list[Server] = [server for server, wanted in zip(both, (redis, postgres), strict=True) if wanted]
        self._unwanted: list[Server] = [server for server in both if server not in self._servers]
        self._lock: int | None = None
        self._watch: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Lock the folder, stop what a killed run left there, start the servers and wait until each is ready.

        Raises DataInUse when another process has the folder, ShardcrawlError when it or a server cannot be used.
        """
        self._lock = await folder.lock(self._data)
        try:
            folder.remove_services_file(self._data)
            for server in self._unwanted:
                await server.stop_leftovers()
            # When we are root, Postgres' account must enter this folder to reach its own, and need not list it.
            folder.make_private(self._sockets, 0o711 if os.geteuid() == 0 else 0o700)
            for server in self._servers:
                await server.spawn()
            for server in self._servers:
                await server.wait_until_ready()
            self._write_services_file()
        except BaseException:
            await _finish(self._close())
            raise
        logger.info("embedded %s in %s", " and ".join(server.name for server in self._servers), self._data)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the servers and free the folder, also when this task is cancelled meanwhile."""
        await _finish(self._close())

    @property
    def services(self) -> Services:
        """The addresses of the servers."""
        urls = {server.name: server.url for server in self._servers}
        return Services(urls.get(RedisServer.name), urls.get(PostgresServer.name))

    @property
    def pids(self) -> Mapping[str, int]:
        """The process id of each server that lives, by its name."""
        return {server.name: server.pid for server in self._servers if server.pid is not None and server.ending is None}

    def abandon(self) -> None:
        """Ask the servers to stop, and do not wait for them: for a process that ends at once."""
        for server in self._servers:
            server.abandon()

    async def watch(self) -> None:
        """Restart a server that dies, until cancelled or until the services are stopped.

        Raises ShardcrawlError when one died 5 times within 10 s: then it cannot run here, and was not just killed.
        """
        self._watch = asyncio.create_task(self._restart_dead_servers())
        try:
            await asyncio.wait([self._watch])
        finally:
            self._watch.cancel()
        if not self._watch.cancelled():
            self._watch.result()

    async def _restart_dead_servers(self) -> None:
        deaths: dict[str, deque[float]] = {server.name: deque(maxlen=MAX_DEATHS) for server in self._servers}
        while True:
            for server in self._servers:
                if (ending := server.ending) is None:
                    continue
                times = deaths[server.name]
                times.append(time.monotonic())
                if len(times) == MAX_DEATHS and times[-1] - times[0] <= DEATHS_WINDOW_SECONDS:
                    raise ShardcrawlError(
                        f"{server.name} died {MAX_DEATHS} times within {DEATHS_WINDOW_SECONDS:.0f} s, "
                        f"last by {ending}; see {server.log}"
                    )
                try:
                    await server.spawn()
                    await server.wait_until_ready()
                except StartError as error:
                    logger.warning("%s", error)
                    continue
                self._write_services_file()
                logger.warning("restarted %s (now pid %s), ended by %s", server.name, server.pid, ending)
            await asyncio.sleep(WATCH_POLL_SECONDS)

    def _write_services_file(self) -> None:
        folder.write_services_file(self._data, RunningServers(self.services, self.pids))

    async def _close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()  # else it would restart what we stop
        folder.remove_services_file(self._data)
        try:
            failures = await asyncio.gather(*(server.stop() for server in self._servers), return_exceptions=True)
        finally:
            shutil.rmtree(self._sockets, ignore_errors=True)
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None
        for failure in failures:
            if failure:
                raise failure


def running(data: Path) -> Services | None:
    """The services that a live process has started in this folder; None without such a process, or if one is dead."""
    data = data.resolve()
    if not folder.is_locked(data) or (found := folder.read_services_file(data)) is None:
        return None
    kinds: tuple[type[Server], ...] = (RedisServer, PostgresServer)
    alive = {kind.name for kind in kinds if kind.name in found.pids and kind.runs(found.pids[kind.name], data)}
    return found.services if alive >= found.pids.keys() else None


async def _finish(work: Coroutine[Any, Any, None]) -> None:
    """Finish the work even if this task is cancelled meanwhile, and raise the cancellation after it."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled:
        raise cancelled
