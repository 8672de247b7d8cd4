"""An HTTP/1.1 server on 127.0.0.1 that keeps the head of each request as it was sent, and sends fixed responses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass
class HeadRecorder:
    """`heads` are those of the requests in their order. `responses` are sent one after the other, the last for ever."""

    responses: list[bytes] = field(default_factory=lambda: [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"])
    port: int = 0
    heads: list[bytes] = field(default_factory=list)

    @property
    def targets(self) -> list[str]:
        """The request targets, in their order."""
        return [head.split(b" ")[1].decode("latin-1") for head in self.heads]

    @property
    def hosts(self) -> list[str]:
        """The Host headers, in their order."""
        lines = (line for head in self.heads for line in head.split(b"\r\n"))
        return [line.partition(b":")[2].strip().decode() for line in lines if line.lower().startswith(b"host:")]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Respond to the requests of one connection until the client closes it."""
        try:
            while True:
                self.heads.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(self.responses.pop(0) if len(self.responses) > 1 else self.responses[0])
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


@asynccontextmanager
async def head_recorder() -> AsyncIterator[HeadRecorder]:
    """The server, listening until the context ends."""
    recorder = HeadRecorder()
    async with await asyncio.start_server(recorder.serve, "127.0.0.1", 0) as server:
        recorder.port = server.sockets[0].getsockname()[1]
        yield recorder
        server.close()
