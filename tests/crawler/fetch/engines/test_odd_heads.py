"""Heads as upstreams send them: what both engines make of the same bytes, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.errors import FetchError
from crawler.fetch.engines.protocol import Engine
from crawler.fetch.engines.pyreqwest_engine import PyreqwestEngine
from crawler.model import HttpResponse
from tests.crawler.fetch.conftest import MakeEngine
from tests.servers.fixed import fixed_server
from tests.servers.misbehaving import BODY, Misbehaving

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\n"
FINE = b"Content-Length: 4\r\n\r\nfine"
CHUNKS = b"\r\n4\r\nfine\r\n0\r\n\r\n"


def numbered(count: int) -> bytes:
    return b"".join(b"X-%d: v\r\n" % number for number in range(count))


ACCEPTED: dict[str, tuple[bytes, list[tuple[str, str]]]] = {
    "folded": (OK + b"X-A: one\r\n  two\r\n\tthree\r\n" + FINE, [("x-a", "one two three")]),
    "folded, bare LF": (OK + b"X-A: one\n two\n" + FINE, [("x-a", "one two")]),
    "folded after the colon": (OK + b"X-A:\r\n one\r\n" + FINE, [("x-a", "one")]),
    "folded content type": (
        OK + b"Content-Type: text/html;\r\n charset=utf-8\r\n" + FINE,
        [("content-type", "text/html; charset=utf-8")],
    ),
    "folded cookie": (
        OK + b"Set-Cookie: a=1;\r\n Path=/\r\nSet-Cookie: b=2\r\n" + FINE,
        [("set-cookie", "a=1; Path=/"), ("set-cookie", "b=2")],
    ),
    "folded length": (OK + b"Content-Length:\r\n 4\r\n\r\nfine", []),
    "folded encoding": (OK + b"Transfer-Encoding:\r\n chunked\r\n" + CHUNKS, []),
    "folded before any header": (OK + b" X-A: one\r\nX-B: b\r\n" + FINE, [("x-b", "b")]),
    "fold of a line that is no header": (OK + b"no header\r\n X-A: one\r\n" + FINE, []),
    "control character": (OK + b"X-A: a\x01b\x1b[0m\x7f\r\n" + FINE, [("x-a", "a b [0m")]),
    "NUL": (OK + b"X-A: a\x00b\r\n" + FINE, [("x-a", "a b")]),
    "bare CR": (OK + b"X-A: a\rX-B: b\r\n" + FINE, [("x-a", "a X-B: b")]),
    "vertical tab": (OK + b"X-A: a\x0bb\r\n" + FINE, [("x-a", "a b")]),
    "tab": (OK + b"X-A: a\tb\r\n" + FINE, [("x-a", "a\tb")]),
    "no colon": (OK + b"no colon\r\nX-B: b\r\n" + FINE, [("x-b", "b")]),
    "one word": (OK + b"garbage\r\nX-B: b\r\n" + FINE, [("x-b", "b")]),
    "name with a blank": (OK + b"X A: a\r\nX-B: b\r\n" + FINE, [("x-b", "b")]),
    "blank before the colon": (OK + b"X-A \t: a\r\n" + FINE, [("x-a", "a")]),
    "blank before the colon of the length": (OK + b"Content-Length : 4\r\n\r\nfine", []),
    "blank before the colon of the encoding": (OK + b"Transfer-Encoding : chunked\r\n" + CHUNKS, []),
    "no name": (OK + b": a\r\nX-B: b\r\n" + FINE, [("x-b", "b")]),
    "name that is not ASCII": (OK + b"X-\xc3\xa9: a\r\nX-B: b\r\n" + FINE, [("x-b", "b")]),
    "name with other characters": (OK + b"X(A)@/: a\r\nX-B: b\r\n" + FINE, [("x-b", "b")]),
    "empty value": (OK + b"X-A:\r\nX-B:b\r\n" + FINE, [("x-a", ""), ("x-b", "b")]),
    "value in UTF-8": (OK + b"X-A: caf\xc3\xa9\r\n" + FINE, [("x-a", "caf\u00e9")]),
    "value in latin-1": (OK + b"X-A: caf\xe9\r\n" + FINE, [("x-a", "caf\u00e9")]),
    "bare LF": (b"HTTP/1.1 200 OK\nX-A: a\nContent-Length: 4\n\nfine", [("x-a", "a")]),
    "empty line first": (b"\r\n" + OK + FINE, []),
    "100 headers": (OK + numbered(99) + FINE, [(f"x-{number}", "v") for number in range(99)]),
    "101 headers": (OK + numbered(100) + FINE, [(f"x-{number}", "v") for number in range(100)]),
    "256 headers": (OK + numbered(255) + FINE, [(f"x-{number}", "v") for number in range(255)]),
    "many cookies": (OK + b"Set-Cookie: a=1\r\n" * 200 + FINE, [("set-cookie", "a=1")] * 200),
    "64 KiB in one header": (OK + b"X-A: %b\r\n" % (b"a" * 65536) + FINE, [("x-a", "a" * 65536)]),
    "380 KiB in 256 headers": (
        OK + b"".join(b"X-%d: %b\r\n" % (number, b"a" * 1500) for number in range(255)) + FINE,
        [(f"x-{number}", "a" * 1500) for number in range(255)],
    ),
    "no reason": (b"HTTP/1.1 200\r\n" + FINE, []),
    "reason that is not ASCII": (b"HTTP/1.1 200 d\xe9j\xe0 vu\r\n" + FINE, []),
    "reason with a control character": (b"HTTP/1.1 200 O\x01K\r\n" + FINE, []),
    "reason without a blank": (b"HTTP/1.1 200OK\r\n" + FINE, []),
    "blanks before the status": (b"HTTP/1.1 \t 200 OK\r\n" + FINE, []),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\n\r\nfine", []),
    "HTTP/1.0 and odd": (b"HTTP/1.0 200 OK\r\nno colon\r\n\r\nfine", []),
    "HTTP/2 in the words of HTTP/1": (b"HTTP/2 200 OK\r\n" + FINE, []),
    "HTTP/1.2": (b"HTTP/1.2 200 OK\r\n" + FINE, []),
    "lower case": (b"http/1.1 200 ok\r\n" + FINE, []),
    "the same length twice": (OK + b"Content-Length: 4\r\n" + FINE, []),
    "the same length twice in a header": (OK + b"Content-Length: 4, 4\r\n\r\nfine", []),
    "the same length twice and odd": (OK + b"no colon\r\nContent-Length: 4, 4\r\n\r\nfine", []),
    "length and chunks": (OK + b"Content-Length: 9\r\nTransfer-Encoding: chunked\r\n" + CHUNKS, []),
    "no length": (OK + b"Content-Length:\r\n\r\nfine", []),
    "an encoding that means nothing": (OK + b"Transfer-Encoding: identity\r\n" + FINE, []),
    "an encoding that nobody knows": (OK + b"Transfer-Encoding: xchunked\r\n\r\nfine", []),
    "an empty encoding": (OK + b"Transfer-Encoding:\r\n\r\nfine", []),
    "chunked, said twice": (OK + b"Transfer-Encoding: chunked, Chunked\r\n" + CHUNKS, []),
    "chunked, said in two lines": (OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n" + CHUNKS, []),
    "odd hints before the response": (
        b"HTTP/1.1 103 Early Hints\r\nno colon\r\nX-A: hint\r\n\r\n" + OK + b"garbage\r\nX-A: a\r\n" + FINE,
        [("x-a", "a")],
    ),
}

REFUSED = {
    "257 headers": OK + numbered(256) + FINE,
    "500 KiB in 256 headers": OK + b"".join(b"X-%d: %b\r\n" % (n, b"a" * 2000) for n in range(255)) + FINE,
    "lengths that differ": OK + b"Content-Length: 5\r\n" + FINE,
    "lengths that differ in a header": OK + b"Content-Length: 4, 5\r\n\r\nfine",
    "lengths that differ, and odd": OK + b"no colon\r\nContent-Length: 5\r\n" + FINE,
    "folded length of two numbers": OK + b"Content-Length: 4\r\n 0\r\n\r\nfine",
    "length with a control character": OK + b"Content-Length: 4\x01\r\n\r\nfine",
    "length with a NUL": OK + b"Content-Length: \x004\r\n\r\nfine",
    "length with a CR": OK + b"Content-Length: 4\r0\r\n\r\nfine",
    "length with a sign": OK + b"Content-Length: +4\r\n\r\nfine",
    "encoding with a control character": OK + b"Transfer-Encoding: \x0bchunked\r\n" + CHUNKS,
    "encoding with a NUL": OK + b"Transfer-Encoding: chunked\x00\r\n" + CHUNKS,
    "no status": b"HTTP/1.1 OK\r\n" + FINE,
    "status of two digits": b"HTTP/1.1 99 OK\r\n" + FINE,
    "status of four digits": b"HTTP/1.1 2000 OK\r\n" + FINE,
    "status 0": b"HTTP/1.1 000 OK\r\n" + FINE,
    "another protocol": b"ICY 200 OK\r\n" + FINE,
}


@pytest.fixture
def engine(make_engine: MakeEngine, engine_class: type[Engine]) -> Engine:
    """As a job with a parser has it, which may read any header."""
    parameters: dict[str, Any] = {"all_headers": True} if issubclass(engine_class, PyreqwestEngine) else {}
    return make_engine(**parameters)


async def fetched(engine: Engine, url: str) -> HttpResponse:
    """Fetch, once more if the engine wants it."""
    try:
        return await engine.fetch("GET", url, ())
    except FetchError as error:
        if not error.again:
            raise
    return await engine.fetch("GET", url, ())


@pytest.mark.parametrize("name", ACCEPTED)
async def test_an_odd_head_is_read_as_browsers_read_it(engine: Engine, name: str) -> None:
    sent, headers = ACCEPTED[name]
    async with fixed_server(sent) as port:
        response = await fetched(engine, f"http://127.0.0.1:{port}/")
    framing = ("content-length", "transfer-encoding")
    assert (response.status, response.body) == (200, b"fine")
    assert [(key, value) for key, value in response.headers.items() if key not in framing] == headers
    for key, value in dict(reversed(headers)).items():
        assert response.headers.get(key) == value


@pytest.mark.parametrize("name", REFUSED)
async def test_a_head_in_doubt_is_refused(engine: Engine, name: str) -> None:
    async with fixed_server(REFUSED[name]) as port:
        with pytest.raises(FetchError) as failure:
            await fetched(engine, f"http://127.0.0.1:{port}/")
    assert (failure.value.kind, failure.value.sent, failure.value.again) == ("protocol", True, False)


async def test_every_content_type_is_read_whatever_its_bytes(make_engine: MakeEngine) -> None:
    """Also in a job without a parser, where nobody reads other headers."""
    lines = b"Content-Type: text/plain\r\nContent-Type: text/html; x=\xc3\xa9\r\n"
    async with fixed_server(OK + lines + FINE) as port:
        response = await fetched(make_engine(), f"http://127.0.0.1:{port}/")
    assert response.headers.joined("content-type") == "text/plain, text/html; x=\u00e9"


async def test_a_redirect_whose_location_is_not_ascii_can_be_followed(make_engine: MakeEngine) -> None:
    """Also in a job without a parser, where nobody reads other headers."""
    sent = b"HTTP/1.1 302 Found\r\nLocation: /caf\xc3\xa9\r\nContent-Length: 0\r\n\r\n"
    async with fixed_server(sent) as port:
        response = await fetched(make_engine(), f"http://127.0.0.1:{port}/")
    assert (response.status, response.headers.get("location")) == (302, "/caf\u00e9")


async def test_an_origin_with_odd_heads_costs_one_request_more_and_no_connection_is_used_again(
    engine: Engine, engine_class: type[Engine], server: Misbehaving
) -> None:
    for _ in range(5):
        assert (await fetched(engine, server.url("/odd"))).body == BODY
    sent = 6 if issubclass(engine_class, PyreqwestEngine) else 5
    assert (server.requested["/odd"], len(server.connected_to)) == (sent, sent)
    await server.wait_until(lambda server: server.open == 0)


async def test_a_surplus_response_after_an_odd_head_is_never_read(engine: Engine, server: Misbehaving) -> None:
    for _ in range(3):
        assert (await fetched(engine, server.url("/odd-surplus"))).body == b"fine"
    assert (await engine.fetch("GET", server.url("/sized"), ())).body == BODY


async def test_a_closed_engine_has_no_other_reader(make_engine: MakeEngine, server: Misbehaving) -> None:
    engine = make_engine()
    await fetched(engine, server.url("/odd"))
    await engine.close()
    with pytest.raises(FetchError) as failure:
        await engine.fetch("GET", server.url("/odd"), ())
    assert (failure.value.kind, failure.value.sent) == ("reset", False)
