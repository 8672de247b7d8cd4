"""A network between a client and a server on this machine that can be cut, stalled and reset, also at a given byte."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

PIECE = 64 * 1024
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(slots=True)
class Trap:
    """Cuts the connection on which `mark` is sent, `times` times: before the server gets it, or after its response."""

    mark: bytes
    times: int
    responded: bool


class Proxy:
    """`async with Proxy(url) as proxy` listens on loopback; `proxy.url` is the same Redis or Postgres behind it.

    `url` names a server by its unix socket, as the embedded ones do. `cuts` counts the connections that were cut.
    """

    def __init__(self, url: str) -> None:
        self.url = ""
        self.cuts = 0
        self._behind = urlsplit(url)
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._trap: Trap | None = None
        self._bytes_left: int | None = None
        self._wires: set[Wire] = set()

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        if self._behind.scheme == "unix":
            self.url = f"redis://127.0.0.1:{self.port}/0"
        else:
            self.url = f"postgresql://postgres@127.0.0.1:{self.port}{self._behind.path}?sslmode=disable"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self._flowing.set()
        self.cut()
        await self._server.wait_closed()

    def cut(self, *, reset: bool = False) -> None:
        """End every connection, in the middle of whatever passes; with `reset` by an RST instead of a FIN."""
        for wire in tuple(self._wires):
            wire.cut(reset=reset)

    def cut_at(self, mark: bytes, *, times: int = 1, responded: bool) -> None:
        """Cut the connections on which a client sends these bytes next."""
        self._trap = Trap(mark, times, responded)

    def cut_after(self, count: int) -> None:
        """Cut the connection on which the clients' next `count` bytes are through."""
        self._bytes_left = count

    def stall(self) -> None:
        """Let nothing pass, and say so to nobody: what is sent waits."""
        self._flowing.clear()

    def flow(self) -> None:
        """Let everything pass again."""
        self._flowing.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            behind = await asyncio.open_unix_connection(self._path())
        except OSError:
            writer.transport.abort()
            return
        wire = Wire(self, (reader, writer), behind)
        self._wires.add(wire)
        try:
            await wire.carry()
        finally:
            self._wires.discard(wire)

    def _path(self) -> str:
        if self._behind.scheme == "unix":
            return unquote(self._behind.path)
        options = parse_qs(self._behind.query)
        return f"{options['host'][0]}/.s.PGSQL.{options['port'][0]}"

    async def passes(self, wire: Wire, sent: bytes) -> bytes:
        """What of these bytes of a client goes on to the server; marks the wire when it is to be cut."""
        await self._flowing.wait()
        if self._bytes_left is not None:
            sent = sent[: self._bytes_left]
            self._bytes_left -= len(sent)
            if not self._bytes_left:
                self._bytes_left, wire.ending = None, True
        trap = self._trap
        if trap is not None and trap.times and trap.mark in wire.tail(trap.mark) + sent:
            trap.times -= 1
            wire.ending = wire.ending or not trap.responded
            wire.ends_with_response = trap.responded
            return sent if trap.responded else b""
        return sent

    async def thawed(self) -> None:
        """Return when bytes may pass."""
        await self._flowing.wait()


class Wire:
    """One connection through the proxy."""

    def __init__(
        self,
        proxy: Proxy,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self.ending = False
        self.ends_with_response = False
        self._proxy = proxy
        self._client, self._server = client, server
        self._sent = b""

    async def carry(self) -> None:
        """Carry bytes both ways until either side ends."""
        ways = [asyncio.create_task(self._forth()), asyncio.create_task(self._back())]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        if self.ending:
            self.cut()
        for _, writer in (self._client, self._server):
            writer.close()

    def cut(self, *, reset: bool = False) -> None:
        """End it at once."""
        self._proxy.cuts += 1
        for _, writer in (self._client, self._server):
            end: socket.socket = writer.get_extra_info("socket")
            if reset and end.family == socket.AF_INET:
                with suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            writer.transport.abort()

    def tail(self, mark: bytes) -> bytes:
        """The last bytes sent, in which a mark may begin."""
        return self._sent[-len(mark) + 1 :]

    async def _forth(self) -> None:
        with suppress(OSError):
            while not self.ending and (piece := await self._client[0].read(PIECE)):
                passed = await self._proxy.passes(self, piece)
                self._sent = (self._sent + piece)[-100:]
                self._server[1].write(passed)
                await self._server[1].drain()

    async def _back(self) -> None:
        with suppress(OSError):
            while piece := await self._server[0].read(PIECE):
                await self._proxy.thawed()
                if self.ends_with_response:
                    self.ending = True
                    return
                self._client[1].write(piece)
                await self._client[1].drain()
