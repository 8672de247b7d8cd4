"""What only the pyreqwest engine has: one client after another, pins, and the faults of its library."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from pyreqwest.client import Client

from coordinator.errors import FetchError
from crawler.fetch.engines.protocol import Caps
from crawler.fetch.engines.pyreqwest_engine import PyreqwestEngine
from crawler.fetch.engines.pyreqwest_errors import error_kind
from crawler.fetch.network.address import Address
from crawler.fetch.network.resolve import Resolver
from tests.crawler.fetch.conftest import LOOPBACK, MakeEngine, Names, PyreqwestByUrl
from tests.servers.fixed import fixed_server
from tests.servers.http2 import make_certificate, server_context
from tests.servers.misbehaving import BODY, Misbehaving

pytestmark = pytest.mark.anyio


@pytest.fixture
def engine_class() -> type[PyreqwestEngine]:
    return CountingEngine


class CountingEngine(PyreqwestByUrl):
    """Counts the clients that it builds, and sets an event when it begins to build another."""

    built = 0

    def __init__(self, *arguments: Any, **parameters: Any) -> None:
        self.renewing = asyncio.Event()
        super().__init__(*arguments, **parameters)

    async def _renew(self) -> None:
        self.renewing.set()
        await super()._renew()

    def _build(self) -> Client:
        self.built += 1
        return super()._build()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def test_hosts_that_appear_together_share_one_new_client(make_engine: MakeEngine, server: Misbehaving) -> None:
    async def lookup(_: str) -> list[Address]:
        return [IPv4Address("127.0.0.1")]

    hosts = [f"host{n}.test" for n in range(100)]
    engine = make_engine(resolver=Resolver(LOOPBACK, lookup=lookup))
    assert isinstance(engine, CountingEngine)
    assert engine.built == 1
    await asyncio.gather(*(engine.fetch("GET", server.url("/sized", host), ()) for host in hosts))
    assert engine.built == 2
    hosts.append("one-more.test")
    for _ in range(2):
        await asyncio.gather(*(engine.fetch("GET", server.url("/sized", host), ()) for host in hosts))
        assert engine.built == 3


async def test_an_address_as_host_needs_no_new_client(make_engine: MakeEngine, server: Misbehaving) -> None:
    engine = make_engine()
    for host in ("127.0.0.1", "2130706433", "127.0.0.2"):
        assert (await engine.fetch("GET", server.url("/sized", host), ())).body == BODY
    assert isinstance(engine, CountingEngine)
    assert engine.built == 1


async def test_requests_in_flight_outlive_their_client_and_then_its_connections_close(
    make_engine: MakeEngine, server: Misbehaving, names: Names
) -> None:
    names.addresses = {"one.test": ["127.0.0.1"], "two.test": ["127.0.0.1"]}
    engine = make_engine()
    drop = asyncio.create_task(engine.fetch("GET", server.url("/two-packets", "one.test"), ()))
    await server.wait_until(lambda server: server.requested["/two-packets"] == 1)
    await engine.fetch("GET", server.url("/sized", "two.test"), ())
    assert isinstance(engine, CountingEngine)
    assert engine.built == 3
    assert (await drop).body == BODY
    await server.wait_until(lambda server: server.open == 1)


async def test_a_host_that_moves_is_found_when_its_ttl_is_over(
    make_engine: MakeEngine, server: Misbehaving, names: Names, clock: Clock
) -> None:
    names.addresses = {"moving.test": ["127.0.0.1"]}
    engine = make_engine(resolver=Resolver(LOOPBACK, ttl=300, clock=clock))
    url = server.url("/sized", "moving.test")
    await engine.fetch("GET", url, ())
    names.addresses = {"moving.test": ["127.0.0.2"]}
    clock.now = 299.0
    await engine.fetch("GET", url, ())
    assert server.connected_to == ["127.0.0.1"]
    clock.now = 301.0
    await engine.fetch("GET", url, ())
    assert server.connected_to == ["127.0.0.1", "127.0.0.2"]


async def test_a_host_that_stays_keeps_its_client_when_its_ttl_is_over(
    make_engine: MakeEngine, server: Misbehaving, names: Names, clock: Clock
) -> None:
    names.addresses = {"staying.test": ["127.0.0.1"]}
    engine = make_engine(resolver=Resolver(LOOPBACK, ttl=300, clock=clock))
    for clock.now in (0.0, 400.0, 800.0):
        await engine.fetch("GET", server.url("/sized", "staying.test"), ())
    assert len(names.requested) == 3
    assert len(server.connected_to) == 1


async def test_pins_are_dropped_when_they_are_too_many(
    make_engine: MakeEngine, server: Misbehaving, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crawler.fetch.engines.pyreqwest_engine.MAX_PINS", 2)
    names.addresses = {f"host{n}.test": ["127.0.0.1"] for n in range(3)}
    engine = make_engine()
    for host in list(names.addresses) * 2:
        assert (await engine.fetch("GET", server.url("/sized", host), ())).body == BODY


async def test_a_cancelled_request_does_not_stop_the_new_client_for_the_others(
    make_engine: MakeEngine, server: Misbehaving, names: Names
) -> None:
    names.addresses = {"one.test": ["127.0.0.1"], "two.test": ["127.0.0.1"]}
    engine = make_engine()
    assert isinstance(engine, CountingEngine)
    leaving, staying = (
        asyncio.create_task(engine.fetch("GET", server.url("/sized", host), ())) for host in names.addresses
    )
    await engine.renewing.wait()
    leaving.cancel()
    assert (await staying).body == BODY


async def test_a_system_without_certificates_can_still_fetch(
    make_engine: MakeEngine, server: Misbehaving, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "missing"))
    assert (await make_engine().fetch("GET", server.url("/sized"), ())).body == BODY


async def test_a_panic_of_the_library_is_a_failure_of_the_request(make_engine: MakeEngine, server: Misbehaving) -> None:
    class PanicException(BaseException):
        """Like pyo3's, which cannot be imported."""

    class Panicking(tuple[tuple[str, str], ...]):
        def __len__(self) -> int:
            raise PanicException

    with pytest.raises(FetchError) as failure:
        await make_engine().fetch("GET", server.url("/sized"), Panicking([("a", "b")]))
    assert failure.value.kind == "protocol"


async def test_the_connect_timeout_is_kept_below_the_read_timeout(make_engine: MakeEngine) -> None:
    """If they were equal, a connect that hangs could be reported as a read timeout of a request that was sent."""
    engine = make_engine(Caps(connect=2.0, read=2.0, total=10.0))
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(FetchError) as failure:
        await engine.fetch("GET", f"https://127.0.0.1:{silent.getsockname()[1]}/", ())
    assert (failure.value.kind, failure.value.sent) == ("timeout", False)


@pytest.fixture
def self_signed(tmp_path: Path) -> ssl.SSLContext:
    """The TLS context of a server with a self-signed certificate."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    return server_context(make_certificate(tmp_path, "localhost"), alpn=None)


async def test_a_self_signed_certificate_fails_as_tls(make_engine: MakeEngine, self_signed: ssl.SSLContext) -> None:
    async with fixed_server(b"", self_signed) as port:
        with pytest.raises(FetchError) as failure:
            await make_engine().fetch("GET", f"https://localhost:{port}/", ())
    assert (failure.value.kind, failure.value.sent) == ("tls", False)


async def test_origins_that_need_the_other_reader_are_bounded(
    make_engine: MakeEngine, server: Misbehaving, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crawler.fetch.engines.lenient.MAX_LENIENT_ORIGINS", 2)
    names.addresses = {f"host{number}.test": ["127.0.0.1"] for number in range(3)}
    engine = make_engine()
    again = []
    for host in ["host0.test", "host1.test", "host1.test", "host2.test", "host2.test", "host0.test"]:
        try:
            assert (await engine.fetch("GET", server.url("/odd", host), ())).body == BODY
        except FetchError as error:
            again.append((host, error.again))
    assert again == [("host0.test", True), ("host1.test", True), ("host2.test", True), ("host0.test", True)]


@pytest.mark.parametrize(
    ("causes", "kind"),
    [
        (["client error (Connect)", "dns error", "failed to lookup address information"], "dns"),
        (["client error (Connect)", "tcp connect error", "Network is unreachable (os error 101)"], "connect"),
        (["client error (Connect)", "invalid peer certificate: Expired"], "tls"),
        (["client error (SendRequest)", "connection error", "Broken pipe (os error 32)"], "reset"),
        (["something that no version said so far"], "protocol"),
    ],
)
async def test_causes_that_no_test_server_can_bring_about_have_their_kind(causes: list[str], kind: str) -> None:
    assert error_kind(causes) == kind
