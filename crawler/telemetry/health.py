"""The health of a process with children: whether their event loops move. It asks neither Redis nor Postgres.

`/healthz` says it to who asks, and systemd is told. Both are done by the process's own event loop: when that stands
still, there is no response, and systemd hears nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import TypeVar

from coordinator.errors import UsageError
from coordinator.tasks import cancel_and_wait
from crawler.telemetry.systemd import notify_systemd

REQUEST_SECONDS = 5.0
LONGEST_REQUEST = 8192
_Result = TypeVar("_Result")


class Health:
    """What supervisors ask for. `watch` says who knows the children that seem to stand still."""

    def __init__(self) -> None:
        self._silent: Callable[[], Sequence[str]] = tuple

    def watch(self, silent: Callable[[], Sequence[str]]) -> None:
        """From now on ask this function for their names."""
        self._silent = silent

    def respond(self, head: bytes) -> bytes:
        """The response to a request, of which `head` is the first part."""
        method, _, rest = head.partition(b" ")
        path = rest.split(b" ", 1)[0].split(b"?", 1)[0]
        silent = self._silent()
        if method not in (b"GET", b"HEAD"):
            status, text = "405 Method Not Allowed", "use GET"
        elif path != b"/healthz":
            status, text = "404 Not Found", "ask for /healthz"
        elif silent:
            status, text = "503 Service Unavailable", f"stands still: {', '.join(silent)}"
        else:
            status, text = "200 OK", "ok"
        body = f"{text}\n"
        fields = f"Content-Type: text/plain\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
        return f"HTTP/1.1 {status}\r\n{fields}\r\n{'' if method == b'HEAD' else body}".encode()

    async def serving(
        self, where: str | None, environ: Mapping[str, str], work: Callable[[], Awaitable[_Result]]
    ) -> _Result:
        """What the `work` returns; meanwhile `/healthz` is there at `where`, [HOST:]PORT, if that is given, and systemd
        is told if `environ` has its socket.

        Raises UsageError when it cannot listen there, and what the work raises.
        """
        notifying = asyncio.create_task(notify_systemd(environ, lambda: not self._silent()), name="systemd")
        try:
            return await self._answering(where, work)
        finally:
            await cancel_and_wait([notifying])

    async def _answering(self, where: str | None, work: Callable[[], Awaitable[_Result]]) -> _Result:
        if where is None:
            return await work()
        host, port = _address(where)
        try:
            server = await asyncio.start_server(self._serve, host, port, limit=LONGEST_REQUEST)
        except (OSError, ValueError) as error:  # the second of a name that no host can have
            why = getattr(error, "strerror", None) or error
            raise UsageError(f"--health {where}: {why}; choose another port") from error
        async with server:
            return await work()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
                async with asyncio.timeout(REQUEST_SECONDS):
                    writer.write(self.respond(await reader.readuntil(b"\r\n\r\n")))
                    await writer.drain()
        finally:
            writer.close()


def _address(where: str) -> tuple[str, int]:
    host, _, port = where.rpartition(":")
    if not (port.isdecimal() and port.isascii() and len(port) <= 5) or int(port) > 65_535:
        raise UsageError(f"--health is {where!r:.100}; write PORT, or HOST:PORT like 0.0.0.0:8766")
    return host.strip("[]") or "127.0.0.1", int(port)
