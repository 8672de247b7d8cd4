"""Host names to addresses: one lookup per host and TTL, and the only place where an address may be refused."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import monotonic

from coordinator.errors import FetchError
from crawler.fetch.network.address import Address, Guard, literal
from crawler.fetch.network.dns import SystemLookup

TTL = 300.0
FAILURE_TTL = 5.0  # so a dead host costs its name server a question every few seconds, not one a request
PATIENCE = 10.0
MAX_KNOWN = 100_000


@dataclass(frozen=True, slots=True)
class _Known:
    """What a lookup brought: an address that may be connected to, or why there is none."""

    until: float
    address: str | None
    kind: str = ""
    detail: str = ""


class Resolver:
    """Resolves hosts for both engines, which connect to the address it gives and never look a name up themselves.

    `guard` decides about every address, also one written as the host itself. `ttl` is in seconds of `clock`, also for
    a refusal; failures of DNS are remembered for `failure_ttl`. `lookup` asks the name service and is given up on after
    `patience` seconds; `lookups` counts how often it was asked.
    """

    def __init__(
        self,
        guard: Callable[[Address], bool] | None = None,
        *,
        ttl: float = TTL,
        failure_ttl: float = FAILURE_TTL,
        patience: float = PATIENCE,
        clock: Callable[[], float] = monotonic,
        lookup: Callable[[str], Awaitable[list[Address]]] | None = None,
    ) -> None:
        self._guard = guard or Guard()
        self._ttl = ttl
        self._failure_ttl = failure_ttl
        self._patience = patience
        self._clock = clock
        self._lookup = lookup or SystemLookup()
        self._known: dict[str, _Known] = {}  # the oldest first
        self._asking: dict[str, asyncio.Task[_Known]] = {}
        self.lookups = 0

    def known(self, host: str) -> str | None:
        """The address to connect to, when it was asked for within its TTL and may be connected to."""
        known = self._known.get(host)
        return known.address if known is not None and self._clock() < known.until else None

    async def address(self, host: str) -> str:
        """The address to connect to for a host: the first one the name service prefers and the guard accepts.

        Raises FetchError, unsent, with kind "dns" (no such host, resolver down) or "address" (all refused).
        """
        known = self._known.get(host)
        if known is None or self._clock() >= known.until:
            known = await self._look_up(host)
        if known.address is None:
            raise FetchError(known.kind, known.detail, sent=False)
        return known.address

    def check(self, host: str) -> None:
        """Raise FetchError("address") for a host that is written as an address and refused; asks nobody."""
        address = literal(host)
        if address is not None and not self._guard(address):
            raise FetchError("address", _refusal(host, address), sent=False)

    async def _look_up(self, host: str) -> _Known:
        asking = self._asking.get(host)
        if asking is None:
            asking = self._asking[host] = asyncio.create_task(self._ask(host))
            asking.add_done_callback(lambda task: self._remember(host, task))
        # Shielded: one caller's cancellation must not take the answer from the others.
        return await asyncio.shield(asking)

    async def _ask(self, host: str) -> _Known:
        written = literal(host)
        try:
            if written is not None:
                addresses = [written]
            else:
                self.lookups += 1
                async with asyncio.timeout(self._patience):
                    addresses = await self._lookup(host)
        except FetchError as error:
            return _Known(self._clock() + self._failure_ttl, None, error.kind, error.detail)
        except TimeoutError:
            detail = f"{host}: no answer in {self._patience:g} s"
            return _Known(self._clock() + self._failure_ttl, None, "dns", detail)
        until = self._clock() + self._ttl
        allowed = next((address for address in addresses if self._guard(address)), None)
        if allowed is None:
            return _Known(until, None, "address", _refusal(host, addresses[0]))
        return _Known(until, str(allowed))

    def _remember(self, host: str, asking: asyncio.Task[_Known]) -> None:
        del self._asking[host]
        if asking.cancelled() or asking.exception() is not None:
            return
        self._known.pop(host, None)
        now = self._clock()
        while self._known:
            oldest = next(iter(self._known))
            if self._known[oldest].until > now and len(self._known) < MAX_KNOWN:
                break
            del self._known[oldest]
        self._known[host] = asking.result()


def _refusal(host: str, address: Address) -> str:
    what = host if host == str(address) else f"{host} is at {address}, which"
    return (
        f'{what} is not public; allow_private = ["{address}"] in [request], '
        f"or --allow-private {address}, would allow it"
    )
