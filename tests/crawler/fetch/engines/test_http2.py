"""HTTP/2 in both engines: by ALPN and by prior knowledge, and streams that the server refuses, resets or leaves."""

from __future__ import annotations

import asyncio
import shutil
import ssl
from collections.abc import AsyncIterator

import pytest

from coordinator.errors import FetchError
from crawler.fetch.network.tls import NO_CERTIFICATES, Certificates
from tests.crawler.fetch.conftest import MakeEngine
from tests.servers.http2 import Http2Server, http2_server, make_certificate, server_side
from tests.servers.misbehaving import BODY

pytestmark = pytest.mark.anyio


class Way:
    """A server, how to reach it, and how an engine must be made for it."""

    def __init__(self, server: Http2Server, scheme: str, trusted: Certificates) -> None:
        self.server = server
        self.scheme = scheme
        self.parameters = {"http2": True if scheme == "https" else "prior-knowledge", "certificates": trusted}

    def url(self, path: str) -> str:
        return f"{self.scheme}://localhost:{self.server.port}{path}"


@pytest.fixture(params=["https", "http"])
async def way(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Way]:
    """TLS, where ALPN agrees on HTTP/2, and cleartext, where both know."""
    context: ssl.SSLContext | None = None
    trusted = NO_CERTIFICATES
    if request.param == "https":
        if shutil.which("openssl") is None:
            pytest.skip("needs the openssl command to make a certificate")
        trusted = Certificates(ca=make_certificate(tmp_path_factory.mktemp("tls"), "server"))
        assert trusted.ca is not None
        context = server_side(trusted.ca)
    async with http2_server(context) as server:
        yield Way(server, request.param, trusted)


async def test_many_requests_share_one_connection(make_engine: MakeEngine, way: Way) -> None:
    engine = make_engine(**way.parameters)
    assert (await engine.fetch("GET", way.url("/first"), ())).body == BODY
    answers = await asyncio.gather(*(engine.fetch("GET", way.url(f"/{n}"), ()) for n in range(16)))
    assert [response.body for response in answers] == [BODY] * 16
    assert way.server.connections == 1
    assert all(head[":scheme"] == way.scheme for head in way.server.heads)


@pytest.mark.parametrize("path", ["/refused-once", "/left-at-once"])
async def test_a_request_that_the_server_never_looked_at_is_sent_again(
    make_engine: MakeEngine, way: Way, path: str
) -> None:
    assert (await make_engine(**way.parameters).fetch("GET", way.url(path), ())).body == BODY
    assert way.server.asked[path] == 2


async def test_a_connection_that_the_server_leaves_is_replaced(make_engine: MakeEngine, way: Way) -> None:
    engine = make_engine(**way.parameters)
    for _ in range(3):
        assert (await engine.fetch("GET", way.url("/left-afterwards"), ())).body == BODY
    assert way.server.connections == 3


@pytest.mark.parametrize(
    ("path", "kind", "sendings"),
    [
        ("/refused", "reset", (2, 3)),
        ("/cancelled", "reset", (1,)),
        ("/cut", "reset", (1,)),
        ("/headers", "protocol", (1,)),
    ],
)
async def test_a_stream_that_ends_badly_fails_with_its_kind_and_spoils_no_other(
    make_engine: MakeEngine, way: Way, path: str, kind: str, sendings: set[int]
) -> None:
    engine = make_engine(**way.parameters)
    with pytest.raises(FetchError) as failure:
        await engine.fetch("GET", way.url(path), ())
    assert (failure.value.kind, failure.value.sent) == (kind, True)
    assert way.server.asked[path] in sendings
    assert (await engine.fetch("GET", way.url("/ok"), ())).body == BODY


async def test_a_server_that_knows_no_http2_is_an_error_with_prior_knowledge(make_engine: MakeEngine) -> None:
    async def answer_in_http_1(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    plain = await asyncio.start_server(answer_in_http_1, "127.0.0.1", 0)
    async with plain:
        url = f"http://127.0.0.1:{plain.sockets[0].getsockname()[1]}/"
        with pytest.raises(FetchError) as failure:
            await make_engine(http2="prior-knowledge").fetch("GET", url, ())
    assert failure.value.kind in ("reset", "protocol")
