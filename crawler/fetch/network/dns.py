"""Looks up names with the system's resolver: many at once, and without a thread that delays the process's end."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from ipaddress import ip_address
from threading import Thread

from coordinator.errors import FetchError
from crawler.fetch.network.address import Address

# uvloop's own getaddrinfo runs two lookups at once, so one dead name server would stop the lookups of all hosts.
CONCURRENT_LOOKUPS = 32


class SystemLookup:
    """Calls getaddrinfo, in a thread for each host."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(CONCURRENT_LOOKUPS)

    async def __call__(self, host: str) -> list[Address]:
        """Return the host's addresses, the one that the system prefers first. Raises FetchError("dns"), unsent."""
        async with self._free:
            pending: asyncio.Future[list[Address]] = asyncio.get_running_loop().create_future()
            # A daemon thread: the process can end while a name server does not respond.
            Thread(target=_look_up, args=(host, pending), name=f"lookup of {host}", daemon=True).start()
            return await pending


def _look_up(host: str, pending: asyncio.Future[list[Address]]) -> None:
    addresses: list[Address] = []
    failure: FetchError | None = None
    try:
        addresses = [ip_address(found[0]) for *_, found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError) as error:  # UnicodeError: a label that is empty or too long
        reason = error.strerror if isinstance(error, OSError) else "not a host name"
        failure = FetchError("dns", f"{host}: {reason}", sent=False)

    def deliver() -> None:
        if pending.done():
            return
        if failure is not None:
            pending.set_exception(failure)
        else:
            pending.set_result(addresses)

    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        pending.get_loop().call_soon_threadsafe(deliver)
