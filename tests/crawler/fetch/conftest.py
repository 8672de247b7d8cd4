"""Fixtures: both engines, the misbehaving server, and a name service of the test's own."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from coordinator.url import Target, parse
from crawler.fetch.engines.httpx_engine import HttpxEngine
from crawler.fetch.engines.protocol import Caps, Engine
from crawler.fetch.engines.pyreqwest_engine import PyreqwestEngine
from crawler.fetch.network.address import Guard
from crawler.fetch.network.resolve import Resolver
from crawler.model import HttpResponse
from tests.servers.misbehaving import Misbehaving, misbehaving

PATIENT = Caps(connect=5.0, read=8.0, total=10.0, body=400_000)
LOOPBACK = Guard(["127.0.0.0/8", "::1"])
MakeEngine = Callable[..., Any]


@pytest.fixture
async def server() -> AsyncIterator[Misbehaving]:
    async with misbehaving() as server:
        yield server


class PyreqwestByUrl(PyreqwestEngine):
    """Takes a URL as it is written, because that is easier to read in a test."""

    async def fetch(self, method: str, target: Target | str, *rest: Any, **more: Any) -> HttpResponse:
        return await super().fetch(method, as_target(target), *rest, **more)


class HttpxByUrl(HttpxEngine):
    """The same for the second engine."""

    async def fetch(self, method: str, target: Target | str, *rest: Any, **more: Any) -> HttpResponse:
        return await super().fetch(method, as_target(target), *rest, **more)


def as_target(target: Target | str) -> Target:
    return parse(target) if isinstance(target, str) else target


@pytest.fixture(params=[PyreqwestByUrl, HttpxByUrl])
def engine_class(request: pytest.FixtureRequest) -> type[PyreqwestEngine | HttpxEngine]:
    engine_class: type[PyreqwestEngine | HttpxEngine] = request.param
    return engine_class


@pytest.fixture
async def make_engine(engine_class: type[PyreqwestEngine | HttpxEngine]) -> AsyncIterator[MakeEngine]:
    """Makes engines that suit the tests, and closes them when the test is over."""
    async with AsyncExitStack() as engines:

        def make(caps: Caps = PATIENT, resolver: Resolver | None = None, **parameters: Any) -> Engine:
            engine = engine_class(caps, concurrency=16, resolver=resolver or Resolver(LOOPBACK), **parameters)
            engines.push_async_callback(engine.close)
            return engine

        yield make


class Names:
    """A name service: `addresses` by host, the hosts of all lookups in order; silent while not `responding`."""

    def __init__(self) -> None:
        self.addresses: dict[str, list[str]] = {}
        self.requested: list[str] = []
        self.responding = threading.Event()
        self.responding.set()

    def getaddrinfo(self, host: str, *_: Any, **__: Any) -> list[tuple[Any, ...]]:
        self.requested.append(host)
        self.responding.wait(20)
        if host not in self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in self.addresses[host]]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    """Replaces getaddrinfo, so that every lookup made in Python is recorded."""
    names = Names()
    monkeypatch.setattr(socket, "getaddrinfo", names.getaddrinfo)
    yield names
    names.responding.set()
