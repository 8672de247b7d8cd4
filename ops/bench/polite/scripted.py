"""An HTTP/1.1 upstream on loopback that answers as a script says, however badly, and keeps its own count."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Self, TypeAlias

# What follows a request: these bytes, these one after the other until the client leaves, or None: a reset.
Act: TypeAlias = bytes | AsyncIterator[bytes] | None
_LINGER_NOT = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: when its head had come, in seconds of the clock, and its path."""

    at: float
    path: str


class Scripted:
    """`async with Scripted(act) as upstream` listens at `upstream.authority`; `act` says what follows a path.

    `log` has every request in the order of arrival.
    """

    def __init__(self, act: Callable[[str], Act], clock: Callable[[], float] = monotonic) -> None:
        self.authority = ""
        self.log: list[Asked] = []
        self._act = act
        self._clock = clock
        self._talks: set[asyncio.Task[None]] = set()

    def url(self, path: str) -> str:
        """The URL of a path here."""
        return f"http://{self.authority}{path}"

    def between(self, start: float, end: float) -> int:
        """How many requests came from `start` on and before `end`."""
        return sum(1 for asked in self.log if start <= asked.at < end)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._talk, "127.0.0.1", 0, backlog=4096)
        self.authority = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for talk in list(self._talks):
            talk.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._talks.add(task)
        try:
            with suppress(asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
                while await self._answered(reader, writer):
                    pass
        finally:
            self._talks.discard(task)
            writer.close()

    async def _answered(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer the next request; False when the connection is over."""
        head = await reader.readuntil(b"\r\n\r\n")
        path = head.split(b" ", 2)[1].decode("latin-1")
        self.log.append(Asked(self._clock(), path))
        answer = self._act(path)
        if answer is None:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
            writer.transport.abort()
            return False
        if isinstance(answer, bytes):
            writer.write(answer)
            await writer.drain()
            return True
        await _until_left(answer, reader, writer)
        return False


async def _until_left(answer: AsyncIterator[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send piece by piece; return when the client has closed, which it does first in every script."""

    async def send() -> None:
        with suppress(ConnectionError):
            async for piece in answer:
                writer.write(piece)
                await writer.drain()

    sending = asyncio.create_task(send())
    try:
        with suppress(ConnectionError):
            await reader.read()
    finally:
        sending.cancel()
        await asyncio.wait([sending])


def answer(body: bytes = b'{"fine": true}', *lines: str, status: str = "200 OK") -> bytes:
    """A whole answer, called JSON unless its lines say otherwise."""
    head = [f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(body)}", *lines, "", ""]
    return "\r\n".join(head).encode() + body
