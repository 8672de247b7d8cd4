"""What only the pyreqwest engine has: client generations, pins, its library's words and traps."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from pyreqwest.client import Client

from coordinator.errors import FetchError
from crawler.fetch.engines.protocol import Caps
from crawler.fetch.engines.pyreqwest_engine import PyreqwestEngine
from crawler.fetch.engines.pyreqwest_errors import classify
from crawler.fetch.network.address import Address
from crawler.fetch.network.resolve import Resolver
from tests.crawler.fetch.conftest import LOOPBACK, MakeEngine, Names
from tests.servers.misbehaving import BODY, Misbehaving

pytestmark = pytest.mark.anyio


@pytest.fixture
def kind_of_engine() -> type[PyreqwestEngine]:
    return CountingEngine


class CountingEngine(PyreqwestEngine):
    """Counts the clients it makes, and tells when it begins to make another."""

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
    hosts.append("later.test")
    for _ in range(2):
        await asyncio.gather(*(engine.fetch("GET", server.url("/sized", host), ()) for host in hosts))
        assert engine.built == 3


async def test_an_address_as_host_needs_no_new_client(make_engine: MakeEngine, server: Misbehaving) -> None:
    engine = make_engine()
    for host in ("127.0.0.1", "2130706433", "127.0.0.2"):
        assert (await engine.fetch("GET", server.url("/sized", host), ())).body == BODY
    assert isinstance(engine, CountingEngine)
    assert engine.built == 1


async def test_requests_in_flight_outlive_their_generation_and_then_its_connections_close(
    make_engine: MakeEngine, server: Misbehaving, names: Names
) -> None:
    names.addresses = {"one.test": ["127.0.0.1"], "two.test": ["127.0.0.1"]}
    engine = make_engine()
    drop = asyncio.create_task(engine.fetch("GET", server.url("/two-packets", "one.test"), ()))
    await server.wait_until(lambda seen: seen.asked["/two-packets"] == 1)
    await engine.fetch("GET", server.url("/sized", "two.test"), ())
    assert isinstance(engine, CountingEngine)
    assert engine.built == 3
    assert (await drop).body == BODY
    await server.wait_until(lambda seen: seen.open == 1)


async def test_a_host_that_moves_is_followed_when_its_ttl_is_over(
    make_engine: MakeEngine, server: Misbehaving, names: Names, clock: Clock
) -> None:
    names.addresses = {"moving.test": ["127.0.0.1"]}
    engine = make_engine(resolver=Resolver(LOOPBACK, ttl=300, clock=clock))
    url = server.url("/sized", "moving.test")
    await engine.fetch("GET", url, ())
    names.addresses = {"moving.test": ["127.0.0.2"]}
    clock.now = 299.0
    await engine.fetch("GET", url, ())
    assert server.reached == ["127.0.0.1"]
    clock.now = 301.0
    await engine.fetch("GET", url, ())
    assert server.reached == ["127.0.0.1", "127.0.0.2"]


async def test_a_host_that_stays_keeps_its_client_when_its_ttl_is_over(
    make_engine: MakeEngine, server: Misbehaving, names: Names, clock: Clock
) -> None:
    names.addresses = {"staying.test": ["127.0.0.1"]}
    engine = make_engine(resolver=Resolver(LOOPBACK, ttl=300, clock=clock))
    for clock.now in (0.0, 400.0, 800.0):
        await engine.fetch("GET", server.url("/sized", "staying.test"), ())
    assert len(names.asked) == 3
    assert len(server.reached) == 1


async def test_pins_are_forgotten_before_they_are_too_many(
    make_engine: MakeEngine, server: Misbehaving, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crawler.fetch.engines.pyreqwest_engine.MAX_PINS", 2)
    names.addresses = {f"host{n}.test": ["127.0.0.1"] for n in range(3)}
    engine = make_engine()
    for host in list(names.addresses) * 2:
        assert (await engine.fetch("GET", server.url("/sized", host), ())).body == BODY


async def test_one_waiter_leaving_does_not_stop_the_new_client_for_the_others(
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
    """Set equal, a stalled connect would come back as a read timeout of a request that was sent."""
    engine = make_engine(Caps(connect=0.3, read=0.3, total=5.0))
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(FetchError) as failure:
        await engine.fetch("GET", f"https://127.0.0.1:{silent.getsockname()[1]}/", ())
    assert (failure.value.kind, failure.value.sent) == ("timeout", False)


@pytest.fixture
def self_signed(tmp_path: Path) -> ssl.SSLContext:
    """A server's side of TLS with a certificate that nobody vouches for."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return context


async def test_a_certificate_nobody_vouches_for_fails_as_tls(
    make_engine: MakeEngine, self_signed: ssl.SSLContext
) -> None:
    secure = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=self_signed)
    async with secure:
        with pytest.raises(FetchError) as failure:
            await make_engine().fetch("GET", f"https://localhost:{secure.sockets[0].getsockname()[1]}/", ())
    assert (failure.value.kind, failure.value.sent) == ("tls", False)


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
async def test_causes_that_no_test_server_brings_about_are_classified(causes: list[str], kind: str) -> None:
    assert classify(causes) == kind
