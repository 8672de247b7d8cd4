"""Fetch, parse, transform and write, in the three ways that articles show, with the same client, functions and COPY.

`loop`: one record after the other. `pool`: the same in the processes of a `multiprocessing.Pool`, whose parent writes.
`queue`: coroutines fetch into a bounded queue, processes take batches from it, a writer commits what they return.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import Pool
from pathlib import Path
from typing import Any, TypeAlias

import uvloop
from pyreqwest.client import Client, ClientBuilder, SyncClient, SyncClientBuilder

from ops.bench.rivals.sink import Sink
from ops.bench.step import parsed, scored

Record: TypeAlias = dict[str, Any]

CONCURRENCY = 32
QUEUED = 1000
BATCH = 32


class Things(Sink):
    """Rows of the table `things`."""

    table = "things"
    columns = ("name", "text", "score", "at")
    create = 'CREATE TABLE things (name text PRIMARY KEY, text text, score bigint, "at" double precision)'

    async def store(self, records: list[Record]) -> None:
        """Add these records."""
        for record in records:
            await self.add(tuple(record[name] for name in self.columns))


async def loop(urls: list[str], things: Things, _: int) -> None:
    """One process, one record at a time."""
    async with ClientBuilder().no_proxy().build() as client:
        for url in urls:
            await things.store(scored([await fetched(client, url)]))


async def pool(urls: list[str], things: Things, processes: int) -> None:
    """All but the writing in processes, each with one record at a time."""
    with Pool(processes) as workers:
        for records in workers.imap_unordered(fetched_and_scored, urls, chunksize=8):
            await things.store(records)


async def queue(urls: list[str], things: Things, processes: int) -> None:
    """Queued stages: each has as many at work as it needs."""
    left, waiting = iter(urls), asyncio.Queue[Record](QUEUED)
    with ProcessPoolExecutor(processes) as workers:
        workers.submit(scored, []).result()  # forks them, before the client has threads
        async with ClientBuilder().no_proxy().build() as client, asyncio.TaskGroup() as group:
            # Twice as many batches as processes, so that none of them waits for its next one.
            steps = [group.create_task(work(waiting, workers, things)) for _ in range(2 * processes)]
            await asyncio.gather(*(fetch(client, left, waiting) for _ in range(CONCURRENCY)))
            await waiting.join()
            for step in steps:
                step.cancel()


async def fetch(client: Client, left: Iterator[str], waiting: asyncio.Queue[Record]) -> None:
    """Fetch one URL after the other; 32 of these run at a time."""
    for url in left:
        await waiting.put(await fetched(client, url))


async def work(waiting: asyncio.Queue[Record], workers: ProcessPoolExecutor, things: Things) -> None:
    """Let a process score one batch after the other."""
    while True:
        batch = [await waiting.get()]
        while len(batch) < BATCH and not waiting.empty():
            batch.append(waiting.get_nowait())
        await things.store(await asyncio.get_running_loop().run_in_executor(workers, scored, batch))
        for _ in batch:
            waiting.task_done()


async def fetched(client: Client, url: str) -> Record:
    """The record of a URL."""
    response = await client.get(url).build().send()
    return parsed((await response.bytes()).to_bytes())


def fetched_and_scored(url: str) -> list[Record]:
    """What one of the pool's processes does with a URL."""
    response = own_client().get(url).build().send()
    return scored([parsed(response.bytes().to_bytes())])


@cache
def own_client() -> SyncClient:
    """The client of a process of the pool."""
    return SyncClientBuilder().no_proxy().build()


WAYS = {"loop": loop, "pool": pool, "queue": queue}


async def crawl(way: str, urls: list[str], database: str, processes: int) -> None:
    """Go one of the ways, and print the report."""
    things = Things(database)
    await things.open()
    await WAYS[way](urls, things, processes)
    await things.close()


def main() -> None:
    """Crawl the file of URLs that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("urls", type=Path)
    parser.add_argument("database")
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("processes", type=int)
    arguments = parser.parse_args()
    uvloop.run(crawl(arguments.way, arguments.urls.read_text().split(), arguments.database, arguments.processes))


if __name__ == "__main__":
    main()
