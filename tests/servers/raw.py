"""An HTTP server that sends prepared bytes: each path has its raw responses, and every request line is recorded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


def raw(body: bytes, *head_lines: bytes, status: bytes = b"200 OK") -> bytes:
    """A whole response: status line, the head lines as they are, Content-Length, body."""
    length = b"Content-Length: %d" % len(body)
    return b"\r\n".join([b"HTTP/1.1 " + status, *head_lines, length, b"", body])


@dataclass
class RawServer:
    """`responses` has the raw responses of a path in their order; the last one is sent again. Other paths get 404.

    A path with an address before it, `127.0.0.2/robots.txt`, is there at this address only; the path "" is every other
    one. `targets` are the request
    targets that arrived, as bytes, without those of robots.txt.
    """

    responses: Mapping[str, Sequence[bytes]]
    port: int = 0
    targets: list[bytes] = field(default_factory=list)

    def url(self, path: str = "", host: str = "127.0.0.1") -> str:
        """The URL of a path on this server."""
        return f"http://{host}:{self.port}{path}"

    def next_response(self, address: str, target: bytes) -> bytes:
        """The raw response to the next request for this target."""
        path = target.decode("latin-1")
        responses = self.responses.get(f"{address}{path}", self.responses.get(path, self.responses.get("")))
        if responses is None or (path == "/robots.txt" and not self.responses.keys() & {path, f"{address}{path}"}):
            return raw(b"", status=b"404 Not Found")
        return responses[min(self.targets.count(target), len(responses)) - 1]


@asynccontextmanager
async def raw_server(responses: Mapping[str, Sequence[bytes]]) -> AsyncIterator[RawServer]:
    """The server on 127.0.0.1 to 127.0.0.9 at one port, until the context ends. It closes after every response."""
    server = RawServer(responses)

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            target = head.split(b" ", 2)[1]
            if target != b"/robots.txt":
                server.targets.append(target)
            writer.write(server.next_response(writer.get_extra_info("sockname")[0], target))
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    listening = []
    for last in range(1, 10):
        listening.append(await asyncio.start_server(respond, f"127.0.0.{last}", server.port))
        server.port = listening[0].sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        for one in listening:
            one.close()
