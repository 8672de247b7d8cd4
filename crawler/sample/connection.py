"""The HTTP/1.1 of a local upstream: just enough, and fast; keep-alive, pipelining, HEAD, bodies of known length."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import cast

_LARGEST = 64 * 1024
"""Bytes that the head or the body of a request may have."""

_REASONS = {status.value: status.phrase for status in HTTPStatus}


@dataclass(frozen=True, slots=True)
class CannedResponse:
    """One response; `headers` are whole lines, `delay` is in seconds."""

    status: int
    body: bytes = b""
    kind: str = "application/json"
    headers: str = ""
    delay: float = 0.0


class Connection(asyncio.Protocol):
    """One client: responds to its requests in the order they came, also when it sends many at once.

    `respond` makes the response to a method, a target as it was sent, and an If-None-Match.
    """

    def __init__(self, respond: Callable[[str, bytes, str], CannedResponse], connections: set[Connection]) -> None:
        self._respond = respond
        self._connections = connections
        self._buffer = b""
        self._waiting: asyncio.TimerHandle | None = None  # a slow response, and with it all that follow
        self._held = False  # the client does not read
        self._over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self._transport = cast("asyncio.Transport", transport)
        self._connections.add(self)

    def connection_lost(self, _: Exception | None) -> None:
        """See asyncio."""
        self._over = True
        self._connections.discard(self)
        if self._waiting:
            self._waiting.cancel()

    def abort(self) -> None:
        """Drop the client."""
        self._transport.abort()

    def pause_writing(self) -> None:
        """See asyncio."""
        self._held = True

    def resume_writing(self) -> None:
        """See asyncio."""
        self._held = False
        # Not from here: the transport is in the middle of its own bookkeeping, and closing it now would do so twice.
        asyncio.get_running_loop().call_soon(self._serve)

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        self._buffer += data
        self._serve()

    def _serve(self) -> None:
        while not (self._waiting or self._held or self._over) and self._take():
            pass
        if self._over:
            return
        if len(self._buffer) > 2 * _LARGEST:
            self._transport.pause_reading()
        elif not self._transport.is_reading():
            self._transport.resume_reading()

    def _take(self) -> bool:
        """Respond to the next request in the buffer; False when it has not come whole."""
        head, end, rest = self._buffer.partition(b"\r\n\r\n")
        if not end:
            if len(head) > _LARGEST:
                self._send(CannedResponse(431), close=True)
            return False
        first, *lines = head.lstrip(b"\r\n").split(b"\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        words = first.split(b" ")
        length = fields.get(b"content-length", b"0")
        if len(words) != 3 or not words[1].startswith(b"/") or not length.isdigit() or b"transfer-encoding" in fields:
            self._send(CannedResponse(400), close=True)
            return False
        if int(length) > _LARGEST:
            self._send(CannedResponse(413), close=True)
            return False
        if len(rest) < int(length):
            return False
        self._buffer = rest[int(length) :]
        response = self._respond(
            words[0].decode("latin-1"), words[1], fields.get(b"if-none-match", b"").decode("latin-1")
        )
        wish = fields.get(b"connection", b"").lower()
        close = b"close" in wish or (words[2] == b"HTTP/1.0" and wish != b"keep-alive")
        if response.delay:
            loop = asyncio.get_running_loop()
            self._waiting = loop.call_later(response.delay, self._send_delayed, response, words[0] == b"HEAD", close)
        else:
            self._send(response, bare=words[0] == b"HEAD", close=close)
        return True

    def _send_delayed(self, response: CannedResponse, bare: bool, close: bool) -> None:
        self._waiting = None
        self._send(response, bare=bare, close=close)
        self._serve()

    def _send(self, response: CannedResponse, *, bare: bool = False, close: bool) -> None:
        head = f"HTTP/1.1 {response.status} {_REASONS.get(response.status, 'Status')}\r\n{response.headers}"
        if response.status not in (204, 304):
            head += f"Content-Type: {response.kind}\r\nContent-Length: {len(response.body)}\r\n"
        head += "Connection: close\r\n\r\n" if close else "\r\n"
        body = b"" if bare or response.status in (204, 304) else response.body
        self._transport.write(head.encode("latin-1") + body)
        if close:
            self._over = True
            self._transport.close()
