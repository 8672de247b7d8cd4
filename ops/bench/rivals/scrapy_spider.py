"""Scrapy with a COPY pipeline, one process."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Self

import scrapy
from scrapy.crawler import Crawler, CrawlerProcess
from scrapy.http import Response, TextResponse

from ops.bench.rivals.sink import Sink

SETTINGS: dict[str, Any] = {
    "ITEM_PIPELINES": {"ops.bench.rivals.scrapy_spider.CopyPipeline": 300},
    "CONCURRENT_REQUESTS": 32,
    "CONCURRENT_REQUESTS_PER_DOMAIN": 32,
    "ASYNCIO_EVENT_LOOP": "uvloop.Loop",
    # What the job does not need is off: each of these costs time for every request.
    "COOKIES_ENABLED": False,
    "REDIRECT_ENABLED": False,
    "METAREFRESH_ENABLED": False,
    "REFERER_ENABLED": False,
    "HTTPPROXY_ENABLED": False,
    "TELNETCONSOLE_ENABLED": False,
    "LOG_LEVEL": "ERROR",
}


class CopyPipeline:
    """Writes items into Postgres."""

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> Self:
        """See Scrapy."""
        pipeline = cls()
        pipeline.sink = Sink(crawler.settings["DATABASE"])
        return pipeline

    sink: Sink

    async def open_spider(self) -> None:
        """See Scrapy."""
        await self.sink.open()

    async def process_item(self, item: dict[str, Any]) -> dict[str, Any]:
        """See Scrapy."""
        await self.sink.put(item["url"], item["status"], item["body"])
        return item

    async def close_spider(self) -> None:
        """See Scrapy."""
        await self.sink.close()


class PageBuilder(scrapy.Spider):
    """Fetches each URL of a file; an item is the body as received."""

    name = "pages"
    urls: Path

    async def start(self) -> AsyncIterator[Any]:
        """See Scrapy."""
        with self.urls.open() as lines:
            for line in lines:
                yield scrapy.Request(line.strip())

    def parse(self, response: Response, **_: Any) -> Iterator[dict[str, Any]]:
        """See Scrapy."""
        assert isinstance(response, TextResponse)
        yield {"url": response.url, "status": response.status, "body": response.text}


def crawl(spider: type[PageBuilder], description: str | None) -> None:
    """Let a spider crawl the file of URLs that the command line names."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("urls", type=Path)
    parser.add_argument("database")
    arguments = parser.parse_args()
    process = CrawlerProcess({**SETTINGS, "DATABASE": arguments.database})
    process.crawl(spider, urls=arguments.urls)
    process.start()


if __name__ == "__main__":
    crawl(PageBuilder, __doc__)
