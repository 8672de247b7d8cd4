"""A limiter and an engine that do as they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from coordinator.limits.limiter import HORIZON, Reservation
from crawler.model import HttpResponse


@dataclass
class ScriptedLimiter:
    """What Lines and Fetcher see of a Limiter; its slots are as evenly spaced and as far ahead as the real one's."""

    rates: dict[str, float] = field(default_factory=dict)
    concurrencies: dict[str, int] = field(default_factory=dict)
    paused_until: dict[str, float] = field(default_factory=dict)
    latency: float = 0.001
    errors: list[Exception] = field(default_factory=list)
    reserved: dict[str, list[float]] = field(default_factory=dict)
    calls: list[float] = field(default_factory=list)
    notes: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    on_change: Callable[[], None] = lambda: None

    def clock(self) -> float:
        return asyncio.get_running_loop().time()

    def rated(self, upstream: str) -> bool:
        return upstream in self.rates

    def rate(self, upstream: str) -> float | None:
        return self.rates.get(upstream)

    def concurrency(self, upstream: str) -> int | None:
        return self.concurrencies.get(upstream)

    def resumes(self, upstream: str) -> float:
        return self.paused_until.get(upstream, 0.0)

    async def pause(self, upstream: str, seconds: float) -> None:
        self.paused_until[upstream] = max(self.resumes(upstream), self.clock() + seconds)
        self.on_change()

    def report(self, upstream: str, **what: Any) -> None:
        self.notes.append((upstream, what))

    async def reserve(self, upstream: str, wanted: int) -> Reservation:
        self.calls.append(self.clock())
        await asyncio.sleep(self.latency)
        if self.errors:
            raise self.errors.pop(0)
        interval = 1 / self.rates[upstream]
        last = self.reserved.get(upstream, [0.0])[-1]
        first = max(last + interval, self.clock())
        if first > self.clock() + HORIZON:
            return Reservation((), first - HORIZON)
        fair = max(1, int(0.025 / interval + 0.5))
        count = min(wanted, fair, int((self.clock() + HORIZON - first) / interval) + 1)
        slots = tuple(first + index * interval for index in range(count))
        self.reserved.setdefault(upstream, []).extend(slots)
        return Reservation(slots, first)


class Sent(dict[str, str]):
    """Headers of a response."""

    def has(self, names: Iterable[str]) -> bool:
        return not self.keys().isdisjoint(names)

    def items(self) -> list[tuple[str, str]]:  # type: ignore[override]
        return list(super().items())


def response(status: int, body: bytes = b"", **headers: str) -> HttpResponse:
    return HttpResponse(status, Sent({name.replace("_", "-"): value for name, value in headers.items()}), body)


class ScriptedEngine:
    """Gives one line of its script after the other, the last one again and again."""

    def __init__(self, *lines: HttpResponse | BaseException, each: Callable[[], None] = lambda: None) -> None:
        self._lines = list(lines)
        self._each = each
        self.urls: list[str] = []
        self.trusted: list[bool] = []
        self.times: list[float] = []

    async def fetch(
        self, method: str, url: str, headers: Iterable[tuple[str, str]], with_credentials: bool = True
    ) -> HttpResponse:
        assert (method, headers) == ("GET", ())
        self.urls.append(url)
        self.trusted.append(with_credentials)
        self.times.append(asyncio.get_running_loop().time())
        self._each()
        line = self._lines.pop(0) if len(self._lines) > 1 else self._lines[0]
        await asyncio.sleep(0)
        if isinstance(line, BaseException):
            raise line
        return line

    async def close(self) -> None:
        """Nothing is open."""
