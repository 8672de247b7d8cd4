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
from crawler.local.embedded.account import account_of_servers
from crawler.local.embedded.folder import DataFolder, RunningServers, Services
from crawler.local.embedded.lock import is_locked, lock
from crawler.local.embedded.postgres import PostgresServer
from crawler.local.embedded.redis import RedisServer
from crawler.local.embedded.server import Server, StartError
from crawler.local.embedded.watchdog import GRACE_SECONDS, Watchdog

logger = logging.getLogger(__name__)

# A server that dies this often within this time is not restarted any more.
MAX_DEATHS = 5
DEATHS_WINDOW_SECONDS = 10.0
WATCH_POLL_SECONDS = 0.1


class Embedded:
    """Redis and Postgres as children of this process; what they store stays in the folder for the next time."""

    def __init__(
        self, data: Path, *, redis: bool = True, postgres: bool = True, grace_seconds: float = GRACE_SECONDS
    ) -> None:
        self._data = folder.full_path(data)
        self._wanted: dict[type[Server], bool] = {RedisServer: redis, PostgresServer: postgres}
        self._grace_seconds = grace_seconds
        self._servers: list[Server] = []
        self._folder: DataFolder | None = None
        self._sockets: Path | None = None
        self._lock: int | None = None
        self._watchdog: Watchdog | None = None
        self._watch: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Lock the folder, stop what a killed run left there, start the servers and wait until each is ready.

        Should this process be killed, a watchdog stops them after `grace_seconds`. Raises DataInUse when another
        process has the folder, ShardcrawlError when it is not ours, or it or a server cannot be used.
        """
        self._folder = folder.open_folder(self._data)
        try:
            sockets = folder.sockets(self._data, Path(tempfile.gettempdir()))
            self._lock = await lock(self._folder)
            account = account_of_servers()
            folder.remove_services_file(self._folder)
            servers = [kind(self._folder, sockets, account) for kind in self._wanted]
            for server in servers:
                if not self._wanted[type(server)]:
                    await server.stop_leftovers()
            # The account of the servers enters its own folders below this one, and need not list it.
            folder.make_private(sockets, 0o711 if account else 0o700)
            self._sockets = sockets
            self._servers = [server for server in servers if self._wanted[type(server)]]
            self._watchdog = Watchdog(self._grace_seconds)
            for server in self._servers:
                await self._spawn(server)
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

    @property
    def is_wanted(self) -> bool:
        """Whether another command waits for the folder."""
        return self._folder is not None and is_locked(self._folder, folder.WANTED)

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
                    await self._spawn(server)
                    await server.wait_until_ready()
                except StartError as error:
                    logger.warning("%s", error)
                    continue
                self._write_services_file()
                logger.warning("restarted %s (now pid %s), ended by %s", server.name, server.pid, ending)
            await asyncio.sleep(WATCH_POLL_SECONDS)

    async def _spawn(self, server: Server) -> None:
        await server.spawn()
        if self._watchdog is not None:
            self._watchdog.guard({server.pid: server.stop_signals for server in self._servers if server.pid})

    def _write_services_file(self) -> None:
        assert self._folder is not None
        folder.write_services_file(self._folder, RunningServers(self.services, self.pids))

    async def _close(self) -> None:
        assert self._folder is not None
        if self._watch is not None:
            self._watch.cancel()  # else it would restart what we stop
        try:
            if self._lock is not None:
                folder.remove_services_file(self._folder)
            failures = await asyncio.gather(*(server.stop() for server in self._servers), return_exceptions=True)
        finally:
            if self._watchdog is not None:
                self._watchdog.dismiss()
            if self._sockets is not None:
                shutil.rmtree(self._sockets, ignore_errors=True)
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None
            self._folder.close()
        for failure in failures:
            if failure:
                raise failure


def running(data: Path) -> Services | None:
    """The services that a live process has started in this folder; None without such a process, or if one is dead.

    Raises ShardcrawlError when the folder is not ours.
    """
    if (found_folder := folder.find_folder(data)) is None:
        return None
    try:
        if not is_locked(found_folder) or (found := folder.read_services_file(found_folder)) is None:
            return None
    finally:
        found_folder.close()
    kinds: tuple[type[Server], ...] = (RedisServer, PostgresServer)
    path = found_folder.path
    alive = {kind.name for kind in kinds if kind.name in found.pids and kind.runs(found.pids[kind.name], path)}
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
