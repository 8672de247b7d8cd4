"""A hand-written script with httpx and asyncpg in one process: what most articles recommend."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import uvloop

from ops.bench.rivals.sink import Sink


async def crawl(urls: list[str], database: str, concurrency: int) -> None:
    """Fetch every URL once, so many at a time."""
    sink = Sink(database)
    await sink.open()
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    async with httpx.AsyncClient(limits=limits, timeout=30.0) as client:
        left = iter(urls)
        await asyncio.gather(*(fetch(client, left, sink) for _ in range(concurrency)))
    await sink.close()


async def fetch(client: httpx.AsyncClient, left: Iterator[str], sink: Sink) -> None:
    """Fetch one URL after the other; `concurrency` of these run at a time."""
    for url in left:
        response = await client.get(url)
        await sink.put(url, response.status_code, response.text)


def main() -> None:
    """Crawl the file of URLs that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("urls", type=Path)
    parser.add_argument("database")
    # Its pool looks through all connections for each request: the more there are, the slower it is.
    parser.add_argument("--concurrency", type=int, default=64)
    arguments = parser.parse_args()
    uvloop.run(crawl(arguments.urls.read_text().split(), arguments.database, arguments.concurrency))


if __name__ == "__main__":
    main()
