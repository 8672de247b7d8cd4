"""A proxy on 127.0.0.1 that wants a user and password: HTTP (forwarding and CONNECT) and SOCKS5, on one port."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

USER, PASSWORD = "keeper", "p@ss:w/rd"


@dataclass
class PasswordProxy:
    """What the proxy received: (CONNECT, GET or SOCKS, host as the client wrote it), and how often it refused."""

    port: int = 0
    requested: list[tuple[str, str]] = field(default_factory=list)
    refused: int = 0


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


@asynccontextmanager
async def password_proxy() -> AsyncIterator[PasswordProxy]:
    """The proxy, listening until the context ends; every name is 127.0.0.1 for it."""
    proxy = PasswordProxy()
    connections: set[asyncio.Task[None]] = set()

    async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int, first: bytes = b"") -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)
        server_writer.write(first)
        await asyncio.gather(_copy(reader, server_writer), _copy(server_reader, writer))

    async def serve_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: bytes) -> None:
        head = first + await reader.readuntil(b"\r\n\r\n")
        method, target, _ = head.decode().split(" ", 2)
        if f"basic {b64encode(f'{USER}:{PASSWORD}'.encode()).decode()}".lower() not in head.decode().lower():
            proxy.refused += 1
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            writer.close()
            return
        place = target.removeprefix("http://").split("/", 1)[0]
        host, _, port = place.rpartition(":")
        proxy.requested.append((method, host))
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            await tunnel(reader, writer, int(port))
        else:
            path = target.removeprefix("http://" + place)
            await tunnel(reader, writer, int(port), head.replace(target.encode(), path.encode(), 1))

    async def serve_socks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """RFC 1928 with the user and password of RFC 1929."""
        await reader.readexactly((await reader.readexactly(1))[0])
        writer.write(b"\x05\x02")
        await reader.readexactly(1)
        user = await reader.readexactly((await reader.readexactly(1))[0])
        password = await reader.readexactly((await reader.readexactly(1))[0])
        if (user.decode(), password.decode()) != (USER, PASSWORD):
            proxy.refused += 1
            writer.write(b"\x01\x01")
            writer.close()
            return
        writer.write(b"\x01\x00")
        kind = (await reader.readexactly(4))[3]
        if kind == 3:
            host = (await reader.readexactly((await reader.readexactly(1))[0])).decode()
        else:
            host = ".".join(str(byte) for byte in await reader.readexactly(4))
        port = int.from_bytes(await reader.readexactly(2), "big")
        proxy.requested.append(("SOCKS", host))
        writer.write(b"\x05\x00\x00\x01" + bytes(6))
        await tunnel(reader, writer, port)

    async def serve_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            first = await reader.readexactly(1)
            if first == b"\x05":
                await serve_socks(reader, writer)
            else:
                await serve_http(reader, writer, first)
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()
            connections.discard(task)

    server = await asyncio.start_server(serve_connection, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        for task in connections.copy():
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
