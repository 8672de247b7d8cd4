"""Serves the page until a signal ends it."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from coordinator.errors import UsageError
from coordinator.tasks import run_until_first_ends
from crawler.local.services import LookedAt, Place
from crawler.web.app import Dashboard
from crawler.web.guard import Access

# An open page never ends its request by itself.
SHUTDOWN_SECONDS = 1
# Who connects and asks for nothing must not take all the files that a process can have open.
IDLE_SECONDS = 10.0
# Nor who asks and does not read. The buffer of the system hides that until it is full, so it is not large.
UNREAD_SECONDS = 60.0
SEND_BUFFER_BYTES = 64 * 1024


class _Connection(H11Protocol):
    _giving_up: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, and look again and again whether a request has come."""
        super().connection_made(transport)
        self._look_again(self.cycle)

    def pause_writing(self) -> None:
        """The client takes nothing more for now: it may do so for UNREAD_SECONDS."""
        super().pause_writing()
        self._giving_up = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has taken what was sent, or nearly all of it."""
        super().resume_writing()
        if self._giving_up is not None:
            self._giving_up.cancel()

    def _look_again(self, last: RequestResponseCycle | None) -> None:
        self.loop.call_later(IDLE_SECONDS, self._close_if_idle, last)

    def _close_if_idle(self, last: RequestResponseCycle | None) -> None:
        if self.transport.is_closing():
            return
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and self.cycle is last:
            self.transport.close()
        else:
            self._look_again(self.cycle)


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: the servers of an embedded place must be stopped after this one."""
        yield


async def serve_page(place: Place, listen: str, access: Access, on_ready: Callable[[str], None]) -> None:
    """Serve the page at `listen` until SIGINT or SIGTERM; `on_ready` gets its address.

    Raises UsageError when it cannot listen there, ShardcrawlError when the folder of the place cannot be used.
    """
    with _listening(listen) as listener:
        looked_at = LookedAt(place)
        dashboard = Dashboard(lambda: looked_at.addresses, access)
        server = _Server(
            uvicorn.Config(
                dashboard.app,
                access_log=False,
                http=_Connection,
                lifespan="off",
                log_config=None,
                log_level="error",  # who sends nonsense must not fill the log
                server_header=False,
                timeout_graceful_shutdown=SHUTDOWN_SECONDS,
                ws="none",
            )
        )
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, setattr, server, "should_exit", True)
        host, port = listener.getsockname()[:2]
        on_ready(f"http://{f'[{host}]' if ':' in host else host}:{port}/")
        try:
            await run_until_first_ends(server.serve([listener]), looked_at.keep())
        finally:
            await dashboard.close()


def _listening(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    try:
        if not host or not 0 <= int(port) < 65_536:
            raise ValueError
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host.strip("[]"), int(port)), family=family)
    except (TypeError, ValueError):  # the first of a name that no host can have
        raise UsageError(f"--listen is {listen!r}; write HOST:PORT, like 127.0.0.1:8765") from None
    except OSError as error:
        raise UsageError(f"--listen {listen}: {error.strerror}; choose another port") from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)  # each connection has it, too
    return listener
