"""Resolves host names to addresses that a request may connect to, and caches the result. Only here one is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import monotonic

from coordinator.errors import FetchError
from crawler.fetch.network.address import Address, Guard, literal
from crawler.fetch.network.dns import SystemLookup

TTL_SECONDS = 300.0
FAILURE_TTL_SECONDS = 5.0  # a dead host costs one lookup every few seconds, not one for each request
LOOKUP_TIMEOUT_SECONDS = 10.0
MAX_CACHED_HOSTS = 100_000


@dataclass(frozen=True, slots=True)
class _Resolution:
    """What a lookup brought, valid until `until` on the clock: an address, or the kind and detail of the error."""

    until: float
    address: str | None
    kind: str = ""
    detail: str = ""


class Resolver:
    """Resolves hosts for both engines, which connect to the address that it returns and look up no name themselves.

    `guard` says whether a request may connect to an address, also to a host that is written as one. An address or a
    refusal is kept for `ttl` seconds of `clock`, a failure of DNS for `failure_ttl` seconds. `lookup` asks the name
    service, and is ended after `lookup_timeout` seconds; `lookups` counts its calls.
    """

    def __init__(
        self,
        guard: Callable[[Address], bool] | None = None,
        *,
        ttl: float = TTL_SECONDS,
        failure_ttl: float = FAILURE_TTL_SECONDS,
        lookup_timeout: float = LOOKUP_TIMEOUT_SECONDS,
        clock: Callable[[], float] = monotonic,
        lookup: Callable[[str], Awaitable[list[Address]]] | None = None,
    ) -> None:
        self._guard = guard or Guard()
        self._ttl = ttl
        self._failure_ttl = failure_ttl
        self._lookup_timeout = lookup_timeout
        self._clock = clock
        self._lookup = lookup or SystemLookup()
        self._cached: dict[str, _Resolution] = {}  # the oldest first
        self._running: dict[str, asyncio.Task[_Resolution]] = {}
        self.lookups = 0

    def cached_address(self, host: str) -> str | None:
        """Return the address to connect to if it was looked up within its TTL and is allowed, else None."""
        cached = self._cached.get(host)
        return cached.address if cached is not None and self._clock() < cached.until else None

    async def address(self, host: str) -> str:
        """Return the address to connect to: the first one in the name service's order that the guard allows.

        Raises FetchError, unsent, with kind "dns" (no such host, no response) or "address" (all are refused).
        """
        cached = self._cached.get(host)
        if cached is None or self._clock() >= cached.until:
            cached = await self._look_up(host)
        if cached.address is None:
            raise FetchError(cached.kind, cached.detail, sent=False)
        return cached.address

    def check(self, host: str) -> None:
        """Raise FetchError("address") if the host is written as an address that is refused. Makes no lookup."""
        address = literal(host)
        if address is not None and not self._guard(address):
            raise FetchError("address", refused_detail(host, address), sent=False)

    async def _look_up(self, host: str) -> _Resolution:
        running = self._running.get(host)
        if running is None:
            running = self._running[host] = asyncio.create_task(self._resolve(host))
            running.add_done_callback(lambda task: self._keep(host, task))
        # Shielded: when one caller is cancelled, the others still get the address.
        return await asyncio.shield(running)

    async def _resolve(self, host: str) -> _Resolution:
        literal_address = literal(host)
        try:
            if literal_address is not None:
                addresses = [literal_address]
            else:
                self.lookups += 1
                async with asyncio.timeout(self._lookup_timeout):
                    addresses = await self._lookup(host)
        except FetchError as error:
            return _Resolution(self._clock() + self._failure_ttl, None, error.kind, error.detail)
        except TimeoutError:
            detail = f"{host}: no response in {self._lookup_timeout:g} s"
            return _Resolution(self._clock() + self._failure_ttl, None, "dns", detail)
        until = self._clock() + self._ttl
        allowed = next((address for address in addresses if self._guard(address)), None)
        if allowed is None:
            return _Resolution(until, None, "address", refused_detail(host, addresses[0]))
        return _Resolution(until, str(allowed))

    def _keep(self, host: str, running: asyncio.Task[_Resolution]) -> None:
        del self._running[host]
        if running.cancelled() or running.exception() is not None:
            return
        self._cached.pop(host, None)
        now = self._clock()
        while self._cached:
            oldest = next(iter(self._cached))
            if self._cached[oldest].until > now and len(self._cached) < MAX_CACHED_HOSTS:
                break
            del self._cached[oldest]
        self._cached[host] = running.result()


def refused_detail(host: str, address: Address) -> str:
    """Why requests to a host are refused, and what would allow them."""
    subject = host if host == str(address) else f"{host} is at {address}, which"
    return f"{subject} is not public; --allow-private {address} (or [request] allow_private) allows it"
