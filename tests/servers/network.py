"""A TCP proxy before Redis or Postgres that a test can cut, stall and reset, also at a given byte."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

PIECE_BYTES = 64 * 1024
# The longest mark that is found when it arrives in two pieces.
MAX_MARK_BYTES = 100
# For SO_LINGER: a close sends an RST.
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(slots=True)
class Trap:
    """Cuts the connection on which `mark` is sent, `times` times: before the server gets it, or after it responded."""

    mark: bytes
    times: int
    responded: bool


class Proxy:
    """`async with Proxy(url) as proxy` listens on loopback; `proxy.url` leads through it to the server at `url`.

    `url` must name the server by its unix socket, as those of the embedded servers do. `cuts` counts the connections
    that were cut.
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
        """The port on which it listens."""
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
        """End every connection at once, whatever is being sent; with `reset` by an RST instead of a FIN."""
        for wire in tuple(self._wires):
            wire.cut(reset=reset)

    def cut_at(self, mark: bytes, *, times: int = 1, responded: bool) -> None:
        """Cut the next `times` connections on which a client sends these bytes."""
        self._trap = Trap(mark, times, responded)

    def cut_after(self, count: int) -> None:
        """Let `count` more bytes of the clients pass, and cut the connection that sent the last of them."""
        self._bytes_left = count

    def stall(self) -> None:
        """Let nothing pass; connections stay open, and what is sent waits."""
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

    async def passed_part(self, wire: Wire, sent: bytes) -> bytes:
        """The part of a client's bytes that goes to the server. Tells the wire when it must end."""
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

    async def wait_for_flow(self) -> None:
        """Wait until bytes may pass."""
        await self._flowing.wait()


class Wire:
    """One connection through the proxy.

    With `ending` it is cut after what it carries now, with `ends_with_response` when the server's next bytes arrive.
    """

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
        directions = [asyncio.create_task(self._client_to_server()), asyncio.create_task(self._server_to_client())]
        await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        for direction in directions:
            direction.cancel()
        await asyncio.gather(*directions, return_exceptions=True)
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
        """The last bytes that the client sent: a mark may begin in them."""
        return self._sent[-len(mark) + 1 :]

    async def _client_to_server(self) -> None:
        with suppress(OSError):
            while not self.ending and (piece := await self._client[0].read(PIECE_BYTES)):
                passed = await self._proxy.passed_part(self, piece)
                self._sent = (self._sent + piece)[-MAX_MARK_BYTES:]
                self._server[1].write(passed)
                await self._server[1].drain()

    async def _server_to_client(self) -> None:
        with suppress(OSError):
            while piece := await self._server[0].read(PIECE_BYTES):
                await self._proxy.wait_for_flow()
                if self.ends_with_response:
                    self.ending = True
                    return
                self._client[1].write(piece)
                await self._client[1].drain()
