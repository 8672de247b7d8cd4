"""Host names to addresses: one lookup per host and TTL, and the only place where an address may be refused."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address
from time import monotonic

from coordinator.errors import FetchError

Address = IPv4Address | IPv6Address


class Resolver:
    """Resolves hosts for both engines, which connect to the address it gives and never look a name up themselves.

    `allow` decides about every address, also one written as the host itself; without it everything is allowed.
    `ttl` is in seconds of `clock`; failures are not remembered.
    """

    def __init__(
        self,
        *,
        allow: Callable[[Address], bool] | None = None,
        ttl: float = 300.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._allow = allow
        self._ttl = ttl
        self._clock = clock
        self._known: dict[str, tuple[float, str]] = {}  # host -> (expires, address), the oldest first
        self._asking: dict[str, asyncio.Task[str]] = {}

    async def address(self, host: str) -> str:
        """The address to connect to for a host: the first one the system prefers and `allow` accepts.

        Raises FetchError, unsent, with kind "dns" (no such host, resolver down) or "address" (all refused).
        """
        known = self._known.get(host)
        if known is not None and self._clock() < known[0]:
            return known[1]
        asking = self._asking.get(host)
        if asking is None:
            asking = self._asking[host] = asyncio.create_task(self._ask(host))
            asking.add_done_callback(lambda task: self._answered(host, task))
        # Shielded: one caller's cancellation must not take the answer from the others.
        return await asyncio.shield(asking)

    async def _ask(self, host: str) -> str:
        addresses = await _addresses(host)
        allowed = [address for address in addresses if self._allow is None or self._allow(address)]
        if not allowed:
            raise FetchError("address", f"{host} is at {addresses[0]}, which is not allowed", sent=False)
        return str(allowed[0])

    def _answered(self, host: str, asking: asyncio.Task[str]) -> None:
        del self._asking[host]
        if asking.cancelled() or asking.exception() is not None:
            return
        now = self._clock()
        self._known.pop(host, None)
        while self._known and (oldest := next(iter(self._known.items())))[1][0] <= now:
            del self._known[oldest[0]]
        self._known[host] = (now + self._ttl, asking.result())


async def _addresses(host: str) -> list[Address]:
    try:
        return [ip_address(host.removeprefix("[").removesuffix("]"))]
    except ValueError:
        pass
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # UnicodeError: a label that is empty or too long
        reason = error.strerror if isinstance(error, OSError) else "not a host name"
        raise FetchError("dns", f"{host}: {reason}", sent=False) from error
    return [ip_address(sockaddr[0]) for *_, sockaddr in found]
