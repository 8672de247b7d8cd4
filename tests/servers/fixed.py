"""A TCP server on 127.0.0.1, with or without TLS, that sends the same bytes to every client and closes."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


@asynccontextmanager
async def fixed_server(sent: bytes, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """The server, listening until the context ends; yields its port."""

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(sent)
        writer.close()

    async with await asyncio.start_server(respond, "127.0.0.1", 0, ssl=context) as server:
        yield server.sockets[0].getsockname()[1]
