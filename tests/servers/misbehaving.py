"""An HTTP/1.1 server on 127.0.0.1 and 127.0.0.2 that misbehaves as the requested path says."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import brotli
import zstandard

from tests.servers.encoded_bodies import MIB, brotli_bomb, gzip_bomb, raw_deflate, zstd_bomb

BODY = b'{"answer": 42}' * 100
HUGE_LENGTH = 10**15


@dataclass
class Misbehaving:
    """What the server received: requests by path, their heads in order, and the address of each connection.

    `open` counts the open connections, `surplus` the responses that were sent without a request.
    """

    port: int = 0
    requested: Counter[str] = field(default_factory=Counter)
    heads: list[bytes] = field(default_factory=list)
    connected_to: list[str] = field(default_factory=list)
    open: int = 0
    surplus: int = 0
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def url(self, path: str, host: str = "127.0.0.1", scheme: str = "http") -> str:
        """The URL of a path on this server, under any host name that the test resolves to loopback."""
        return f"{scheme}://{host}:{self.port}{path}"

    async def wait_until(self, condition: Callable[[Misbehaving], bool]) -> None:
        """Return when the condition on this server holds; raises TimeoutError after 5 s."""
        async with asyncio.timeout(5), self.changed:
            await self.changed.wait_for(lambda: condition(self))

    async def notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request: its method, its index on the connection (from 0), and where to respond."""

    method: str
    index: int
    writer: asyncio.StreamWriter
    server: Misbehaving

    async def response(self, *lines: str, body: bytes = b"", status: str = "200 OK") -> None:
        self.writer.write("\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode("latin-1") + body)
        await self.writer.drain()


Behaviour = Callable[[Exchange], Awaitable[bool]]
BEHAVIOURS: dict[str, Behaviour] = {}


def behaviour(path: str) -> Callable[[Behaviour], Behaviour]:
    """Register what the server does at a path; the coroutine returns whether the connection stays open."""

    def register(respond: Behaviour) -> Behaviour:
        BEHAVIOURS[path] = respond
        return respond

    return register


def plain(path: str, *lines: str, body: bytes = b"", status: str = "200 OK", keep: bool = True) -> None:
    """Register a fixed response; `keep` is whether the connection stays open after it."""

    async def respond(exchange: Exchange) -> bool:
        await exchange.response(*lines, body=b"" if exchange.method == "HEAD" else body, status=status)
        return keep

    BEHAVIOURS[path] = respond


def sized(path: str, body: bytes, *lines: str) -> None:
    plain(path, f"Content-Length: {len(body)}", *lines, body=body)


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(body), body)


sized("/sized", BODY, "Content-Type: application/json", "X-Twice: one", "X-Twice: two")
plain("/chunked", "Transfer-Encoding: chunked", body=chunk(BODY[:700]) + chunk(BODY[700:]) + b"0\r\n\r\n")
plain("/until-close", body=BODY, keep=False)
plain("/204", status="204 No Content")
plain("/304", status="304 Not Modified")
plain("/304-gzip", "Content-Encoding: gzip", status="304 Not Modified")
plain("/plenty", f"Content-Length: {HUGE_LENGTH}", body=BODY, keep=False)
plain("/plenty-204", f"Content-Length: {HUGE_LENGTH}", status="204 No Content", keep=False)
plain("/plenty-304", f"Content-Length: {HUGE_LENGTH}", status="304 Not Modified", keep=False)
sized("/cookie", BODY, "Set-Cookie: name=value")
sized("/gzip", gzip.compress(BODY), "Content-Encoding: gzip")
sized("/deflate", zlib.compress(BODY), "Content-Encoding: deflate")
sized("/deflate-raw", raw_deflate(BODY), "Content-Encoding: deflate")
sized("/br", brotli.compress(BODY), "Content-Encoding: br")
sized("/zstd", zstandard.compress(BODY), "Content-Encoding: zstd")
sized("/x-gzip", gzip.compress(BODY), "Content-Encoding: X-GZIP")
sized("/gzip-members", gzip.compress(BODY[:500]) + gzip.compress(BODY[500:]), "Content-Encoding: gzip")
sized("/gzip-padded", gzip.compress(BODY) + bytes(100), "Content-Encoding: gzip")
sized("/zstd-frames", zstandard.compress(BODY[:500]) + zstandard.compress(BODY[500:]), "Content-Encoding: zstd")
sized("/gzip-members-cut", gzip.compress(BODY) + gzip.compress(BODY)[:-9], "Content-Encoding: gzip")
sized("/br-cut", brotli.compress(BODY)[:-3], "Content-Encoding: br")
sized("/zstd-cut", zstandard.compress(BODY)[:-3], "Content-Encoding: zstd")
sized("/deflate-cut", zlib.compress(BODY)[:-5], "Content-Encoding: deflate")
sized("/br-not", BODY, "Content-Encoding: br")
sized("/zstd-not", BODY, "Content-Encoding: zstd")
sized("/utf-8", BODY, "Content-Encoding: utf-8")
sized("/compress", BODY, "Content-Encoding: compress")
sized("/compress-gzip", gzip.compress(BODY), "Content-Encoding: compress, gzip")
sized("/gzip-compress", gzip.compress(BODY, mtime=0), "Content-Encoding: gzip", "Content-Encoding: compress")
sized("/large-compress", bytes(300_000), "Content-Encoding: compress")
sized("/gzip-cut", gzip.compress(BODY)[:-12], "Content-Encoding: gzip")
sized("/gzip-not", BODY, "Content-Encoding: gzip")
sized("/gzip-twice", gzip.compress(gzip.compress(BODY)), "Content-Encoding: gzip, gzip")
sized("/gzip-in-two-headers", gzip.compress(zlib.compress(BODY)), "Content-Encoding: deflate", "Content-Encoding: gzip")
sized("/bomb", gzip_bomb(1024), "Content-Encoding: gzip")
sized("/bomb-br", brotli_bomb(1024), "Content-Encoding: br")
sized("/bomb-zstd", zstd_bomb(1024), "Content-Encoding: zstd")
plain("/empty-members", "Content-Encoding: gzip", body=gzip.compress(b"") * 60_000, keep=False)
sized("/large", bytes(300_000))
plain("/short", f"Content-Length: {len(BODY) + 5}", body=BODY, keep=False)
plain("/chunked-cut", "Transfer-Encoding: chunked", body=chunk(BODY) + b"ff\r\nabc", keep=False)
plain("/malformed", status="two hundred", keep=False)
plain("/headers", *(f"X-{n}: 0123456789" for n in range(100_000)), "Content-Length: 0", keep=False)
plain("/header-without-colon", "no header at all", "Content-Length: 0", keep=False)
sized("/odd", BODY, "no header at all")
plain("/odd-surplus", "no colon", "Content-Length: 4", body=b"fineHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nPOISON")
plain("/length-twice", "Content-Length: 5", "Content-Length: 6", body=b"12345", keep=False)
plain("/length-negative", "Content-Length: -5", body=b"12345", keep=False)
plain("/length-not", "Content-Length: five", body=b"12345", keep=False)
plain("/redirect", "Location: /sized", "Content-Length: 0", status="302 Found")
sized("/latin", BODY, "Location: /caf\xe9", "X-Plain: yes")
plain("/chunk-malformed", "Transfer-Encoding: chunked", body=b"zz\r\nabc", keep=False)


@behaviour("/closed")
async def close_at_once(exchange: Exchange) -> bool:
    return False


@behaviour("/closed-when-reused")
async def close_when_reused(exchange: Exchange) -> bool:
    if exchange.index > 0:
        return False
    await exchange.response(f"Content-Length: {len(BODY)}", body=BODY)
    return True


@behaviour("/closed-late")
async def close_after_a_pause(exchange: Exchange) -> bool:
    await asyncio.sleep(0.6)
    return False


@behaviour("/silent")
async def say_nothing(exchange: Exchange) -> bool:
    await asyncio.Event().wait()
    return False


@behaviour("/reset")
async def reset(exchange: Exchange) -> bool:
    exchange.writer.transport.abort()
    return False


@behaviour("/drip")
async def drip(exchange: Exchange) -> bool:
    await exchange.response("Content-Length: 1000")
    for _ in range(1000):
        exchange.writer.write(b"x")
        await exchange.writer.drain()
        await asyncio.sleep(0.2)
    return True


@behaviour("/huge-header")
async def send_a_huge_header(exchange: Exchange) -> bool:
    exchange.writer.write(b"HTTP/1.1 200 OK\r\nX-Huge: ")
    for _ in range(50):
        exchange.writer.write(b"x" * MIB)
        await exchange.writer.drain()
    return False


@behaviour("/drip-headers")
async def drip_headers(exchange: Exchange) -> bool:
    for letter in "HTTP/1.1 200 OK\r\nX-Slow: and steady\r\n\r\n":
        exchange.writer.write(letter.encode())
        await exchange.writer.drain()
        await asyncio.sleep(0.2)
    return False


@behaviour("/informed")
async def inform_for_ever(exchange: Exchange) -> bool:
    while True:
        await exchange.response(status="103 Early Hints")
        await asyncio.sleep(0.05)


@behaviour("/two-packets")
async def pause_between_packets(exchange: Exchange) -> bool:
    await exchange.response(f"Content-Length: {len(BODY)}", body=BODY[:10])
    await asyncio.sleep(0.1)
    exchange.writer.write(BODY[10:])
    await exchange.writer.drain()
    return True


@behaviour("/endless")
async def never_end(exchange: Exchange) -> bool:
    await exchange.response("Transfer-Encoding: chunked")
    while True:
        exchange.writer.write(chunk(bytes(65536)))
        await exchange.writer.drain()


@behaviour("/surplus")
async def respond_twice(exchange: Exchange) -> bool:
    await exchange.response("Content-Length: 4", body=b"fineHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nPOISON")
    return True


@behaviour("/surplus-after-a-pause")
async def respond_twice_with_a_pause(exchange: Exchange) -> bool:
    await exchange.response("Content-Length: 4", body=b"fine")
    await asyncio.sleep(0.1)
    await exchange.response("Content-Length: 6", body=b"POISON")
    exchange.server.surplus += 1
    await exchange.server.notify()
    return True


@asynccontextmanager
async def misbehaving() -> AsyncIterator[Misbehaving]:
    """The server, listening until the context ends."""
    server = Misbehaving()
    connections: set[asyncio.Task[None]] = set()

    async def serve_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        server.connected_to.append(writer.get_extra_info("sockname")[0])
        server.open += 1
        try:
            index, keep = 0, True
            while keep:
                head = await reader.readuntil(b"\r\n\r\n")
                method, path, _ = head.decode("latin-1").split(" ", 2)
                server.requested[path] += 1
                server.heads.append(head)
                await server.notify()
                keep = await BEHAVIOURS[path](Exchange(method, index, writer, server))
                index += 1
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        except RuntimeError:
            if not writer.is_closing():  # uvloop says so of a client that has left
                raise
        finally:
            writer.close()
            server.open -= 1
            connections.discard(task)
            await server.notify()

    first = await asyncio.start_server(serve_connection, "127.0.0.1", 0)
    server.port = first.sockets[0].getsockname()[1]
    second = await asyncio.start_server(serve_connection, "127.0.0.2", server.port)
    try:
        yield server
    finally:
        first.close()
        second.close()
        for task in connections.copy():
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
