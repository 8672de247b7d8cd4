"""Proxies, certificate authorities of the job, and client certificates."""

from __future__ import annotations

import shutil
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import pytest

from coordinator.errors import FetchError, UsageError
from crawler.fetch.network.address import Guard
from crawler.fetch.network.credentials import Credentials
from crawler.fetch.network.resolve import Resolver
from crawler.fetch.network.tls import Certificates, read_certificates
from crawler.job.request.settings import RequestSettings
from tests.crawler.fetch.conftest import MakeEngine
from tests.servers.fixed import fixed_server
from tests.servers.http2 import http2_server, make_certificate, server_context
from tests.servers.misbehaving import BODY, Misbehaving
from tests.servers.proxies import PASSWORD, USER, PasswordProxy, password_proxy

pytestmark = pytest.mark.anyio


@pytest.fixture
async def proxy() -> AsyncIterator[PasswordProxy]:
    async with password_proxy() as proxy:
        yield proxy


@pytest.fixture(scope="session")
def server_pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for the server, with its key."""
    return _certificate(tmp_path_factory, "server")


@pytest.fixture(scope="session")
def client_pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for the client, with its key."""
    return _certificate(tmp_path_factory, "client")


def _certificate(folders: pytest.TempPathFactory, name: str) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    return make_certificate(folders.mktemp(name), name)


def credentials_for(proxy: PasswordProxy, scheme: str, password: str = PASSWORD) -> Credentials:
    return Credentials(proxy=f"{scheme}://{USER}:{quote(password, safe='')}@127.0.0.1:{proxy.port}")


@pytest.mark.parametrize(("scheme", "method"), [("http", "GET"), ("socks5", "SOCKS")])
async def test_a_proxy_gets_user_and_password_and_looks_up_the_name(
    make_engine: MakeEngine, server: Misbehaving, proxy: PasswordProxy, scheme: str, method: str
) -> None:
    resolver = Resolver()
    engine = make_engine(resolver=resolver, credentials=credentials_for(proxy, scheme))
    response = await engine.fetch("GET", server.url("/sized", "9.9.9.9" if scheme == "socks5" else "inner.test"), ())
    assert response.body == BODY
    assert proxy.requested == [(method, "9.9.9.9" if scheme == "socks5" else "inner.test")]
    assert resolver.lookups == 0


async def test_tls_goes_through_a_tunnel(make_engine: MakeEngine, proxy: PasswordProxy, server_pem: Path) -> None:
    engine = make_engine(
        credentials=credentials_for(proxy, "http"), certificates=Certificates(ca=server_pem), http2=True
    )
    async with http2_server(server_context(server_pem)) as server:
        assert (await engine.fetch("GET", f"https://localhost:{server.port}/ok", ())).body == BODY
    assert proxy.requested == [("CONNECT", "localhost")]


async def test_a_private_address_is_refused_before_the_proxy_gets_the_request(
    make_engine: MakeEngine, server: Misbehaving, proxy: PasswordProxy
) -> None:
    engine = make_engine(resolver=Resolver(), credentials=credentials_for(proxy, "http"))
    for host in ("127.0.0.1", "0x7f.1", "169.254.169.254", "[::1]"):
        with pytest.raises(FetchError) as failure:
            await engine.fetch("GET", server.url("/sized", host), ())
        assert (failure.value.kind, failure.value.sent) == ("address", False)
    assert (proxy.requested, proxy.refused) == ([], 0)


async def test_a_wrong_password_stands_in_no_message(
    make_engine: MakeEngine, server: Misbehaving, proxy: PasswordProxy
) -> None:
    wrong = "not-the-p4ssword"
    for scheme, url in (("socks5", server.url("/sized", "9.9.9.9")), ("http", "https://inner.test/")):
        engine = make_engine(resolver=Resolver(), credentials=credentials_for(proxy, scheme, wrong))
        with pytest.raises(FetchError) as failure:
            await engine.fetch("GET", url, ())
        assert failure.value.kind in ("connect", "tls")
        assert not failure.value.sent
        assert wrong not in str(failure.value)
    assert proxy.refused == 2


async def test_a_certificate_is_trusted_through_the_authority_that_the_job_names(
    make_engine: MakeEngine, server_pem: Path
) -> None:
    async with http2_server(server_context(server_pem)) as server:
        url = f"https://localhost:{server.port}/ok"
        assert (
            await make_engine(http2=True, certificates=Certificates(ca=server_pem)).fetch("GET", url, ())
        ).body == BODY
        with pytest.raises(FetchError) as failure:
            await make_engine(http2=True).fetch("GET", url, ())
    assert (failure.value.kind, failure.value.sent) == ("tls", False)


async def test_a_certificate_for_another_name_fails_as_tls(make_engine: MakeEngine, server_pem: Path) -> None:
    async with http2_server(server_context(server_pem)) as server:
        engine = make_engine(resolver=Resolver(Guard(["127.0.0.0/8"])), certificates=Certificates(ca=server_pem))
        with pytest.raises(FetchError) as failure:
            await engine.fetch("GET", f"https://127.0.0.2:{server.port}/ok", ())
    assert failure.value.kind in ("tls", "connect")


async def test_a_server_that_wants_our_certificate_gets_it(
    make_engine: MakeEngine, server_pem: Path, client_pem: Path
) -> None:
    async with http2_server(server_context(server_pem, client=client_pem)) as server:
        engine = make_engine(http2=True, certificates=Certificates(ca=server_pem, client=client_pem))
        assert (await engine.fetch("GET", f"https://localhost:{server.port}/ok", ())).body == BODY
        assert server.peers == [
            ssl.PEM_cert_to_DER_cert(client_pem.read_text()[client_pem.read_text().index("-----BEGIN CERT") :])
        ]


async def test_a_server_that_speaks_only_http_1_is_understood_with_http2_on(
    make_engine: MakeEngine, server_pem: Path
) -> None:
    response = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine"
    async with fixed_server(response, server_context(server_pem, alpn="http/1.1")) as port:
        engine = make_engine(http2=True, certificates=Certificates(ca=server_pem))
        assert (await engine.fetch("GET", f"https://localhost:{port}/", ())).body == b"fine"


def test_paths_of_certificates_are_relative_to_the_folder_of_the_job(server_pem: Path, client_pem: Path) -> None:
    request = RequestSettings(ca=server_pem.name, client_cert=str(client_pem))
    assert read_certificates(request, str(server_pem.parent)) == Certificates(ca=server_pem, client=client_pem)
    assert read_certificates(RequestSettings(), "/nowhere") == Certificates()


@pytest.mark.parametrize(("key", "words"), [("ca", "certificates"), ("client_cert", "a certificate and its key")])
def test_certificates_that_cannot_be_used_are_usage_errors_in_one_line(tmp_path: Path, key: str, words: str) -> None:
    (tmp_path / "not.pem").write_text("no certificate")
    for name, problem in (("not.pem", f"is no PEM file with {words}"), ("missing.pem", "No such file or directory")):
        with pytest.raises(UsageError) as failure:
            read_certificates(RequestSettings(**{key: name}), str(tmp_path))
        assert f"job: [request] {key}: {tmp_path / name}" in str(failure.value)
        assert problem in str(failure.value)
        assert "\n" not in str(failure.value)
