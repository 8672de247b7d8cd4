"""A Redis, its replica, and a sentinel that makes the replica the master when the first one dies."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import RedisError

from crawler.local.embedded.redis import redis_program
from tests.servers.own_servers import free_port
from tests.waiting import eventually

MASTER = "ours"


class Guarded:
    """A master with one replica. `url` is the address by way of the sentinel."""

    def __init__(self, folder: Path, *settings: str) -> None:
        self._folder = folder
        self._settings = settings
        self._ports = [free_port() for _ in range(2)]
        sentinel = free_port()
        self.url = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{sentinel}/{MASTER}/0"  # the first one is away
        self._sentinel = Redis(port=sentinel)
        self._processes: list[subprocess.Popen[bytes]] = []

    async def start(self) -> None:
        """Start all three, and wait until the sentinel knows the replica, which has what the master has."""
        first, second = self._ports
        self._spawn("first", "--port", str(first), *self._settings)
        self._spawn("second", "--port", str(second), "--replicaof", f"127.0.0.1 {first}", *self._settings)
        (self._folder / "sentinel.conf").write_text(
            f"sentinel monitor {MASTER} 127.0.0.1 {first} 1\n"
            f"sentinel down-after-milliseconds {MASTER} 500\n"
            f"sentinel failover-timeout {MASTER} 2000\n"
        )
        port = self._sentinel.connection_pool.connection_kwargs["port"]
        self._spawn("sentinel.conf", "--sentinel", "--port", str(port))
        await eventually(self._has_replica, "the sentinel to know the replica")

    def kill_master(self) -> None:
        """End the first master for good."""
        self._processes[0].kill()
        self._processes[0].wait()

    async def stop(self) -> None:
        """End all of them."""
        await self._sentinel.aclose()
        for process in self._processes:
            process.kill()
            process.wait()

    def _spawn(self, name: str, *words: str) -> None:
        if name.endswith(".conf"):
            command, folder = [str(self._folder / name), *words], self._folder
        else:
            command, folder = (
                ["--save", "", "--repl-diskless-sync-delay", "0", "--bind", "127.0.0.1", *words],
                self._folder / name,
            )
            folder.mkdir()
        self._processes.append(
            subprocess.Popen([str(redis_program()), *command], cwd=folder, stdout=subprocess.DEVNULL)
        )

    async def _has_replica(self) -> bool:
        try:
            await self._sentinel.execute_command("SENTINEL", "DEBUG", "info-period", 200)
            replicas = await self._sentinel.execute_command("SENTINEL", "REPLICAS", MASTER)
        except (RedisError, OSError):
            return False
        found = [dict(zip(one[::2], one[1::2], strict=True)) if isinstance(one, list) else one for one in replicas]
        return [one.get(b"master-link-status", one.get("master-link-status")) for one in found] in ([b"ok"], ["ok"])


@asynccontextmanager
async def guarded_redis(folder: Path, *settings: str) -> AsyncIterator[Guarded]:
    """A master, a replica and a sentinel in `folder`, with these settings of the servers."""
    guarded = Guarded(folder, *settings)
    try:
        await guarded.start()
        yield guarded
    finally:
        await guarded.stop()
