"""The sample upstream: a small, fast HTTP server for `shardcrawl demo`, examples, tests and benchmarks.

`python -m crawler.sample.upstream --port 0` prints {"url": …, "pid": …} in one line when it listens.
The response depends on the request alone, except for /flaky, /pending and /limited:

    GET /item/ID            200, JSON of about --size bytes, with ETag and Last-Modified; If-None-Match gives 304
    GET /batch?ids=A|B      200, {"items": […]}; an id beginning "missing" comes as {"id": …, "missing": true}
    GET /missing/X          404
    GET /text/X             200, plain text
    GET /notjson/X          200, Content-Type JSON, but a broken body
    GET /slow/MS/X          the item after MS milliseconds
    GET /status/CODE/X      that status
    GET /flaky/K/X          503 for the first K attempts at this path, then the item
    GET /pending/K/X        202 and {"state": "pending"} for the first K attempts at this path, then the item
    GET /robots.txt         404, or with --disallow a rule for everybody; not counted
    GET /limited/X          429 with Retry-After when the last second had more than --limit-rate of these, else the item
    GET /shop, …            what the examples need beside that: see crawler.sample.site
    GET /~stats             the counts of requests as JSON; not counted, like all of /~…
    GET /~log               the log of requests: lines of "monotonic-seconds path"
    POST /~edit             204; from now on the items of these IDs, one a line, have another content and ETag
    POST /~reset            204, clears counts and log
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import threading
import time
import zlib
from collections import Counter, deque
from collections.abc import Iterable
from email.utils import formatdate
from typing import Self
from urllib.parse import unquote, unquote_plus

import uvloop

from crawler.sample import site
from crawler.sample.connection import CannedResponse, HttpConnection
from crawler.sample.ledger import Ledger, count_in_last_second

_WORDS = "amber birch coral delta ember fjord grove heron inlet jetty knoll larch maple north ocean".split()  # noqa: SIM905


class Upstream:
    """The server; `async with Upstream() as upstream` runs it in this event loop at `upstream.url`."""

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        size: int = 1_000,
        limit_rate: float = 50.0,
        log_max: int = 1_000_000,
        disallow: str | None = None,
    ) -> None:
        self.url = ""
        self._robots = CannedResponse(404) if disallow is None else _robots_txt(disallow)
        self.ledger = Ledger(log_max)
        self._connections: set[HttpConnection] = set()
        self._host = host
        self._port = port
        self._limit_rate = limit_rate
        self._limited: deque[float] = deque()
        self._attempts: Counter[str] = Counter()
        self._editions: Counter[str] = Counter()
        self._words = [_words(first, max(0, size - 80)) for first in range(len(_WORDS))]

    @property
    def requests(self) -> int:
        """The number of requests, without those for /~… and /robots.txt."""
        return self.ledger.requests

    @property
    def paths(self) -> list[str]:
        """The path and query of every logged request, as they were sent."""
        return [path for _, path in self.ledger.log()]

    def stats(self) -> dict[str, object]:
        """Return what /~stats shows."""
        return self.ledger.stats()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: HttpConnection(self.respond, self._connections, self.post), self._host, self._port, backlog=4096
        )
        self.url = f"http://{self._host}:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for connection in list(self._connections):
            connection.abort()
        await self._server.wait_closed()

    def edit(self, keys: Iterable[str]) -> None:
        """Give the items of these keys another content, and another ETag."""
        self._editions.update(keys)

    def post(self, target: bytes, body: bytes) -> CannedResponse | None:
        """The response to a POST with this body, None where it is not read."""
        if target == b"/~edit":
            self.edit(body.decode().split())
            return CannedResponse(204)
        if target != b"/graphql":
            return None
        self.ledger.add(target, time.monotonic())
        self.ledger.by_status[200] += 1
        return site.graphql(body)

    def respond(self, method: str, target: bytes, condition: str) -> CannedResponse:
        """The response to one request; `condition` is its If-None-Match, empty without one."""
        path, _, query = target.decode("utf-8", "replace").partition("?")
        if path.startswith("/~"):
            return self._control(method, path)
        if path == "/robots.txt":
            return self._robots
        now = time.monotonic()
        self.ledger.add(target, now)
        if method not in ("GET", "HEAD"):
            response = CannedResponse(405, headers="Allow: GET, HEAD\r\n")
        else:
            kind, _, rest = path[1:].partition("/")
            response = self._page(kind, rest, query, condition, now)
        self.ledger.by_status[response.status] += 1
        return response

    def _page(self, kind: str, rest: str, query: str, condition: str, now: float) -> CannedResponse:
        number, _, after = rest.partition("/")
        match kind:
            case "item":
                return self._item(rest, condition)
            case "batch":
                return self._batch(query)
            case "text":
                return CannedResponse(200, f"Text of {unquote(rest)}\n".encode(), "text/plain; charset=utf-8")
            case "notjson":
                return CannedResponse(200, b'{"id": "broken", "words": [')
            case "limited":
                if count_in_last_second(self._limited, now) > self._limit_rate:
                    return CannedResponse(429, headers="Retry-After: 1\r\n")
                return self._item(rest, condition)
            case "slow" if number.isdecimal():
                item = self._item(after, condition)
                return CannedResponse(item.status, item.body, item.content_type, item.headers, delay=int(number) / 1000)
            case "status" if number.isdecimal() and 200 <= int(number) <= 599:
                location = f"Location: /item/{after}\r\n" if number in ("301", "302", "303", "307", "308") else ""
                return CannedResponse(int(number), json.dumps({"status": int(number)}).encode(), headers=location)
            case "flaky" if number.isdecimal():
                self._attempts[rest] += 1
                return CannedResponse(503) if self._attempts[rest] <= int(number) else self._item(after, condition)
            case "pending" if number.isdecimal():
                self._attempts[rest] += 1
                is_pending = self._attempts[rest] <= int(number)
                return CannedResponse(202, b'{"state": "pending"}') if is_pending else self._item(after, condition)
            case _:
                found = site.respond(f"/{kind}/{rest}" if rest else f"/{kind}", query, self.url)
                return found or CannedResponse(404, b'{"error": "not found"}')

    def _item(self, quoted: str, condition: str) -> CannedResponse:
        key = unquote(quoted)
        number = self._number(key)
        etag = f'"{number:08x}"'
        modified = formatdate(1_600_000_000 + number % 100_000_000, usegmt=True)
        headers = f"ETag: {etag}\r\nLast-Modified: {modified}\r\n"
        if condition and (condition == "*" or etag in condition):
            return CannedResponse(304, headers=headers)
        return CannedResponse(200, self._json(key, number).encode(), headers=headers)

    def _batch(self, query: str) -> CannedResponse:
        fields = dict(field.partition("=")[::2] for field in query.split("&"))
        keys = [key for key in unquote_plus(fields.get("ids", "")).split("|") if key]
        items = [
            f'{{"id": {_quoted(key)}, "missing": true}}'
            if key.startswith("missing")
            else self._json(key, self._number(key))
            for key in keys
        ]
        return CannedResponse(200, f'{{"items": [{", ".join(items)}]}}'.encode())

    def _number(self, key: str) -> int:
        """What the item depends on."""
        edition = self._editions.get(key, 0)
        return zlib.crc32(f"{key} {edition}".encode() if edition else key.encode())

    def _json(self, key: str, number: int) -> str:
        first = number % len(_WORDS)
        title = f"{_WORDS[first]} {_WORDS[number // 100 % len(_WORDS)]}"
        return f'{{"id": {_quoted(key)}, "title": "{title}", "n": {number}, "words": [{self._words[first]}]}}'

    def _control(self, method: str, path: str) -> CannedResponse:
        match method, path:
            case "GET", "/~stats":
                return CannedResponse(200, json.dumps(self.stats()).encode())
            case "GET", "/~log":
                lines = (f"{at:.6f} {path}\n" for at, path in self.ledger.log())
                return CannedResponse(200, "".join(lines).encode("latin-1"), "text/plain; charset=utf-8")
            case "POST", "/~reset":
                self.ledger.clear()
                self._limited.clear()
                self._attempts.clear()
                return CannedResponse(204)
            case _:
                return CannedResponse(404)


def _robots_txt(disallow: str) -> CannedResponse:
    return CannedResponse(200, f"User-agent: *\nDisallow: {disallow}\n".encode(), "text/plain; charset=utf-8")


def _quoted(key: str) -> str:
    return json.dumps(key, ensure_ascii=False)


def _words(first: int, size: int) -> str:
    line = ", ".join(f'"{word}"' for word in _WORDS[first:] + _WORDS[:first]) + ", "
    return (line * (size // len(line) + 1))[:size].rpartition(", ")[0]


async def serve(upstream: Upstream, *, stdin_guard: bool) -> None:
    """Run until SIGTERM or SIGINT, or with `stdin_guard` until standard input ends."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def guard() -> None:
        # In a thread, because an event loop cannot watch every kind of standard input.
        while os.read(0, 4096):
            pass
        loop.call_soon_threadsafe(stop.set)

    async with upstream:
        print(json.dumps({"url": upstream.url, "pid": os.getpid()}), flush=True)
        if stdin_guard:
            threading.Thread(target=guard, daemon=True).start()
        await stop.wait()


def main(arguments: list[str]) -> None:
    """Run the upstream with the arguments of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m crawler.sample.upstream", description="a small fast upstream for tests"
    )
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--size", type=int, default=1_000, help="bytes of an item, about")
    parser.add_argument("--limit-rate", type=float, default=50.0, help="requests in any second that /limited/ serves")
    parser.add_argument("--log-max", type=int, default=1_000_000, help="requests that /~log remembers")
    parser.add_argument("--disallow", metavar="PATH", help="robots.txt disallows paths that begin with this")
    parser.add_argument("--stdin-guard", action="store_true", help="stop when standard input ends")
    chosen = parser.parse_args(arguments)
    settings = vars(chosen)
    stdin_guard = settings.pop("stdin_guard")
    uvloop.run(serve(Upstream(**settings), stdin_guard=stdin_guard))


if __name__ == "__main__":
    main(sys.argv[1:])
