"""Both engines take the memory of large bodies while these grow, and say how to give it back."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from coordinator.errors import FetchError
from crawler.fetch.engines.protocol import Caps
from crawler.fetch.faults import THROTTLED
from crawler.fetch.memory import SMALL_BODY_BYTES, BodyMemory, HeldBody
from crawler.model import HttpResponse
from tests.crawler.fetch.conftest import MakeEngine
from tests.servers.fixed import fixed_server

pytestmark = pytest.mark.anyio

SIZE = 4 * SMALL_BODY_BYTES
BODY = b"a" * SIZE
CAPS = Caps(connect=5.0, read=8.0, total=10.0, body=SIZE)
PACKED = gzip.compress(BODY)
RESPONSES = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (SIZE, BODY),
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (SIZE, BODY),
    "gzip": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b" % (len(PACKED), PACKED),
}


@asynccontextmanager
async def serving(kind: str) -> AsyncIterator[str]:
    async with fixed_server(RESPONSES[kind]) as port:
        yield f"http://127.0.0.1:{port}/"


@pytest.mark.parametrize("kind", RESPONSES)
async def test_no_more_bodies_are_held_than_there_is_memory_for(make_engine: MakeEngine, kind: str) -> None:
    """There is memory for three bodies, one of which is kept for the first that needs it."""
    memory, alive, most = BodyMemory(3 * SIZE, SIZE), 0, 0
    engine = make_engine(CAPS, memory=memory)

    async def fetch(url: str) -> None:
        nonlocal alive, most
        response: HttpResponse = await engine.fetch("GET", url, ())
        assert response.body == BODY
        assert response.release is not None
        alive += 1
        most = max(most, alive)
        await asyncio.sleep(0.01)  # it is used
        alive -= 1
        response.release()

    async with serving(kind) as url:
        await asyncio.gather(*(fetch(url) for _ in range(16)))
    assert 1 <= most <= 3
    assert memory.has(2 * SIZE)


async def test_a_small_body_takes_none(make_engine: MakeEngine) -> None:
    memory = BodyMemory(SIZE, SIZE)
    engine = make_engine(CAPS, memory=memory)
    await HeldBody(memory).hold(SIZE)  # and is dropped
    for sent in (b"{}", gzip.compress(b"{}")):
        coding = b"Content-Encoding: gzip\r\n" if sent != b"{}" else b""
        async with fixed_server(
            b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n%b" % (coding, len(sent), sent)
        ) as port:
            response = await engine.fetch("GET", f"http://127.0.0.1:{port}/", ())
        assert (response.body, response.release) == (b"{}", None)


@pytest.mark.parametrize("cut", ["length", "chunked", "gzip"])
async def test_a_body_that_is_cut_off_gives_its_memory_back(make_engine: MakeEngine, cut: str) -> None:
    memory = BodyMemory(3 * SIZE, SIZE)
    engine = make_engine(CAPS, memory=memory)
    async with fixed_server(RESPONSES[cut][:-20]) as port:
        with pytest.raises(FetchError):
            await engine.fetch("GET", f"http://127.0.0.1:{port}/", ())
    assert memory.has(2 * SIZE)


async def test_an_attempt_that_waited_for_memory_until_its_time_was_over_is_not_the_upstreams_fault(
    make_engine: MakeEngine,
) -> None:
    size = 64 * SIZE  # more than the buffers of a connection take
    memory = BodyMemory(size, size)
    engine = make_engine(Caps(connect=1.0, read=1.0, total=1.0, body=size), memory=memory)
    other = HeldBody(memory)
    await other.hold(size)

    async def release() -> None:
        await asyncio.sleep(1.5)
        other.release()

    async with fixed_server(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (size, bytes(size))) as port:
        releasing = asyncio.create_task(release())
        with pytest.raises(FetchError) as caught:
            await engine.fetch("GET", f"http://127.0.0.1:{port}/", ())
        await releasing
    assert caught.value.kind == THROTTLED
    assert "raise [run] memory" in str(caught.value)
