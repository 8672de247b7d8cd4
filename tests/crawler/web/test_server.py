"""The server of the page: who asks for nothing, or does not read, is sent away; who follows news is not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from coordinator.tasks import cancel_and_wait
from crawler.local.services import Place
from crawler.web import feed, server
from crawler.web.guard import Access
from crawler.web.runs_view import RunsView
from crawler.web.server import serve_page
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

WHOLE = b"GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
PART = b"GET / HTTP/1.1\r\nHost: 127"


async def test_a_connection_without_a_request_is_closed(
    redis_url: str, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "IDLE_SECONDS", 0.5)
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    place = Place(redis_url, database, Path())
    serving = asyncio.create_task(serve_page(place, "127.0.0.1:0", Access(), ready.set_result))
    port = int((await ready).rstrip("/").rpartition(":")[2])

    async def opened(sent: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        return reader, writer

    news, following = await opened(WHOLE % b"/api/news")
    async with asyncio.timeout(20):
        for sent in (b"", PART, WHOLE % b"/healthz" + PART):
            reader, writer = await opened(sent)
            assert (b"200 OK" in await reader.read()) == sent.startswith(WHOLE % b"/healthz")
            writer.close()
    assert not news.at_eof()
    following.close()
    await cancel_and_wait([serving])


async def test_a_client_that_does_not_read_loses_its_place(
    redis_url: str, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def much_news(_: RunsView, topic: str) -> str:
        return 10_000_000 * "x"

    monkeypatch.setattr(server, "UNREAD_SECONDS", 0.1)
    monkeypatch.setattr(feed, "MAX_PAGES", 1)
    monkeypatch.setattr(RunsView, "news", much_news)
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(
        serve_page(Place(redis_url, database, Path()), "127.0.0.1:0", Access(), ready.set_result)
    )
    page = await ready
    reader, writer = await asyncio.open_connection("127.0.0.1", int(page.rstrip("/").rpartition(":")[2]), limit=100)
    writer.write(WHOLE % b"/api/news")
    await reader.readuntil(b" 200 OK")  # and no more

    async def has_a_place() -> bool:
        async with httpx.AsyncClient(base_url=page) as client, client.stream("GET", "/api/news") as news:
            return news.status_code == 200

    await eventually(has_a_place, "the place of the one that does not read")
    writer.close()
    await cancel_and_wait([serving])
