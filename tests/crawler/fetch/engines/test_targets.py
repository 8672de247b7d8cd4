"""Both engines send what the standard gives: the request line, the Host header, and the name in TLS."""

from __future__ import annotations

from collections.abc import AsyncIterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from crawler.fetch.network.address import Address
from crawler.fetch.network.credentials import Credentials
from crawler.fetch.network.resolve import Resolver
from crawler.fetch.network.tls import Certificates
from tests.coordinator.test_url import TARGETS
from tests.crawler.fetch.conftest import LOOPBACK, MakeEngine
from tests.servers.fixed import fixed_server
from tests.servers.heads import HeadRecorder, head_recorder
from tests.servers.http2 import http2_server, make_certificate, server_context

pytestmark = pytest.mark.anyio


@pytest.fixture
async def recorder() -> AsyncIterator[HeadRecorder]:
    async with head_recorder() as recorder:
        yield recorder


async def loopback(_: str) -> list[Address]:
    return [IPv4Address("127.0.0.1")]


async def test_the_request_line_has_the_target_that_the_standard_gives(
    make_engine: MakeEngine, recorder: HeadRecorder
) -> None:
    engine, origin = make_engine(), f"http://127.0.0.1:{recorder.port}"
    for written, _ in TARGETS:
        await engine.fetch("GET", origin + written, ())
    assert recorder.targets == [path for _, path in TARGETS]
    assert set(recorder.hosts) == {f"127.0.0.1:{recorder.port}"}


async def test_secrets_of_the_template_are_sent_only_with_credentials(
    make_engine: MakeEngine, recorder: HeadRecorder
) -> None:
    engine = make_engine(credentials=Credentials(url_secrets={"KEY": "s3cret%2F"}))
    url = f"http://127.0.0.1:{recorder.port}/$%7BKEY%7D?a=${{KEY}}&b=${{OTHER}}"
    await engine.fetch("GET", url, ())
    await engine.fetch("GET", url, (), with_credentials=False)
    assert recorder.targets == ["/s3cret%2F?a=s3cret%2F&b=${OTHER}", "/$%7BKEY%7D?a=${KEY}&b=${OTHER}"]


async def test_every_spelling_of_a_host_has_one_host_header(make_engine: MakeEngine, recorder: HeadRecorder) -> None:
    engine = make_engine(resolver=Resolver(LOOPBACK, lookup=loopback))
    spellings = {
        "127.1": "127.0.0.1",
        "2130706433": "127.0.0.1",
        "0x7f000001": "127.0.0.1",
        "A.Example": "a.example",
        "a\t.example": "a.example",
        "a.example.": "a.example.",
        "b\u00fccher.example": "xn--bcher-kva.example",
        "a_b.example": "a_b.example",
        "a!$&'()*+,;=~.example": "a!$&'()*+,;=~.example",
    }
    for host in spellings:
        await engine.fetch("GET", f"http://{host}:{recorder.port}\\s", ())
    assert recorder.targets == ["/s"] * len(spellings)
    assert recorder.hosts == [f"{host}:{recorder.port}" for host in spellings.values()]


async def test_a_proxy_gets_the_whole_url_as_the_standard_gives_it(
    make_engine: MakeEngine, recorder: HeadRecorder
) -> None:
    engine = make_engine(credentials=Credentials(proxy=f"http://127.0.0.1:{recorder.port}"))
    await engine.fetch("GET", "http://A.example:80\\x/../b|c%2E?^[%zz]", ())
    assert recorder.targets == ["http://a.example/b|c%2E?^[%zz]"]
    assert recorder.hosts == ["a.example"]


async def test_the_path_of_http_2_is_the_target(make_engine: MakeEngine) -> None:
    async with http2_server(None) as server:
        await make_engine(http2="prior-knowledge").fetch("GET", f"http://127.1:{server.port}\\%2e\\x/../ok", ())
    assert server.heads[0][":path"] == "/ok"
    assert server.heads[0][":authority"] == f"127.0.0.1:{server.port}"


async def test_a_dot_at_the_end_of_a_host_is_no_part_of_its_certificate(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    pem = make_certificate(tmp_path, "localhost")
    response = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine"
    async with fixed_server(response, server_context(pem, alpn="http/1.1")) as port:
        engine = make_engine(resolver=Resolver(LOOPBACK, lookup=loopback), certificates=Certificates(ca=pem))
        assert (await engine.fetch("GET", f"https://LOCALHOST.:{port}/", ())).body == b"fine"
