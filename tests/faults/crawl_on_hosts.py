"""Coordinators and workers on hosts of their own, one run, and what can be seen of it from outside."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from time import monotonic
from typing import Any

import asyncpg
import psutil
from redis.asyncio import Redis

from coordinator.redis.connection import connect_redis
from coordinator.redis.keys import RunKeys
from coordinator.status import RunSnapshot, read_snapshot
from tests.faults.crawl import BATCH_ROWS, CONCURRENCY, NAME, Crawl
from tests.faults.table import Row
from tests.live.shell import Running, Shell
from tests.servers.hosts import Host, new_hosts
from tests.servers.links import Router
from tests.servers.services_host import ServicesHost, serve_on
from tests.waiting import eventually

# The documents promise 15 s after a host vanished; the tests' machine may be busy.
TAKE_OVER_SECONDS = 20.0
# How late a request may arrive: TCP repeats a lost one after 0.2 s and more, and the tests' machine may be busy.
LATE_SECONDS = 1.0


@dataclass(slots=True)
class Fleet:
    """The hosts by name: c1, c2, … run `coordinate`, w1, w2, … run `work`. `crawl` audits the run from outside."""

    crawl: Crawl
    services: ServicesHost
    redis: Redis
    router: Router
    add: Callable[[str], Host]
    hosts: dict[str, Host] = field(default_factory=dict)
    commands: dict[str, Running] = field(default_factory=dict)

    async def start(self, *names: str, rate: int, environ: Mapping[str, str] | None = None) -> None:
        """Start the commands of new hosts; `environ` is added to theirs."""
        corpus = self.crawl.corpus()
        for name in names:
            self.hosts[name] = host = self.add(name)
            options = ["--batch-rows", str(BATCH_ROWS), "--concurrency", str(CONCURRENCY), "--rate", str(rate)]
            words = ["coordinate", corpus, *options] if name.startswith("c") else ["work"]
            settings = {**self.services.environ, **(environ or {})}
            self.commands[name] = await host.shell.start(*words, environ=settings)

    async def snapshot(self) -> RunSnapshot:
        """The run as Redis has it."""
        return await read_snapshot(self.redis, NAME)

    async def leader(self) -> str:
        """The name of the host whose coordinator leads; empty when none does."""
        leader = (await self.snapshot()).leader
        return leader.rsplit("-", 2)[0] if leader else ""

    async def working(self) -> list[str]:
        """The names of the hosts whose workers live, in order."""
        now = (await self.redis.time())[0] * 1000
        living = await self.redis.zrangebyscore(RunKeys(NAME).workers, now, "+inf")
        return sorted(worker.decode().rsplit("-", 2)[0] for worker in living)

    async def ready(self, *names: str) -> None:
        """Wait until all of these work, and one coordinator leads."""

        async def there() -> bool:
            return bool(await self.leader()) and set(names) <= set(await self.working())

        await eventually(there, f"{names} to work", seconds=120)

    async def status(self) -> dict[str, Any]:
        """What the command `status` says, as a program reads it."""
        ended = await self.crawl.shell.run("status", NAME, "--json", environ=self.services.local_environ)
        said: dict[str, Any] = json.loads(ended.out)
        return said

    async def complete(self) -> None:
        """Wait until the living coordinators end with a complete run, and end the living workers."""
        for name, command in self.commands.items():
            if name.startswith("c") and self.hosts[name].link.up:
                await self.crawl.complete(command)
        for name, command in self.commands.items():
            if name.startswith("w") and self.hosts[name].link.up:
                command.process.terminate()
                ended = await command.end()
                assert "Traceback" not in ended.err, ended.err

    async def sessions(self, host: Host) -> int:
        """How many sessions of Postgres a host has."""
        connection = await asyncpg.connect(self.services.local_environ["DATABASE_URL"])
        try:
            query = "SELECT count(*) FROM pg_stat_activity WHERE host(client_addr) = $1"
            return int(await connection.fetchval(query, host.address))
        finally:
            await connection.close()

    async def blocks(self, host: Host) -> int:
        """How many blocks the workers of a host have claimed and not completed."""
        streams = [name async for name in self.redis.scan_iter(match=f"*{NAME}*:stream:*")]
        pending = [await self.redis.xpending_range(name, "workers", "-", "+", 1000) for name in streams]
        return sum(entry["consumer"].startswith(f"{host.name}-".encode()) for found in pending for entry in found)

    def processes(self, name: str) -> list[psutil.Process]:
        """The processes of a host's command."""
        command = psutil.Process(self.commands[name].process.pid)
        return [command, *command.children(recursive=True)]

    def budget_kept(self, rate: int) -> None:
        """Check in the upstream's log that no time, however long or short, has more requests than the rate allows.

        A request may arrive LATE_SECONDS late; those that were sent after it then follow it more closely.
        """
        times = self.crawl.upstream.times
        ahead = [index - rate * at for index, at in enumerate(times)]
        surplus = max(now - least for now, least in zip(ahead, accumulate(ahead, min), strict=True))
        assert surplus <= 1 + rate * LATE_SECONDS, f"{surplus:.0f} requests too many at {rate}/s"


async def within(condition: Callable[[], Any], what: str, began: float, seconds: float = TAKE_OVER_SECONDS) -> float:
    """Wait until the condition holds, at most `seconds` after `began`; returns after how many it did."""
    await eventually(condition, what, seconds=seconds - (monotonic() - began))
    return monotonic() - began


@asynccontextmanager
async def new_fleet(folder: Path, shell: Shell, data: Path, report: Callable[[Row], None]) -> AsyncIterator[Fleet]:
    """A services host, and no other yet. Raises NoHosts."""
    async with new_hosts(folder) as hosts, serve_on(hosts.add("services"), data) as services:
        crawl = Crawl(shell, services.upstream, report, dict(services.local_environ))
        client = connect_redis(services.local_environ["REDIS_URL"])
        try:
            yield Fleet(crawl, services, client, hosts.router, hosts.add)
        finally:
            await client.aclose()
            for host in hosts.made:
                await host.shell.kill_rest()
