"""An HTTP/1.1 upstream on loopback that responds as a script says, also badly, and logs its requests."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Self, TypeAlias

# The response to a request: bytes; pieces that are sent until the client closes; or None, a reset.
ScriptedResponse: TypeAlias = bytes | AsyncIterator[bytes] | None
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """One request: its path, and when its head was complete, in seconds of the clock."""

    at: float
    path: str


class Scripted:
    """`async with Scripted(script) as upstream` listens at `upstream.authority`; `script` returns the response for a
    path.

    `log` has every request in the order of arrival.
    """

    def __init__(self, script: Callable[[str], ScriptedResponse], clock: Callable[[], float] = monotonic) -> None:
        self.authority = ""
        self.log: list[LoggedRequest] = []
        self._script = script
        self._clock = clock
        self._connections: set[asyncio.Task[None]] = set()

    def url(self, path: str) -> str:
        """The URL of a path here."""
        return f"http://{self.authority}{path}"

    def between(self, start: float, end: float) -> int:
        """How many requests came at or after `start` and before `end`."""
        return sum(1 for request in self.log if start <= request.at < end)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=4096)
        self.authority = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for connection in list(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            with suppress(asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
                while await self._respond(reader, writer):
                    pass
        finally:
            self._connections.discard(task)
            writer.close()

    async def _respond(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Respond to the next request; False when the connection has ended."""
        head = await reader.readuntil(b"\r\n\r\n")
        path = head.split(b" ", 2)[1].decode("latin-1")
        self.log.append(LoggedRequest(self._clock(), path))
        scripted = self._script(path)
        if scripted is None:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            writer.transport.abort()
            return False
        if isinstance(scripted, bytes):
            writer.write(scripted)
            await writer.drain()
            return True
        await _send_until_closed(scripted, reader, writer)
        return False


async def _send_until_closed(
    pieces: AsyncIterator[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Send the pieces, which have no end in any script, until the client closes."""

    async def send() -> None:
        with suppress(ConnectionError):
            async for piece in pieces:
                writer.write(piece)
                await writer.drain()

    sending = asyncio.create_task(send())
    try:
        with suppress(ConnectionError):
            await reader.read()
    finally:
        sending.cancel()
        await asyncio.wait([sending])


def response(body: bytes = b'{"fine": true}', *lines: str, status: str = "200 OK") -> bytes:
    """A complete response with these header lines; its Content-Type is JSON."""
    head = [f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(body)}", *lines, "", ""]
    return "\r\n".join(head).encode() + body
