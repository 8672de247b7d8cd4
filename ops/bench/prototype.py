"""`python -m ops.bench.prototype`: the limit. Only the path of a key, without any of shardcrawl's promises.

Blocks from a stream in Redis -> pyreqwest -> orjson -> COPY into Postgres with a primary key -> acknowledge, in
independent processes. No retries, no limiter, no leases, no done set, no address check: when a worker dies, its blocks
are lost. The difference in speed between this and shardcrawl is the cost of the promises.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path
from struct import Struct
from time import time
from typing import Any

import asyncpg
import msgpack
import orjson
import uvloop
from pyreqwest.client import Client, ClientBuilder
from redis.asyncio import Redis

from coordinator.queue.sharding import BLOCK_KEYS, digest
from ops.bench.report import Report

STREAM, GROUP = "prototype:blocks", "workers"
CONCURRENCY = 64
BATCH_ROWS = 1000
BATCH_BYTES = 8 * 1024 * 1024
SEND_PIECES = 400
READ_BYTES = 64 * 1024
MAX_BODY_BYTES = 16 * 1024 * 1024
TABLE = "CREATE TABLE pages (digest bytea PRIMARY KEY, url text, status smallint, fetched_at timestamptz, body jsonb)"
COLUMNS = ("digest", "url", "status", "fetched_at", "body")
# Postgres' binary COPY: the signature, then for each row the number of fields, for each field its length and bytes.
SIGNATURE, TRAILER = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"
HEAD = Struct(">hi16si")
MIDDLE = Struct(">ihiqib")
POSTGRES_EPOCH_SECONDS = 946_684_800


@dataclass(slots=True)
class Block:
    """A claimed entry of the stream, and how many of its keys are not committed yet."""

    entry: bytes
    uncommitted: int


async def publish(server: str, database: str, urls: Iterable[str]) -> None:
    """Make the table, and put all blocks into the stream."""
    connection = await asyncpg.connect(database)
    await connection.execute(TABLE)
    await connection.close()
    client = Redis.from_url(server)
    await client.delete(STREAM)
    await client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
    rest = iter(urls)
    while keys := list(islice(rest, BLOCK_KEYS)):
        await client.xadd(STREAM, {"keys": msgpack.packb(keys)})
    await client.aclose()


class Worker:
    """One process: 64 coroutines fetch, and one of them commits."""

    def __init__(self, name: str, client: Client, redis: Redis, connection: asyncpg.Connection) -> None:
        self._name = name
        self._client = client
        self._redis = redis
        self._connection = connection
        self._keys: deque[tuple[str, Block]] = deque()
        self._claiming = asyncio.Lock()
        self._copying = asyncio.Lock()
        self._rows: list[bytes] = []
        self._blocks: list[Block] = []
        self._bytes = 0
        self.stored = 0
        self.first = self.last = 0.0

    async def run(self) -> None:
        """Work until the stream has nothing new."""
        await asyncio.gather(*(self._serve() for _ in range(CONCURRENCY)))
        await self._flush(rest=True)

    async def _serve(self) -> None:
        while self._keys or await self._claim():
            url, block = self._keys.popleft()
            async with self._client.get(url).streamed_read_buffer_limit(READ_BYTES).build_streamed() as response:
                reader, status, pieces, size = response.body_reader, response.status, list[bytes](), 0
                piece = await reader.read(READ_BYTES)  # it reads up to this amount, so most bodies are one piece
                while piece is not None and size <= MAX_BODY_BYTES:
                    pieces.append(piece.to_bytes())
                    size += len(piece)
                    piece = await reader.read_chunk() if size >= READ_BYTES else None
                body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            await self._store(url, status, body, block)

    async def _claim(self) -> bool:
        async with self._claiming:
            if self._keys:
                return True
            streams: Any = await self._redis.xreadgroup(GROUP, self._name, {STREAM: ">"}, count=1)
            for _, entries in streams:
                for entry, fields in entries:
                    keys = msgpack.unpackb(fields[b"keys"])
                    block = Block(entry, len(keys))
                    self._keys.extend((key, block) for key in keys)
            return bool(self._keys)

    async def _store(self, url: str, status: int, body: bytes, block: Block) -> None:
        orjson.loads(body)
        now = time()
        self.first = self.first or now
        name = url.encode()
        at = round((now - POSTGRES_EPOCH_SECONDS) * 1_000_000)
        row = (HEAD.pack(5, 16, digest(url), len(name)), name, MIDDLE.pack(2, status, 8, at, len(body) + 1, 1), body)
        self._rows += row
        self._blocks.append(block)
        self._bytes += len(body)
        if self._full:
            await self._flush()

    @property
    def _full(self) -> bool:
        return len(self._blocks) >= BATCH_ROWS or self._bytes >= BATCH_BYTES

    async def _flush(self, *, rest: bool = False) -> None:
        """Commit the batch while the next one is filled. When that is full too, its coroutine waits here."""
        async with self._copying:
            if not (self._full or rest):
                return  # another coroutine has committed it
            rows, self._rows = self._rows, []
            blocks, self._blocks = self._blocks, []
            self._bytes = 0
            await self._connection.copy_to_table("pages", source=_stream(rows), columns=COLUMNS, format="binary")
            self.stored += len(blocks)
            self.last = time()
            done = []
            for block in blocks:
                block.uncommitted -= 1
                if not block.uncommitted:
                    done.append(block.entry)
            if done:
                pipeline = self._redis.pipeline()
                pipeline.xack(STREAM, GROUP, *done)
                pipeline.xdel(STREAM, *done)
                await pipeline.execute()


async def _stream(rows: list[bytes]) -> AsyncIterator[bytes]:
    yield SIGNATURE
    for first in range(0, len(rows), SEND_PIECES):
        yield b"".join(rows[first : first + SEND_PIECES])
    yield TRAILER


async def work(server: str, database: str, name: str, ca: bytes | None, http2: bool) -> None:
    """Run one of the processes, and print its report."""
    redis = Redis.from_url(server)
    connection = await asyncpg.connect(database)
    builder = ClientBuilder().no_proxy().pool_max_idle_per_host(CONCURRENCY).timeout(timedelta(seconds=30))
    if ca is not None:
        builder = builder.add_root_certificate_pem(ca)
    async with (builder.http2(True) if http2 else builder.http1_only()).build() as client:
        worker = Worker(name, client, redis, connection)
        await worker.run()
    await connection.close()
    await redis.aclose()
    print(Report(worker.stored, worker.first, worker.last).line)


def main() -> None:
    """Publish the URLs, start the processes, and print one report for all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("urls", type=Path)
    parser.add_argument("database")
    parser.add_argument("--redis", required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--ca", type=Path)
    parser.add_argument("--http2", action="store_true")
    parser.add_argument("--worker", help="run as the worker of this name")
    arguments = parser.parse_args()
    if arguments.worker:
        ca = arguments.ca and arguments.ca.read_bytes()
        uvloop.run(work(arguments.redis, arguments.database, arguments.worker, ca, arguments.http2))
        return
    uvloop.run(publish(arguments.redis, arguments.database, arguments.urls.read_text().split()))
    command = [sys.executable, "-m", "ops.bench.prototype", *sys.argv[1:], "--worker"]
    workers = [
        subprocess.Popen([*command, f"worker-{number}"], stdout=subprocess.PIPE) for number in range(arguments.workers)
    ]
    print(Report.merged(Report.read(worker.communicate()[0]) for worker in workers).line)


if __name__ == "__main__":
    main()
