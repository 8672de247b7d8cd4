"""HTTP/2 in both engines: by ALPN and by prior knowledge, with streams that the server refuses, resets or closes."""

from __future__ import annotations

import asyncio
import shutil
import ssl
from collections.abc import AsyncIterator

import pytest

from coordinator.errors import FetchError
from crawler.fetch.network.tls import NO_CERTIFICATES, Certificates
from crawler.sample.upstream import Upstream
from tests.crawler.fetch.conftest import MakeEngine
from tests.servers.http2 import Http2Server, http2_server, make_certificate, server_context
from tests.servers.misbehaving import BODY

pytestmark = pytest.mark.anyio


class Route:
    """A server, its URLs, and the parameters of an engine for it."""

    def __init__(self, server: Http2Server, scheme: str, trusted: Certificates) -> None:
        self.server = server
        self.scheme = scheme
        self.parameters = {"http2": True if scheme == "https" else "prior-knowledge", "certificates": trusted}

    def url(self, path: str) -> str:
        return f"{self.scheme}://localhost:{self.server.port}{path}"


@pytest.fixture(params=["https", "http"])
async def route(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Route]:
    """TLS, where ALPN agrees on HTTP/2, and cleartext, where the engine must know it."""
    context: ssl.SSLContext | None = None
    trusted = NO_CERTIFICATES
    if request.param == "https":
        if shutil.which("openssl") is None:
            pytest.skip("needs the openssl command to make a certificate")
        trusted = Certificates(ca=make_certificate(tmp_path_factory.mktemp("tls"), "server"))
        assert trusted.ca is not None
        context = server_context(trusted.ca)
    async with http2_server(context) as server:
        yield Route(server, request.param, trusted)


async def test_many_requests_share_one_connection(make_engine: MakeEngine, route: Route) -> None:
    engine = make_engine(**route.parameters)
    assert (await engine.fetch("GET", route.url("/first"), ())).body == BODY
    responses = await asyncio.gather(*(engine.fetch("GET", route.url(f"/{n}"), ()) for n in range(16)))
    assert [response.body for response in responses] == [BODY] * 16
    assert route.server.connections == 1
    assert all(head[":scheme"] == route.scheme for head in route.server.heads)


@pytest.mark.parametrize("path", ["/refused-once", "/left-at-once"])
async def test_a_request_that_the_server_did_not_process_is_sent_again(
    make_engine: MakeEngine, route: Route, path: str
) -> None:
    assert (await make_engine(**route.parameters).fetch("GET", route.url(path), ())).body == BODY
    assert route.server.requested[path] == 2


async def test_a_connection_that_the_server_closes_is_replaced(make_engine: MakeEngine, route: Route) -> None:
    engine = make_engine(**route.parameters)
    for _ in range(3):
        assert (await engine.fetch("GET", route.url("/left-afterwards"), ())).body == BODY
    assert route.server.connections == 3


@pytest.mark.parametrize(
    ("path", "kind", "sendings"),
    [
        ("/refused", "reset", (2, 3)),
        ("/cancelled", "reset", (1,)),
        ("/cut", "reset", (1,)),
        ("/headers", "protocol", (1,)),
    ],
)
async def test_a_stream_that_ends_badly_fails_with_its_kind_and_the_next_request_succeeds(
    make_engine: MakeEngine, route: Route, path: str, kind: str, sendings: set[int]
) -> None:
    engine = make_engine(**route.parameters)
    with pytest.raises(FetchError) as failure:
        await engine.fetch("GET", route.url(path), ())
    assert (failure.value.kind, failure.value.sent) == (kind, True)
    assert route.server.requested[path] in sendings
    assert (await engine.fetch("GET", route.url("/ok"), ())).body == BODY


async def test_a_server_that_knows_no_http2_is_an_error_with_prior_knowledge(make_engine: MakeEngine) -> None:
    async with Upstream() as upstream:
        with pytest.raises(FetchError) as failure:
            await make_engine(http2="prior-knowledge").fetch("GET", f"{upstream.url}/item/a", ())
    assert failure.value.kind in ("reset", "protocol")
