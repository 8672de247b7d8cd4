"""Proxies on 127.0.0.1 that ask for a user and password: HTTP (forwarding and CONNECT) and SOCKS5, on one port."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

USER, PASSWORD = "keeper", "p@ss:w/rd"


@dataclass
class Proxy:
    """What the proxy was asked for: CONNECT, GET or SOCKS with the host, as the client wrote it."""

    port: int = 0
    asked: list[tuple[str, str]] = field(default_factory=list)
    refused: int = 0


async def _pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


@asynccontextmanager
async def a_proxy() -> AsyncIterator[Proxy]:
    """The proxy, listening until the context ends; it takes every name for 127.0.0.1."""
    seen = Proxy()
    talks: set[asyncio.Task[None]] = set()

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int, first: bytes = b"") -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
        there_writer.write(first)
        await asyncio.gather(_pour(reader, there_writer), _pour(there_reader, writer))

    async def speak_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: bytes) -> None:
        head = first + await reader.readuntil(b"\r\n\r\n")
        method, target, _ = head.decode().split(" ", 2)
        if f"basic {b64encode(f'{USER}:{PASSWORD}'.encode()).decode()}".lower() not in head.decode().lower():
            seen.refused += 1
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            writer.close()
            return
        place = target.removeprefix("http://").split("/", 1)[0]
        host, _, port = place.rpartition(":")
        seen.asked.append((method, host))
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            await join(reader, writer, int(port))
        else:
            path = target.removeprefix("http://" + place)
            await join(reader, writer, int(port), head.replace(target.encode(), path.encode(), 1))

    async def speak_socks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """RFC 1928 with the user and password of RFC 1929."""
        await reader.readexactly((await reader.readexactly(1))[0])
        writer.write(b"\x05\x02")
        await reader.readexactly(1)
        user = await reader.readexactly((await reader.readexactly(1))[0])
        password = await reader.readexactly((await reader.readexactly(1))[0])
        if (user.decode(), password.decode()) != (USER, PASSWORD):
            seen.refused += 1
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
        seen.asked.append(("SOCKS", host))
        writer.write(b"\x05\x00\x00\x01" + bytes(6))
        await join(reader, writer, port)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        talks.add(task)
        try:
            first = await reader.readexactly(1)
            if first == b"\x05":
                await speak_socks(reader, writer)
            else:
                await speak_http(reader, writer, first)
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()
            talks.discard(task)

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    seen.port = server.sockets[0].getsockname()[1]
    try:
        yield seen
    finally:
        server.close()
        for task in talks.copy():
            task.cancel()
        await asyncio.gather(*talks, return_exceptions=True)
