"""The HTTP/1.1 that the sample upstream speaks: keep-alive, pipelining, HEAD, and bodies of known length only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import cast

_MAX_REQUEST_BYTES = 64 * 1024  # of the head, and of the body

_REASONS = {status.value: status.phrase for status in HTTPStatus}


@dataclass(frozen=True, slots=True)
class CannedResponse:
    """One response; `headers` are lines that end with CRLF, `delay` is in seconds."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: str = ""
    delay: float = 0.0


class HttpConnection(asyncio.Protocol):
    """One client's connection. It responds to requests in their order, also when the client sends many at once.

    `respond` returns the response to a method, a target as it was sent, and an If-None-Match (empty without one).
    `post` returns that to a POST, by its target and body, if it is given and has one.
    """

    def __init__(
        self,
        respond: Callable[[str, bytes, str], CannedResponse],
        connections: set[HttpConnection],
        post: Callable[[bytes, bytes], CannedResponse | None] = lambda _, __: None,
    ) -> None:
        self._respond = respond
        self._post = post
        self._connections = connections
        self._buffer = b""
        self._delay: asyncio.TimerHandle | None = None  # of a slow response; all that follow wait for it
        self._writing_paused = False  # because the client does not read
        self._closing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast("asyncio.Transport", transport)
        self._connections.add(self)

    def connection_lost(self, _: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._closing = True
        self._connections.discard(self)
        if self._delay:
            self._delay.cancel()

    def abort(self) -> None:
        """Close the connection at once."""
        self._transport.abort()

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self._writing_paused = True

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self._writing_paused = False
        # Not from here: the transport calls this in the middle of a write, and must not be closed meanwhile.
        asyncio.get_running_loop().call_soon(self._serve)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._buffer += data
        self._serve()

    def _serve(self) -> None:
        while not (self._delay or self._writing_paused or self._closing) and self._respond_to_next():
            pass
        if self._closing:
            return
        if len(self._buffer) > 2 * _MAX_REQUEST_BYTES:
            self._transport.pause_reading()
        elif not self._transport.is_reading():
            self._transport.resume_reading()

    def _respond_to_next(self) -> bool:
        """Respond to the next request in the buffer; return False if it is not complete."""
        head, end, rest = self._buffer.partition(b"\r\n\r\n")
        if not end:
            if len(head) > _MAX_REQUEST_BYTES:
                self._send(CannedResponse(431), close=True)
            return False
        request_line, *lines = head.lstrip(b"\r\n").split(b"\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        parts = request_line.split(b" ")
        length = fields.get(b"content-length", b"0")
        if len(parts) != 3 or not parts[1].startswith(b"/") or not length.isdigit() or b"transfer-encoding" in fields:
            self._send(CannedResponse(400), close=True)
            return False
        if int(length) > _MAX_REQUEST_BYTES:
            self._send(CannedResponse(413), close=True)
            return False
        if len(rest) < int(length):
            return False
        self._buffer, body = rest[int(length) :], rest[: int(length)]
        response = (self._post(parts[1], body) if parts[0] == b"POST" else None) or self._respond(
            parts[0].decode("latin-1"), parts[1], fields.get(b"if-none-match", b"").decode("latin-1")
        )
        connection_header = fields.get(b"connection", b"").lower()
        close = b"close" in connection_header or (parts[2] == b"HTTP/1.0" and connection_header != b"keep-alive")
        if response.delay:
            loop = asyncio.get_running_loop()
            self._delay = loop.call_later(response.delay, self._send_after_delay, response, parts[0] == b"HEAD", close)
        else:
            self._send(response, head_only=parts[0] == b"HEAD", close=close)
        return True

    def _send_after_delay(self, response: CannedResponse, head_only: bool, close: bool) -> None:
        self._delay = None
        self._send(response, head_only=head_only, close=close)
        self._serve()

    def _send(self, response: CannedResponse, *, head_only: bool = False, close: bool) -> None:
        head = f"HTTP/1.1 {response.status} {_REASONS.get(response.status, 'Status')}\r\n{response.headers}"
        if response.status not in (204, 304):
            head += f"Content-Type: {response.content_type}\r\nContent-Length: {len(response.body)}\r\n"
        head += "Connection: close\r\n\r\n" if close else "\r\n"
        body = b"" if head_only or response.status in (204, 304) else response.body
        self._transport.write(head.encode("latin-1") + body)
        if close:
            self._closing = True
            self._transport.close()
