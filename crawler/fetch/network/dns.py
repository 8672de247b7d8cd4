"""Names to addresses by the system's resolver, many at once, and without holding up the end of the process."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from ipaddress import ip_address
from threading import Thread

from coordinator.errors import FetchError
from crawler.fetch.network.address import Address

AT_ONCE = 32  # uvloop's own getaddrinfo does two at once, so that one dead name server would hold up every host


class SystemLookup:
    """Asks getaddrinfo, in a thread for each host."""

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def __call__(self, host: str) -> list[Address]:
        """The host's addresses, the one that the system prefers first. Raises FetchError("dns"), unsent."""
        async with self._turns:
            pending: asyncio.Future[list[Address]] = asyncio.get_running_loop().create_future()
            # A daemon: the process may end while a name server is silent.
            Thread(target=_ask, args=(host, pending), name=f"lookup of {host}", daemon=True).start()
            return await pending


def _ask(host: str, pending: asyncio.Future[list[Address]]) -> None:
    found: list[Address] = []
    failure: FetchError | None = None
    try:
        found = [ip_address(place[0]) for *_, place in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError) as error:  # UnicodeError: a label that is empty or too long
        reason = error.strerror if isinstance(error, OSError) else "not a host name"
        failure = FetchError("dns", f"{host}: {reason}", sent=False)

    def tell() -> None:
        if pending.done():
            return
        if failure is not None:
            pending.set_exception(failure)
        else:
            pending.set_result(found)

    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        pending.get_loop().call_soon_threadsafe(tell)
