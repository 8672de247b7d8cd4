"""Another program writes into the Redis of a run: whatever it is, it is bounded or left out, and the run goes on."""

from __future__ import annotations

import time

import msgpack
import pytest
from redis.asyncio import Redis

from coordinator.model import Attempts, Block, ShardId
from coordinator.queue.sharding import digest
from coordinator.queue.wire import Deferral, encode_block, encode_deferral
from coordinator.redis.keys import RUNS, RunKeys
from crawler.sample.upstream import Upstream
from tests.live.examples import COUNT_PAGES, each_key_once
from tests.live.shell import Shell
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

ITEMS = 1500
KEYS = RunKeys("urls")
CENTURY = 3_155_760_000
WINDOWS = {
    "none": [False, [[1, 1e300]]],
    "negative": [False, [[-1, 1]]],
    "odd": [1, "x"],
    "nan": [True, [[1, float("nan")]]],
}
# One is written for each of the queue's keys, in a place where another type is expected.
QUEUE = (
    *(KEYS.state, KEYS.ready, KEYS.workers, KEYS.claims, KEYS.receipts, KEYS.waits, KEYS.deferred_due),
    *(KEYS.deferred_keys, KEYS.leader, KEYS.quarantine, KEYS.unreachable, KEYS.matched_limits, KEYS.timings),
)


def crafted(key: str, attempts: int, history: tuple[str, ...] = ("12:00:00 status 500",)) -> bytes:
    return encode_block(Block(ShardId(0), (key,), attempts={0: Attempts(attempts, 0, history)}))


async def bounded(redis: Redis, upstream: str, key: str) -> None:
    """What needs no rebuild: enattempts, limits, leases, waits, robots.txt, receipts, deferred keys."""
    now = time.time()
    stream = min([name async for name in redis.scan_iter(match=KEYS.stream(0)[:-1] + "*")], default=KEYS.stream(0))
    for payload in (
        *(crafted(key, 2**15), crafted(key, 2**40), crafted(key, 1, ("x" * 5000,)), crafted(key, 1, ("x",) * 400)),
        encode_block(Block(ShardId(0), (key, key))),
    ):
        await redis.xadd(stream, {"b": payload})
    century_us = int(now + CENTURY) * 1_000_000
    records = {
        upstream: msgpack.packb({"ends": century_us, "rise": 1}),
        "garbage": b"\xc1",
        "list": msgpack.packb([1]),
        "breaker": msgpack.packb({"breaker": {"at": century_us, "wait": "x", "good": -1, "probing": 1}}),
        "auto": msgpack.packb({"auto": {"rate": 0}}),
    }
    for name, record in records.items():
        await redis.hset(KEYS.upstreams, name, record)
        await redis.hset(KEYS.limits, f"concurrency {name}", "-0x1")
        await redis.zadd(KEYS.changes, {name: 1})
    for name, windows in WINDOWS.items():
        await redis.hset(KEYS.limits, f"rate {name}", msgpack.packb(windows))
    await redis.hset(KEYS.limits, f"rate {upstream}", msgpack.packb(WINDOWS["none"]))
    await redis.zadd(KEYS.changes, {b"\xff": float("inf"), upstream: 2})
    await redis.hset(KEYS.slots(upstream), mapping={"last": century_us, "3600:1": "9" * 400 + " 1", "3600:2": "x"})
    await redis.set(KEYS.health(upstream), msgpack.packb({"seconds": [1, "x"], "refused": []}))
    origin = f"http://{upstream}"
    await redis.hset(KEYS.robots(origin), mapping={"found": b"\xc1" * 9, "holds": "9" * 30, "asker": "x", "until": "y"})
    await redis.zadd(KEYS.workers, {f"ghost-{number}": now * 1000 + CENTURY * 1000 for number in range(500)})
    await redis.zadd(KEYS.workers, {b"\xff\xfe": float("inf")})
    await redis.zadd(KEYS.ready, {"-1": 5, "9" * 40: 1e300, "x y": float("inf"), b"\xff": 3})
    for worker in await redis.zrange(KEYS.workers, 0, -1):
        await redis.hset(KEYS.waits, worker, b"\xdd\xff\xff\xff\xff")
        await redis.hset(KEYS.receipts, worker, "x" * 1000)
    await redis.hset(
        KEYS.claims, mapping={"9999999999999999 ghost": 1, "x": "y", "0 ghost": "0 99999999999999999999999-1"}
    )
    far = {b"short": "inf", digest("never planned"): now * 1000 + CENTURY * 1000, b"": 0, digest("other"): 1}
    await redis.zadd(KEYS.deferred_due, far)  # type: ignore[arg-type]  # a number as text
    await redis.hset(KEYS.deferred_keys, b"short", encode_deferral(Deferral(b"", key, Attempts(2**20, -1, ()))))
    await redis.hset(KEYS.deferred_keys, digest("other"), encode_deferral(Deferral(b"", key, Attempts())))


async def damaged(redis: Redis, upstream: str) -> None:
    """What is of another type than ours, and numbers that are none: what cannot be done without is rebuilt."""
    pipe = redis.pipeline(transaction=True)
    for name in (
        *QUEUE,
        *KEYS.limiting,
        KEYS.slots(upstream),
        KEYS.health(upstream),
        KEYS.robots(f"http://{upstream}"),
        RUNS,
    ):
        pipe.delete(name)
        pipe.geoadd(name, (13.4, 52.5, "Berlin"))
    pipe.hset(KEYS.stream(99), "a", "stream")
    await pipe.execute()


@pytest.mark.parametrize(
    "what", ["damaged", *(pytest.param(what, marks=pytest.mark.slow) for what in ("bounded", "numbers"))]
)
async def test_whatever_another_program_writes_the_run_goes_on(
    shell: Shell, upstream: Upstream, redis: Redis, environ: dict[str, str], what: str
) -> None:
    lines = [f"{upstream.url}/item/{number}" for number in range(ITEMS)]
    urls, host = shell.write("urls.txt", lines), upstream.url.removeprefix("http://")
    job = f'[run]\nname = "urls"\n[source]\npath = "{urls}"\n[limits."{host}"]\nconcurrency = 64\n'
    options = ("--workers", "2", "--rate", "500", "--batch-rows", "100")
    running = await shell.start("run", shell.write("job.toml", job), *options, environ=environ)
    await eventually(lambda: upstream.requests > 200, "200 requests")
    if what == "bounded":
        await bounded(redis, host, lines[-1])
    elif what == "damaged":
        await damaged(redis, host)
    else:
        garbage = {"cursor": "9" * 30 + ":x", "published": "x", "moves": "-5", "state": "complete!", "stored": "1e9"}
        await redis.hset(KEYS.state, mapping=garbage)
    ended = await running.end()
    assert ended.code == 0, ended.err
    assert "Traceback" not in ended.err, ended.err
    assert ("until the run is rebuilt" in ended.err) == (what != "bounded"), ended.err
    assert await shell.sql(COUNT_PAGES, environ=environ) == each_key_once(ITEMS)
