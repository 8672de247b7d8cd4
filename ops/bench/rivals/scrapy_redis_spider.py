"""scrapy-redis with a COPY pipeline: two processes that share their queue in Redis."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis
from scrapy.crawler import CrawlerProcess
from scrapy.http import Response, TextResponse
from scrapy_redis.spiders import RedisSpider  # type: ignore[import-untyped]

from ops.bench.report import Report
from ops.bench.rivals.scrapy_spider import SETTINGS

PROCESSES = 2
START_URLS = "pages:start_urls"
PUSHED_AT_ONCE = 10_000


class PageBuilder(RedisSpider):  # type: ignore[misc]  # it has no types
    """Fetches each URL that it gets from Redis; an item is the body as received."""

    name = "pages"
    redis_key = START_URLS
    redis_batch_size = 1000  # fetched only when the spider idles: with its default, 16, it would idle all the time

    def parse(self, response: Response, **_: Any) -> Iterator[dict[str, Any]]:
        """See Scrapy."""
        assert isinstance(response, TextResponse)
        yield {"url": response.url, "status": response.status, "body": response.text}


def crawl(server: str, database: str) -> None:
    """Run one of the processes: crawl until Redis has no URL for a second."""
    process = CrawlerProcess(
        {
            **SETTINGS,
            "DATABASE": database,
            "REDIS_URL": server,
            "SCHEDULER": "scrapy_redis.scheduler.Scheduler",
            "DUPEFILTER_CLASS": "scrapy_redis.dupefilter.RFPDupeFilter",
            "SCHEDULER_QUEUE_CLASS": "scrapy_redis.queue.FifoQueue",
            "SCHEDULER_PERSIST": True,  # or the first to end would empty the other's queue
            "MAX_IDLE_TIME_BEFORE_CLOSE": 1,
        }
    )
    process.crawl(PageBuilder)
    process.start()


def push(server: str, urls: list[str]) -> None:
    """Put the URLs into the list that the spiders read."""
    client = redis.Redis.from_url(server)
    lines = [json.dumps({"url": url}) for url in urls]
    for first in range(0, len(lines), PUSHED_AT_ONCE):
        client.rpush(START_URLS, *lines[first : first + PUSHED_AT_ONCE])
    client.close()


def main() -> None:
    """Push the URLs, start the processes, and print one report for all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("urls", type=Path)
    parser.add_argument("database")
    parser.add_argument("--redis", required=True)
    parser.add_argument("--spider", action="store_true", help="be one of the processes")
    arguments = parser.parse_args()
    if arguments.spider:
        crawl(arguments.redis, arguments.database)
        return
    push(arguments.redis, arguments.urls.read_text().split())
    command = [sys.executable, "-m", "ops.bench.rivals.scrapy_redis_spider", *sys.argv[1:], "--spider"]
    spiders = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(PROCESSES)]
    print(Report.merged(Report.read(spider.communicate()[0]) for spider in spiders).line)


if __name__ == "__main__":
    main()
