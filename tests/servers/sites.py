"""One HTTP server at three loopback addresses, so under three hosts, with a fixed response for each path."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack

from crawler.sample.connection import CannedResponse, HttpConnection


class Sites:
    """`responses` has the response of each path; other paths get 404. `requested` counts the requests of each path."""

    def __init__(self) -> None:
        self.responses: dict[str, CannedResponse] = {}
        self.requested: Counter[str] = Counter()
        self.connections: set[HttpConnection] = set()

    async def listen(self, stack: AsyncExitStack) -> None:
        """Listen at `url`, `other` and `third` until the stack is closed."""
        loop, port = asyncio.get_running_loop(), 0
        for address in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
            server = await loop.create_server(lambda: HttpConnection(self.respond, self.connections), address, port)
            stack.callback(server.close)
            port = server.sockets[0].getsockname()[1]
        self.url, self.other, self.third = (f"http://127.0.0.{number}:{port}" for number in (1, 2, 3))

    def respond(self, _: str, target: bytes, __: str) -> CannedResponse:
        path = target.decode()
        self.requested[path] += 1
        return self.responses.get(path, CannedResponse(404))
