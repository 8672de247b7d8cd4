"""Start, watch and stop the embedded services of one data folder."""

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
from crawler.local.embedded.folder import Record, Services
from crawler.local.embedded.postgres import Postgres
from crawler.local.embedded.redis import Redis
from crawler.local.embedded.server import Server, StartError

logger = logging.getLogger(__name__)

DEATHS = 5
DEATHS_SECONDS = 10.0


class Embedded:
    """Redis and Postgres as children of this process; what they hold stays in the folder for the next time."""

    def __init__(self, data: Path, *, redis: bool = True, postgres: bool = True) -> None:
        self._data = data.resolve()
        self._sockets = folder.sockets(self._data, Path(tempfile.gettempdir()), os.geteuid())
        self._possible: tuple[Server, ...] = (Redis(self._data, self._sockets), Postgres(self._data, self._sockets))
        asked = {Redis.name: redis, Postgres.name: postgres}
        self._servers = [server for server in self._possible if asked[server.name]]
        self._lock: int | None = None
        self._watch: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Lock the folder, end what a killed run left there, start the servers and wait until each answers.

        Raises DataInUse when another process has the folder, ShardcrawlError when it or a server cannot be used.
        """
        self._lock = await folder.lock(self._data)
        try:
            folder.remove_record(self._data)
            for unasked in set(self._possible) - set(self._servers):
                await unasked.stop_leftovers()
            # When we are root, Postgres's account passes through this folder to its own; nobody lists it.
            folder.make_private(self._sockets, 0o711 if os.geteuid() == 0 else 0o700)
            for server in self._servers:
                await server.spawn()
            for server in self._servers:
                await server.ready()
            self._record()
        except BaseException:
            await _through(self._close())
            raise
        logger.info("embedded %s in %s", " and ".join(server.name for server in self._servers), self._data)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the servers and free the folder, also when this task is cancelled meanwhile."""
        await _through(self._close())

    @property
    def services(self) -> Services:
        """Where the servers answer."""
        urls = {server.name: server.url for server in self._servers}
        return Services(urls.get(Redis.name), urls.get(Postgres.name))

    @property
    def pids(self) -> Mapping[str, int]:
        """The process id of each server that lives, by its name."""
        return {server.name: server.pid for server in self._servers if server.pid is not None and server.ending is None}

    def abandon(self) -> None:
        """Ask the servers to stop, and do not wait for them: for a process that leaves at once."""
        for server in self._servers:
            server.abandon()

    async def watch(self) -> None:
        """Restart a server that dies, until cancelled or until the services are stopped.

        Raises ShardcrawlError when one died 5 times within 10 s: then it cannot run, as opposed to being killed.
        """
        self._watch = asyncio.create_task(self._restart_the_dead())
        try:
            await asyncio.wait([self._watch])
        finally:
            self._watch.cancel()
        if not self._watch.cancelled():
            self._watch.result()

    async def _restart_the_dead(self) -> None:
        deaths: dict[str, deque[float]] = {server.name: deque(maxlen=DEATHS) for server in self._servers}
        while True:
            for server in self._servers:
                if (ending := server.ending) is None:
                    continue
                times = deaths[server.name]
                times.append(time.monotonic())
                if len(times) == DEATHS and times[-1] - times[0] <= DEATHS_SECONDS:
                    raise ShardcrawlError(
                        f"{server.name} died {DEATHS} times within {DEATHS_SECONDS:.0f} s, last by {ending}; "
                        f"see {server.log}"
                    )
                try:
                    await server.spawn()
                    await server.ready()
                except StartError as error:
                    logger.warning("%s", error)
                    continue
                self._record()
                logger.warning("restarted %s (now pid %s), ended by %s", server.name, server.pid, ending)
            await asyncio.sleep(0.1)

    def _record(self) -> None:
        folder.write_record(self._data, Record(self.services, self.pids))

    async def _close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()  # or it would restart what we stop
        folder.remove_record(self._data)
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
    """The services that a live process has started in this folder; None when there is none, or they are dead."""
    data = data.resolve()
    if not folder.held(data) or (record := folder.read_record(data)) is None:
        return None
    servers: tuple[type[Server], ...] = (Redis, Postgres)
    alive = {s.name for s in servers if (pid := record.pids.get(s.name)) is not None and s.runs(pid, data)}
    return record.services if alive >= record.pids.keys() else None


async def _through(work: Coroutine[Any, Any, None]) -> None:
    """Finish the work although this task is cancelled, and let the cancellation go on then."""
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
