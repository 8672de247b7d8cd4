"""Crawlee's HttpCrawler with a COPY pipeline, one process."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import uvloop
from crawlee import ConcurrencySettings, service_locator
from crawlee.crawlers import HttpCrawler, HttpCrawlingContext
from crawlee.http_clients import ImpitHttpClient
from crawlee.request_loaders import RequestList
from crawlee.storage_clients import MemoryStorageClient

from ops.bench.rivals.sink import Sink

CONCURRENCY = 64


async def crawl(urls: list[str], database: str) -> None:
    """Fetch every URL once, 64 at a time."""
    sink = Sink(database)
    await sink.open()
    service_locator.set_storage_client(MemoryStorageClient())
    crawler = HttpCrawler(
        request_manager=await RequestList(urls).to_tandem(),
        http_client=ImpitHttpClient(),
        # Without a least number it would begin with ten and grow by what it thinks of the machine's load.
        concurrency_settings=ConcurrencySettings(
            min_concurrency=CONCURRENCY, desired_concurrency=CONCURRENCY, max_concurrency=CONCURRENCY
        ),
        use_session_pool=False,
        configure_logging=False,
    )

    @crawler.router.default_handler
    async def store(context: HttpCrawlingContext) -> None:
        body = await context.http_response.read()
        await sink.put(context.request.url, context.http_response.status_code, body.decode())

    await crawler.run()
    await sink.close()


def main() -> None:
    """Crawl the file of URLs that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("urls", type=Path)
    parser.add_argument("database")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    uvloop.run(crawl(arguments.urls.read_text().split(), arguments.database))


if __name__ == "__main__":
    main()
