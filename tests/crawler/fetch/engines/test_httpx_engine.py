"""What only the httpx engine has: another transport in the place of the network."""

from __future__ import annotations

import gzip
import zlib

import httpx
import pytest

from coordinator.errors import FetchError
from coordinator.url import parse
from crawler.fetch.engines.httpx_engine import HttpxEngine
from crawler.fetch.engines.protocol import Caps
from crawler.fetch.network.resolve import Resolver
from crawler.model import HttpResponse
from tests.servers.encoded_bodies import raw_deflate
from tests.servers.misbehaving import BODY

pytestmark = pytest.mark.anyio


async def fetched(body: bytes, encoding: str, cap: int = 10_000) -> HttpResponse:
    """Fetch a response whose encoded body comes in pieces of 7 bytes."""

    class Pieces(httpx.AsyncByteStream):
        async def __aiter__(self):  # type: ignore[no-untyped-def]
            for start in range(0, len(body), 7):
                yield body[start : start + 7]

    def response(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"Content-Encoding": encoding}, stream=Pieces())

    engine = HttpxEngine(Caps(body=cap), concurrency=1, resolver=Resolver(), transport=httpx.MockTransport(response))
    try:
        return await engine.fetch("GET", parse("http://somewhere.test/"), ())
    finally:
        await engine.close()


@pytest.mark.parametrize(
    ("encoded", "encoding"),
    [
        (BODY, "identity"),
        (gzip.compress(BODY), "gzip"),
        (gzip.compress(BODY), "x-gzip"),
        (gzip.compress(BODY), "GZIP"),
        (gzip.compress(BODY[:500]) + gzip.compress(BODY[500:]), "gzip"),
        (gzip.compress(BODY) + bytes(100), "gzip"),
        (zlib.compress(BODY), "deflate"),
        (raw_deflate(BODY), "deflate"),
    ],
)
async def test_every_encoding_that_is_requested_is_decoded(encoded: bytes, encoding: str) -> None:
    assert (await fetched(encoded, encoding)).body == BODY


@pytest.mark.parametrize(
    ("encoded", "encoding"),
    [(gzip.compress(BODY)[:-1], "gzip"), (b"neither", "gzip"), (b"neither", "deflate"), (b"anything", "br")],
)
async def test_a_body_that_cannot_be_decoded_fails(encoded: bytes, encoding: str) -> None:
    with pytest.raises(FetchError) as failure:
        await fetched(encoded, encoding)
    assert failure.value.kind == "decode"


async def test_members_of_a_gzip_body_count_together_against_the_cap() -> None:
    with pytest.raises(FetchError) as failure:
        await fetched(gzip.compress(bytes(600)) * 2, "gzip", cap=1000)
    assert failure.value.kind == "too-large"
