"""An HTTP server whose responses are a test's own function of what was sent, and that records all that was sent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.servers.raw import raw


@dataclass(frozen=True)
class Sent:
    """One request as it arrived; names of headers are in lower case. `address` is where it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    address: str = "127.0.0.1"

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Respond = Callable[[Sent], bytes | Awaitable[bytes | None] | None]


@dataclass
class Api:
    """`sent` has the requests in the order in which they arrived, without those for robots.txt."""

    respond: Respond
    port: int = 0
    sent: list[Sent] = field(default_factory=list)

    def url(self, path: str = "", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    @property
    def lines(self) -> list[str]:
        """Method, path and body of each request."""
        return [" ".join(filter(None, (one.method, one.path, one.body.decode()))) for one in self.sent]


def status(code: int, body: bytes = b"", *head_lines: str) -> bytes:
    """A whole response that closes its connection."""
    return raw(body, *(line.encode() for line in ("Connection: close", *head_lines)), status=b"%d Words" % code)


@asynccontextmanager
async def api(respond: Respond) -> AsyncIterator[Api]:
    """The server on all addresses of loopback at one port, until the context ends.

    It closes after every response; where `respond` returns None, instead of one.
    """
    server = Api(respond)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, path, _ = head[0].split(" ", 2)
            headers = {name.lower(): text.strip() for name, _, text in (line.partition(":") for line in head[1:-2])}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            sent = Sent(method, path, headers, body, writer.get_extra_info("sockname")[0])
            if path == "/robots.txt":
                response: bytes | None = status(404)
            else:
                server.sent.append(sent)
                found = server.respond(sent)
                response = await found if isinstance(found, Awaitable) else found
            writer.write(response or b"")
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "0.0.0.0", 0) as listening:
        server.port = listening.sockets[0].getsockname()[1]
        yield server
