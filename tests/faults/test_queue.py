"""Bad keys in the corpus, and bad entries that another program puts into the queue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack
import pytest
from redis.asyncio import Redis

from coordinator.model import Block, ShardId
from coordinator.queue.wire import MAX_BLOCK_BYTES, encode_block
from coordinator.redis.keys import RunKeys
from tests.faults.crawl import IN_HAND, KEYS, NAME, Crawl
from tests.faults.table import Row

pytestmark = pytest.mark.anyio


@pytest.mark.slow
async def test_the_same_key_in_two_blocks(crawl: Crawl) -> None:
    """Both blocks are published before the key is done: it has one page, and may be requested twice."""
    lines = [f"{crawl.upstream.url}/item/{number}" for number in range(KEYS)]
    await crawl.job(lines * 3)
    await crawl.audited("17 the same key in several blocks", "every key three times", again=KEYS)


def a_payload(keys: Sequence[str]) -> bytes:
    return encode_block(Block(ShardId(0), tuple(keys)))


def altered(place: int, value: Any) -> bytes:
    """The payload of a block, with another value in the field at this place."""
    fields = msgpack.unpackb(a_payload(["x"]), strict_map_key=False)
    fields[place] = value
    return bytes(msgpack.packb(fields))


VERSION, BLOCK_KEYS, REFUSALS = range(3)
MALFORMED = (
    b"",
    b"\xc1",
    b"not msgpack at all",
    a_payload(["cut"])[:-3],
    altered(VERSION, 1_000_000),
    altered(VERSION, None),
    altered(BLOCK_KEYS, [1, None]),
    altered(BLOCK_KEYS, "x"),
    altered(BLOCK_KEYS, ["x"] * 100_000),
    altered(REFUSALS, {5: "no such key"}),
    altered(REFUSALS, {0: 5}),
    msgpack.packb({"keys": ["x"]}),
    b"\xdd\xff\xff\xff\xff",
    b"\x91" * 10_000,
    a_payload(["x" * MAX_BLOCK_BYTES]),
)


async def test_another_program_puts_hostile_entries_into_the_queue(crawl: Crawl, redis: Redis) -> None:
    """They are quarantined and logged; their shards go on, and every key is stored."""
    running = await crawl.start(rate=500)
    await crawl.requested(KEYS // 10)
    await write_entries(redis, [*({"b": payload} for payload in MALFORMED), {"another": "field"}])
    ended = await crawl.complete(running)
    assert await redis.llen(RunKeys(NAME).quarantine) == len(MALFORMED) + 1
    assert ended.err.count("is quarantined") == len(MALFORMED) + 1
    await redis.delete(RunKeys(NAME).quarantine)
    await crawl.audited("25 hostile entries in a stream", f"{len(MALFORMED) + 1} XADDs", again=IN_HAND)


HOSTILE = (
    "http://user:secret@127.0.0.1:{port}/item/a",
    "http://127.0.0.1:{port}/item/" + "d" * 9000,
    "file:///etc/passwd",
    "ftp://127.0.0.1:{port}/item/e",
    "http://127.0.0.1:{port}/item/\x1b[31m",
    "http://[::ffff:127.0.0.1:{port}/item/f",
    "http://127.0.0.1:99999/item/g",
    "",
)
# As browsers do it: line ends are removed, and spaces are encoded.
ENCODED = {
    "http://127.0.0.1:{port}/item/b\r\nX-Injected: yes": "/item/bX-Injected:%20yes",
    "http://127.0.0.1:{port}/item/c HTTP/1.1\r\nHost: x\r\n\r\nGET /item/smuggled": (
        "/item/c%20HTTP/1.1Host:%20xGET%20/item/smuggled"
    ),
}


@pytest.mark.parametrize("way", [pytest.param("corpus", marks=pytest.mark.slow), "queue"])
async def test_hostile_keys(crawl: Crawl, redis: Redis, way: str) -> None:
    """From a generator, or in a valid block of another program: they are refused or encoded, and nothing is
    injected into a request, a log or a table."""
    upstream, keys = crawl.upstream, crawl.good_keys()
    port = upstream.url.rpartition(":")[2]
    hostile = [url.replace("{port}", port) for url in (*HOSTILE, *ENCODED)]
    if way == "corpus":
        running = await crawl.start_job([*keys[:100], *hostile, *keys[100:]])
    else:
        crawl.environ["SHARDCRAWL_RATE"] = "100"
        running = await crawl.start_job(keys)
        await crawl.requested(50)
        await write_entries(redis, [{"b": a_payload(hostile)}])
    ended = await crawl.complete(running)
    found = await crawl.outcomes()
    assert all(found.pop(key) == ("stored", None) for key in keys)
    assert all(found.pop(key.replace("{port}", port))[0] in ("stored", "gone") for key in ENCODED)
    assert {outcome for outcome, _ in found.values()} == {"refused"}, found
    assert len(found) == len(HOSTILE)
    expected = [*(key.removeprefix(upstream.url) for key in keys), *ENCODED.values()]
    assert sorted(upstream.paths) == sorted(expected), "no other request"
    assert "secret" not in ended.err + ended.out
    assert "\x1b" not in ended.err + ended.out
    crawl.report(Row("25 hostile keys", f"{len(HOSTILE)} in the {way}", 0, 0, None))


async def write_entries(redis: Redis, entries: Sequence[dict[str, bytes | str]]) -> None:
    """Append entries to the stream of shard 0, at one moment; without its place in `ready`, a drained shard is not
    read again."""
    keys = RunKeys(NAME)
    stream = keys.stream(ShardId(0))
    async with redis.pipeline(transaction=True) as pipeline:
        pipeline.xgroup_create(stream, "workers", id="0", mkstream=True)
        for entry in entries:
            pipeline.xadd(stream, entry)
        pipeline.zincrby(keys.ready, len(entries), "0")
        await pipeline.execute(raise_on_error=False)  # mostly the group exists
