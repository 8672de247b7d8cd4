"""News for open pages: one read for all, and none for nobody."""

from __future__ import annotations

import asyncio

import pytest

from coordinator.errors import Unavailable
from crawler.web import feed
from crawler.web.feed import Feed, as_json
from tests.waiting import eventually

pytestmark = pytest.mark.anyio


class Reads:
    def __init__(self) -> None:
        self.topics: list[str] = []

    async def __call__(self, topic: str) -> int:
        self.topics.append(topic)
        if topic == "away":
            raise Unavailable("Redis is away")
        return len(self.topics)


async def test_all_pages_of_a_topic_share_one_read() -> None:
    reads = Reads()
    news = Feed(reads, seconds=3600.0)
    pages = [news.follow("run") for _ in range(10)]
    events = [await anext(page) for page in pages]
    assert set(events) == {b"event: news\ndata: 1\n\n"}
    assert reads.topics == ["run"]
    await anext(news.follow("other"))
    assert reads.topics == ["run", "other"]
    news.close()


async def test_nothing_is_read_when_nobody_looks() -> None:
    reads = Reads()
    news = Feed(reads, seconds=0.0)
    pages = [news.follow("run"), news.follow("run")]
    for page in pages:
        await anext(page)
    await eventually(lambda: len(reads.topics) > 5, "it reads while somebody looks")
    for page in pages:
        await page.aclose()
    before = len(reads.topics)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(reads.topics) == before
    assert (await anext(news.follow("run"))).startswith(b"event: news")
    news.close()


async def test_a_slow_page_gets_the_newest_only() -> None:
    reads = Reads()
    news = Feed(reads, seconds=0.0)
    page = news.follow("run")
    await anext(page)
    await eventually(lambda: len(reads.topics) > 20, "it reads on")
    assert int((await anext(page)).split()[-1]) >= 20
    news.close()


async def test_pages_learn_what_is_wrong_and_that_they_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "MAX_PAGES", 1)
    news = Feed(Reads(), seconds=3600.0)
    news.admit()
    page = news.follow("away")
    assert await anext(page) == b'event: trouble\ndata: {"error":"Redis is away"}\n\n'
    with pytest.raises(Unavailable, match="1 pages are open"):
        news.admit()
    await page.aclose()
    news.admit()


async def test_pages_learn_of_a_read_that_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "SILENT_READ_SECONDS", 0.01)
    goes_on = asyncio.Event()

    async def read(topic: str) -> int:
        await goes_on.wait()
        return 7

    news = Feed(read, seconds=3600.0)
    page = news.follow("run")
    assert (await anext(page)).startswith(b"event: trouble\ndata: ")
    goes_on.set()
    assert await anext(page) == b"event: news\ndata: 7\n\n"
    news.close()


async def test_a_fault_of_ours_is_logged_and_the_next_page_begins_anew(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []

    async def read(topic: str) -> int:
        calls.append(topic)
        if len(calls) == 1:
            raise KeyError(topic)
        return 7

    news = Feed(read, seconds=3600.0)
    first = asyncio.create_task(anext(news.follow("run")))
    await eventually(lambda: "no news of 'run'" in caplog.text, "the fault in the log")
    assert b"7" in await anext(news.follow("run"))
    assert b"7" in await first
    news.close()


def test_json_has_bytes_as_digits_and_records_as_objects() -> None:
    assert as_json({"one": b"\x0a\xff", "two": (1, None)}) == b'{"one":"0aff","two":[1,null]}'
