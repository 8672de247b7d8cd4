"""What every engine does with good and bad servers; the kind of each failure is part of the engine protocol."""

from __future__ import annotations

import asyncio
import gzip
import resource
import socket
from collections.abc import Iterator

import pytest

from coordinator.errors import FetchError
from crawler.fetch.engines.protocol import Caps
from crawler.fetch.network.address import Guard
from crawler.fetch.network.credentials import Credentials
from crawler.fetch.network.resolve import Resolver
from tests.crawler.fetch.conftest import LOOPBACK, PATIENT, MakeEngine, Names
from tests.servers.fixed import fixed_server
from tests.servers.misbehaving import BODY, Misbehaving

pytestmark = pytest.mark.anyio

HASTY = Caps(connect=0.4, read=0.6, total=1.0, body=400_000)


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that refuses connections, bound so that nobody else can listen on it."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture
def stuck_port() -> Iterator[int]:
    """A port whose queue of connections is full, so that further ones wait."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        queue = [socket.socket() for _ in range(3)]
        for waiting in queue:
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]
        for waiting in queue:
            waiting.close()


@pytest.mark.parametrize("http2", [False, True])
@pytest.mark.parametrize(
    "path",
    ["/sized", "/chunked", "/until-close", "/two-packets", "/cookie", "/latin", "/gzip-twice", "/gzip-in-two-headers"]
    + ["/gzip", "/x-gzip", "/gzip-members", "/gzip-padded", "/deflate", "/deflate-raw", "/br", "/zstd", "/zstd-frames"],
)
async def test_a_body_arrives_whole_and_decoded(
    make_engine: MakeEngine, server: Misbehaving, path: str, http2: bool
) -> None:
    response = await make_engine(http2=http2).fetch("GET", server.url(path), ())
    assert (response.status, response.body) == (200, BODY)


@pytest.mark.parametrize(
    ("path", "body", "coding"),
    [
        ("/utf-8", BODY, None),
        ("/compress", BODY, "compress"),
        ("/compress-gzip", BODY, "compress"),
        ("/gzip-compress", gzip.compress(BODY, mtime=0), "compress"),
        ("/large-compress", bytes(300_000), "compress"),
    ],
)
async def test_a_coding_that_cannot_be_undone_is_named_and_left(
    make_engine: MakeEngine, server: Misbehaving, path: str, body: bytes, coding: str | None
) -> None:
    response = await make_engine().fetch("GET", server.url(path), ())
    assert (response.status, response.body, response.coding) == (200, body, coding)


async def test_a_body_of_many_reads_arrives_whole(make_engine: MakeEngine, server: Misbehaving) -> None:
    response = await make_engine().fetch("GET", server.url("/large"), ())
    assert response.body == bytes(300_000)


@pytest.mark.parametrize("path", ["/204", "/304", "/304-gzip", "/plenty-204", "/plenty-304"])
async def test_a_response_without_a_body_is_empty_whatever_its_headers_say(
    make_engine: MakeEngine, server: Misbehaving, path: str
) -> None:
    response = await make_engine().fetch("GET", server.url(path), ())
    assert (response.status, response.body) == (int(path[-3:]) if path[-3:].isdigit() else 304, b"")


@pytest.mark.parametrize("path", ["/sized", "/gzip", "/gzip-twice", "/bomb", "/plenty", "/large", "/short"])
async def test_head_brings_no_body(make_engine: MakeEngine, server: Misbehaving, path: str) -> None:
    response = await make_engine(Caps(body=1000)).fetch("HEAD", server.url(path), ())
    assert (response.status, response.body) == (200, b"")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/short", "reset"),
        ("/plenty", "reset"),
        ("/chunked-cut", "reset"),
        ("/closed", "reset"),
        ("/reset", "reset"),
        ("/malformed", "protocol"),
        ("/headers", "protocol"),
        ("/huge-header", "protocol"),
        ("/length-twice", "protocol"),
        ("/length-negative", "protocol"),
        ("/length-not", "protocol"),
        ("/chunk-malformed", "protocol"),
        ("/gzip-cut", "decode"),
        ("/gzip-members-cut", "decode"),
        ("/deflate-cut", "decode"),
        ("/br-cut", "decode"),
        ("/zstd-cut", "decode"),
        ("/br-not", "decode"),
        ("/zstd-not", "decode"),
        ("/empty-members", "too-large"),
        ("/gzip-not", "decode"),
        ("/endless", "too-large"),
        ("/silent", "timeout"),
        ("/drip", "timeout"),
        ("/drip-headers", "timeout"),
        ("/informed", "timeout"),
    ],
)
async def test_a_bad_response_fails_with_its_kind_and_counts_as_sent(
    make_engine: MakeEngine, server: Misbehaving, path: str, kind: str
) -> None:
    engine = make_engine(HASTY if kind == "timeout" else PATIENT)
    with pytest.raises(FetchError) as failure:
        await engine.fetch("GET", server.url(path), ())
    assert (failure.value.kind, failure.value.sent) == (kind, True)
    assert "\n" not in str(failure.value)
    assert str(server.port) not in str(failure.value)


@pytest.mark.parametrize(("path", "cap"), [("/sized", 1399), ("/gzip", 1399), ("/large", 299_999), ("/large", 5)])
async def test_a_body_over_the_cap_is_too_large(
    make_engine: MakeEngine, server: Misbehaving, path: str, cap: int
) -> None:
    engine = make_engine(Caps(body=cap))
    with pytest.raises(FetchError) as failure:
        await engine.fetch("GET", server.url(path), ())
    assert failure.value.kind == "too-large"


async def test_the_connection_of_an_endless_body_is_closed(make_engine: MakeEngine, server: Misbehaving) -> None:
    with pytest.raises(FetchError):
        await make_engine().fetch("GET", server.url("/endless"), ())
    await server.wait_until(lambda server: server.open == 0)


@pytest.mark.parametrize(("path", "cap"), [("/sized", 1400), ("/gzip", 1400), ("/large", 300_000)])
async def test_a_body_of_exactly_the_cap_is_taken(
    make_engine: MakeEngine, server: Misbehaving, path: str, cap: int
) -> None:
    response = await make_engine(Caps(body=cap)).fetch("GET", server.url(path), ())
    assert len(response.body) == cap


@pytest.mark.parametrize("path", ["/bomb", "/bomb-br", "/bomb-zstd"])
async def test_a_bomb_of_a_gigabyte_is_refused_in_bounded_memory(
    make_engine: MakeEngine, server: Misbehaving, path: str
) -> None:
    engine = make_engine(Caps(body=16 * 1024 * 1024))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FetchError) as failure:
        await engine.fetch("GET", server.url(path), ())
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert failure.value.kind == "too-large"
    assert grown_kib < 100 * 1024


async def test_a_header_of_50_megabytes_is_not_read_to_its_end(make_engine: MakeEngine, server: Misbehaving) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FetchError):
        await make_engine().fetch("GET", server.url("/huge-header"), ())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 * 1024
    await server.wait_until(lambda server: server.open == 0)


async def test_a_request_that_was_not_sent_fails_with_sent_false(
    make_engine: MakeEngine, server: Misbehaving, closed_port: int, stuck_port: int
) -> None:
    engine = make_engine(HASTY)
    plain_as_tls = server.url("/", scheme="https")
    for url, kind in [
        (f"http://127.0.0.1:{closed_port}/", "connect"),
        (f"http://127.0.0.1:{stuck_port}/", "timeout"),
        (f"https://127.0.0.1:{stuck_port}/", "timeout"),
        (plain_as_tls, "timeout"),
        ("http://unresolvable.invalid/", "dns"),
    ]:
        with pytest.raises(FetchError) as failure:
            await engine.fetch("GET", url, ())
        assert (url, failure.value.kind, failure.value.sent) == (url, kind, False)


async def test_a_server_that_speaks_no_tls_fails_as_tls(make_engine: MakeEngine) -> None:
    async with fixed_server(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        with pytest.raises(FetchError) as failure:
            await make_engine().fetch("GET", f"https://127.0.0.1:{port}/", ())
    assert (failure.value.kind, failure.value.sent) == ("tls", False)


async def test_an_idempotent_request_survives_the_closing_of_a_kept_connection(
    make_engine: MakeEngine, server: Misbehaving
) -> None:
    engine = make_engine()
    for _ in range(3):
        response = await engine.fetch("GET", server.url("/closed-when-reused"), ())
        assert response.body == BODY
    assert len(server.connected_to) == 3
    assert server.requested["/closed-when-reused"] == 5


async def test_a_post_is_never_sent_again(make_engine: MakeEngine, server: Misbehaving) -> None:
    engine = make_engine()
    await engine.fetch("POST", server.url("/closed-when-reused"), ())
    with pytest.raises(FetchError) as failure:
        await engine.fetch("POST", server.url("/closed-when-reused"), ())
    assert (failure.value.kind, failure.value.sent) == ("reset", True)
    assert server.requested["/closed-when-reused"] == 2


@pytest.mark.parametrize(("method", "times"), [("GET", 2), ("HEAD", 2), ("POST", 1)])
async def test_a_request_is_sent_at_most_once_more_to_a_server_that_always_closes(
    make_engine: MakeEngine, server: Misbehaving, method: str, times: int
) -> None:
    with pytest.raises(FetchError):
        await make_engine().fetch(method, server.url("/closed"), ())
    assert server.requested["/closed"] == times


async def test_both_sendings_end_within_the_total_timeout(make_engine: MakeEngine, server: Misbehaving) -> None:
    with pytest.raises(FetchError) as failure:
        await make_engine(Caps(connect=0.5, read=5.0, total=1.0)).fetch("GET", server.url("/closed-late"), ())
    assert failure.value.kind == "timeout"
    assert server.requested["/closed-late"] == 2


async def test_a_redirect_is_returned_and_not_followed(make_engine: MakeEngine, server: Misbehaving) -> None:
    response = await make_engine().fetch("GET", server.url("/redirect"), ())
    assert (response.status, response.headers.get("location")) == (302, "/sized")
    assert server.requested["/sized"] == 0


async def test_headers_are_found_in_any_case_and_listed_in_order(make_engine: MakeEngine, server: Misbehaving) -> None:
    headers = (await make_engine().fetch("GET", server.url("/sized"), ())).headers
    assert headers.get("CONTENT-type") == "application/json"
    assert headers.get("x-twice") == "one"
    assert headers.get("x-missing") is None
    assert headers.has(("x-missing", "x-twice"))
    assert not headers.has(("x-missing", "x-none"))
    assert headers.items() == [
        ("content-length", "1400"),
        ("content-type", "application/json"),
        ("x-twice", "one"),
        ("x-twice", "two"),
    ]


async def test_a_header_byte_that_is_not_ascii_spoils_no_other_header(
    make_engine: MakeEngine, server: Misbehaving
) -> None:
    headers = (await make_engine().fetch("GET", server.url("/latin"), ())).headers
    assert headers.get("location") in (None, "/caf\xe9")
    assert headers.get("x-plain") == "yes"
    assert ("x-plain", "yes") in headers.items()


async def test_requests_carry_the_headers_of_engine_and_request_and_no_cookies(
    make_engine: MakeEngine, server: Misbehaving
) -> None:
    engine = make_engine(user_agent="tests/1", credentials=Credentials((("X-Engine", "yes"), ("X-Both", "engine"))))
    await engine.fetch("GET", server.url("/cookie"), (("X-Both", "request"),))
    await engine.fetch("GET", server.url("/cookie"), (("User-Agent", "other"),))
    first, second = (set(head.decode().lower().split("\r\n")) for head in server.heads)
    assert {"user-agent: tests/1", "x-engine: yes", "x-both: request"} <= first
    assert {"user-agent: other", "x-engine: yes", "x-both: engine"} <= second
    assert not first & {"x-both: engine"}
    assert not [line for line in second if line.startswith(("cookie:", "referer:"))]


async def test_credentials_are_sent_only_when_the_caller_says_so(make_engine: MakeEngine, server: Misbehaving) -> None:
    engine = make_engine(
        credentials=Credentials((("X-Open", "yes"),), (("Authorization", "Bearer s3cret"), ("Cookie", "a=1")))
    )
    await engine.fetch("GET", server.url("/sized"), ())
    await engine.fetch("GET", server.url("/sized"), (("authorization", "Bearer other"), ("X-Own", "yes")))
    await engine.fetch("GET", server.url("/sized"), (("X-Own", "yes"),), with_credentials=False)
    with_them, with_own, without = (head.decode().lower().split("\r\n") for head in server.heads)
    assert {"authorization: bearer s3cret", "cookie: a=1", "x-open: yes"} <= set(with_them)
    assert [line for line in with_own if line.startswith("authorization:")] == ["authorization: bearer other"]
    assert {"cookie: a=1", "x-own: yes"} <= set(with_own)
    assert {"x-open: yes", "x-own: yes"} <= set(without)
    assert not [line for line in without if line.startswith(("authorization:", "cookie:")) or "s3cret" in line]


async def test_a_header_that_cannot_be_sent_is_not_quoted(make_engine: MakeEngine, server: Misbehaving) -> None:
    with pytest.raises(FetchError) as failure:
        await make_engine().fetch("GET", server.url("/sized"), (("Authorization", "se\x00cret"),))
    assert (failure.value.kind, failure.value.sent) == ("protocol", False)
    assert "cret" not in str(failure.value)


async def test_proxies_in_the_environment_are_not_used(
    make_engine: MakeEngine, server: Misbehaving, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(variable, f"http://127.0.0.1:{closed_port}")
    assert (await make_engine().fetch("GET", server.url("/sized"), ())).body == BODY


async def test_a_connection_serves_many_requests(make_engine: MakeEngine, server: Misbehaving) -> None:
    engine = make_engine()
    for path in ["/sized", "/gzip", "/204", "/large", "/redirect", "/sized"]:
        await engine.fetch("GET", server.url(path), ())
    assert len(server.connected_to) <= 2  # once the next request may come before the connection is back in its pool


async def test_a_response_without_a_request_is_never_taken_for_the_next_response(
    make_engine: MakeEngine, server: Misbehaving
) -> None:
    engine = make_engine()
    for _ in range(3):
        assert (await engine.fetch("GET", server.url("/surplus"), ())).body == b"fine"
    for surplus in (1, 2):
        assert (await engine.fetch("GET", server.url("/surplus-after-a-pause"), ())).body == b"fine"
        await server.wait_until(lambda server: server.surplus == surplus)  # noqa: B023 - called at once
    assert (await engine.fetch("GET", server.url("/sized"), ())).body == BODY


async def test_hosts_are_resolved_once_by_our_resolver_and_keep_their_names(
    make_engine: MakeEngine, server: Misbehaving, names: Names
) -> None:
    names.addresses = {f"host{n}.test": ["127.0.0.1"] for n in range(9)} | {"host7.test.": ["127.0.0.1"]}
    resolver = Resolver(LOOPBACK)
    engine = make_engine(resolver=resolver)
    urls = [server.url("/sized", host) for host in names.addresses]
    responses = await asyncio.gather(*(engine.fetch("GET", url, ()) for url in urls * 3))
    assert [response.body for response in responses] == [BODY] * 30
    assert sorted(names.requested) == sorted(names.addresses)
    assert resolver.lookups == 10
    assert sum(b"host5.test" in head for head in server.heads) == 3


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "[::1]", "0x7f.1", "2130706433", "017700000001", "localhost", "[::ffff:127.0.0.1]"]
    + ["[::ffff:7f00:1]", "[::]", "0", "0.0.0.0", "127.1", "[64:ff9b::127.0.0.1]"],
)
async def test_a_refused_address_is_never_connected_to(make_engine: MakeEngine, server: Misbehaving, host: str) -> None:
    engine = make_engine(resolver=Resolver())
    with pytest.raises(FetchError) as failure:
        await engine.fetch("GET", server.url("/sized", host), ())
    assert (failure.value.kind, failure.value.sent) == ("address", False)
    assert server.connected_to == []


async def test_a_name_that_moves_to_a_private_address_is_not_followed_there(
    make_engine: MakeEngine, server: Misbehaving, names: Names
) -> None:
    """The engine connects to the address that the guard allowed, whatever the name service says later."""
    now = 0.0
    engine = make_engine(resolver=Resolver(Guard(["127.0.0.1"]), ttl=300, clock=lambda: now))
    names.addresses = {"rebound.test": ["127.0.0.1"]}
    await engine.fetch("GET", server.url("/until-close", "rebound.test"), ())
    names.addresses = {"rebound.test": ["127.0.0.2"]}
    await engine.fetch("GET", server.url("/until-close", "rebound.test"), ())
    now = 300.0
    with pytest.raises(FetchError, match="rebound.test is at 127.0.0.2, which is not public") as failure:
        await engine.fetch("GET", server.url("/until-close", "rebound.test"), ())
    assert (failure.value.kind, failure.value.sent) == ("address", False)
    assert server.connected_to == ["127.0.0.1"] * 2


async def test_connections_of_cancelled_fetches_close(make_engine: MakeEngine, server: Misbehaving) -> None:
    engine = make_engine(HASTY)
    fetches = [asyncio.create_task(engine.fetch("GET", server.url(path), ())) for path in ["/drip"] * 10]
    await server.wait_until(lambda server: server.requested.total() == 10)
    for fetch in fetches:
        fetch.cancel()
    ends = await asyncio.gather(*fetches, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ends)
    await server.wait_until(lambda server: server.open == 0)


async def test_a_cancelled_fetch_leaves_the_engine_usable(make_engine: MakeEngine, server: Misbehaving) -> None:
    engine = make_engine()
    fetch = asyncio.create_task(engine.fetch("GET", server.url("/silent"), ()))
    await server.wait_until(lambda server: server.requested["/silent"] == 1)
    fetch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetch
    assert (await engine.fetch("GET", server.url("/sized"), ())).body == BODY


async def test_closing_the_engine_closes_its_connections(make_engine: MakeEngine, server: Misbehaving) -> None:
    engine = make_engine()
    response = await engine.fetch("GET", server.url("/sized"), ())
    await engine.close()
    await server.wait_until(lambda server: server.open == 0)
    assert response.headers.get("x-twice") == "one"
    with pytest.raises(FetchError) as failure:
        await engine.fetch("GET", server.url("/sized"), ())
    assert (failure.value.kind, failure.value.sent) == ("reset", False)


async def test_closing_the_engine_ends_requests_in_flight(make_engine: MakeEngine, server: Misbehaving) -> None:
    engine = make_engine()
    fetch = asyncio.create_task(engine.fetch("GET", server.url("/silent"), ()))
    await server.wait_until(lambda server: server.requested["/silent"] == 1)
    await engine.close()
    with pytest.raises(FetchError) as failure:
        await fetch
    assert (failure.value.kind, failure.value.sent) == ("reset", True)
    assert server.requested["/silent"] == 1
