"""A limiter and an engine without Redis and network, which do what a test's script says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from coordinator.limits.limiter import HORIZON_SECONDS, Reservation
from coordinator.url import Target
from crawler.model import HttpResponse

# As in lua/limits/reserve.
LONGEST_GRANT_SECONDS = 0.025


@dataclass
class ScriptedLimiter:
    """What Scheduler and Fetcher use of a Limiter; its slots are spaced and reserved ahead like the real one's.

    `latency` is the seconds that a reservation takes. `errors` are raised by the next reservations, one by each.
    """

    rates: dict[str, float] = field(default_factory=dict)
    concurrencies: dict[str, int] = field(default_factory=dict)
    paused_until: dict[str, float] = field(default_factory=dict)
    latency: float = 0.001
    errors: list[Exception] = field(default_factory=list)
    reserved: dict[str, list[float]] = field(default_factory=dict)
    calls: list[float] = field(default_factory=list)
    reports: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    unauthorized: set[str] = field(default_factory=set)
    run_is_paused: bool = False
    on_change: Callable[[], None] = lambda: None

    def clock(self) -> float:
        return asyncio.get_running_loop().time()

    def needs_slots(self, upstream: str) -> bool:
        return upstream in self.rates

    def rate(self, upstream: str) -> float | None:
        return self.rates.get(upstream)

    def concurrency(self, upstream: str) -> int | None:
        return self.concurrencies.get(upstream)

    def resumes_at(self, upstream: str) -> float:
        return self.paused_until.get(upstream, 0.0)

    async def pause(self, upstream: str, seconds: float) -> None:
        self.paused_until[upstream] = max(self.resumes_at(upstream), self.clock() + seconds)
        self.on_change()

    def slot_missed(self, upstream: str) -> None:
        """No slot of this limiter is a probe's."""

    async def until_reported(self, upstream: str) -> None:
        """Nothing is reported to anybody."""

    def is_unauthorized(self, upstream: str) -> bool:
        return upstream in self.unauthorized

    def report(self, upstream: str, **what: Any) -> None:
        self.reports.append((upstream, what))

    async def reserve(self, upstream: str, wanted: int, turn_at: float = 0.0) -> Reservation:
        self.calls.append(self.clock())
        await asyncio.sleep(self.latency)
        if self.errors:
            raise self.errors.pop(0)
        interval = 1 / self.rates[upstream]
        last = self.reserved.get(upstream, [0.0])[-1]
        first = max(last + interval, self.clock())
        if first > self.clock() + HORIZON_SECONDS:
            return Reservation((), first - HORIZON_SECONDS)
        most = max(1, int(LONGEST_GRANT_SECONDS / interval + 0.5))
        count = min(wanted, most, int((self.clock() + HORIZON_SECONDS - first) / interval) + 1)
        slots = tuple(first + index * interval for index in range(count))
        self.reserved.setdefault(upstream, []).extend(slots)
        free = slots[-1] + interval - HORIZON_SECONDS
        return Reservation(slots, free if len(slots) < wanted and free > self.clock() else 0.0)


class ScriptedHeaders(dict[str, str]):
    """Headers of a response, by their names in lower case."""

    def joined(self, name: str) -> str | None:
        return self.get(name)

    def has(self, names: Iterable[str]) -> bool:
        return not self.keys().isdisjoint(names)

    def items(self) -> list[tuple[str, str]]:  # type: ignore[override]
        return list(super().items())


def headers(**fields: str) -> ScriptedHeaders:
    """Headers as keyword arguments: `retry_after="60"` is retry-after."""
    return ScriptedHeaders({name.replace("_", "-"): value for name, value in fields.items()})


def response(status: int, body: bytes = b"", **fields: str) -> HttpResponse:
    return HttpResponse(status, headers(**fields), body)


class ScriptedEngine:
    """Returns or raises the results of its script, one for each request, and the last one for every further request."""

    def __init__(self, *script: HttpResponse | BaseException, on_fetch: Callable[[], None] = lambda: None) -> None:
        self._script = list(script)
        self._on_fetch = on_fetch
        self.urls: list[str] = []
        self.with_credentials: list[bool] = []
        self.times: list[float] = []

    async def fetch(
        self,
        method: str,
        target: Target,
        headers: Iterable[tuple[str, str]],
        with_credentials: bool = True,
        body: bytes | None = None,
    ) -> HttpResponse:
        assert (method, headers, body) == ("GET", (), None)
        self.urls.append(target.href)
        self.with_credentials.append(with_credentials)
        self.times.append(asyncio.get_running_loop().time())
        self._on_fetch()
        result = self._script.pop(0) if len(self._script) > 1 else self._script[0]
        await asyncio.sleep(0)
        if isinstance(result, BaseException):
            raise result
        return result

    async def close(self) -> None:
        """Nothing is open."""
