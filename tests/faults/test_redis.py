"""Redis dies, freezes, is full, loses its data, goes back to older data, and has keys deleted by another program."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from coordinator.queue.streams import WORKER_LEASE_SECONDS
from coordinator.redis.connection import connect_redis
from coordinator.redis.keys import RunKeys
from coordinator.redis.scripts import source
from tests.faults.crawl import IN_HAND, KEYS, NAME, Crawl, lasting
from tests.servers.network import Proxy
from tests.servers.own_servers import SmallDisk, own_redis
from tests.servers.sentinels import guarded_redis
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

STATE = RunKeys(NAME).state


def digest_of(script: str) -> bytes:
    """The SHA-1 by which a client calls this script."""
    return hashlib.sha1(source(script).encode()).hexdigest().encode()


@pytest.mark.slow
@pytest.mark.parametrize("script", ["queue/complete", "queue/claim_block", "queue/publish", "run/renew"])
@pytest.mark.parametrize("responded", [False, True], ids=["before", "after"])
async def test_the_connection_is_cut_during_a_script(crawl: Crawl, script: str, responded: bool) -> None:
    """The caller does not know whether the script ran. It calls it again, and the second call changes nothing."""
    async with Proxy(crawl.environ["REDIS_URL"]) as proxy:
        running = await crawl.start(environ={"REDIS_URL": proxy.url})
        if script != "queue/publish":
            await crawl.requested(KEYS // 4)
        cuts = 1 if script == "queue/publish" else 3
        proxy.cut_at(digest_of(script), times=cuts, responded=responded)
        await eventually(lambda: proxy.cuts == cuts, "the cuts", seconds=30)
        await crawl.recovered()
        await crawl.complete(running)
    what = "after Redis carried it out" if responded else "before Redis saw it"
    await crawl.audited(f"5 cut during {script}", f"{cuts} cut{'s' * (cuts > 1)} {what}")


@pytest.mark.slow
async def test_redis_is_killed(embedded_crawl: Crawl) -> None:
    """It has everything again from its append-only file. Workers wait, and go on by themselves."""
    crawl = embedded_crawl
    running = await crawl.start()
    for third in (1, 2):
        await crawl.requested(third * KEYS // 3)
        (await running.child("redis")).kill()
        await crawl.recovered()
    await crawl.complete(running)
    await crawl.audited("6 Redis killed, with AOF", "SIGKILL, twice", again=2 * IN_HAND)


@pytest.mark.slow
async def test_the_master_of_sentinels_is_killed(crawl: Crawl, tmp_path: Path) -> None:
    """The replica may lack the last moves. Then the run is rebuilt from Postgres; in any case it goes on by itself."""
    async with guarded_redis(tmp_path) as guarded:
        crawl.environ["REDIS_URL"] = guarded.url
        running = await crawl.start()
        await crawl.requested(KEYS // 3)
        guarded.kill_master()
        await crawl.recovered()
        await crawl.complete(running)
        await crawl.audited("6 master of sentinels killed", "SIGKILL, one replica", again=2 * IN_HAND)


@pytest.mark.slow
@pytest.mark.parametrize("restarted", [False, True], ids=["flushed", "restarted"])
async def test_redis_is_empty(crawl: Crawl, tmp_path: Path, restarted: bool) -> None:
    """Within two seconds nothing is claimed or acknowledged any more, and nothing is called complete. `run` rebuilds
    the done set from Postgres and fetches only unfinished keys."""
    async with own_redis(tmp_path) as server:
        crawl.environ["REDIS_URL"] = server.url
        running = await crawl.start()
        await crawl.requested(KEYS // 3)
        if restarted:
            await server.kill()
            shutil.rmtree(server.folder)
            await server.start()
        else:
            await call(server.url, "FLUSHALL")
        await crawl.recovered()
        ended = await crawl.complete(running)
        assert "nothing is called done until the run is rebuilt" in ended.err
        assert "rebuilt from Postgres" in ended.err
        how = "restarted without its data" if restarted else "FLUSHALL"
        await crawl.audited("7 Redis empty", how, again=2 * IN_HAND + 2 * 700)


@pytest.mark.slow
async def test_redis_is_empty_for_several_machines(crawl: Crawl, redis: Redis) -> None:
    """`coordinate` rebuilds the run, and `work` goes on with it. Before that, nothing is called complete."""
    run = await crawl.start(command="coordinate")
    work = await crawl.shell.start("work", "--workers", "2", environ=crawl.environ)
    await crawl.requested(KEYS // 3)
    await redis.flushall()
    await crawl.recovered()
    ended = await crawl.complete(run)
    assert "rebuilt from Postgres" in ended.err
    work.process.terminate()
    assert (await work.end()).code == 0
    await crawl.audited("7 Redis empty, several machines", "FLUSHALL", again=2 * IN_HAND + 2 * 700)


@pytest.mark.slow
@pytest.mark.parametrize("in_mid_run", [True, False], ids=["in mid-run", "between two commands"])
async def test_redis_is_rolled_back(crawl: Crawl, tmp_path: Path, in_mid_run: bool) -> None:
    """An older copy of its data comes back: what Postgres has stays as it is, and no key is lost."""
    async with own_redis(tmp_path) as server:
        crawl.environ["REDIS_URL"] = server.url
        older = tmp_path / "older"
        running = await crawl.start()
        await crawl.requested(KEYS // 4)
        shutil.copytree(server.folder, older)
        await crawl.requested(3 * KEYS // 4)
        if not in_mid_run:
            running.interrupt()
            assert (await running.end()).code == 130
        await server.kill()
        shutil.rmtree(server.folder)
        older.rename(server.folder)
        await server.start()
        if not in_mid_run:
            running = await crawl.start()
        await crawl.recovered()
        ended = await crawl.complete(running)
        if in_mid_run:
            assert "rolled back" in ended.err
        how = "an older data folder in mid-run" if in_mid_run else "an older data folder between commands"
        await crawl.audited("8 Redis rolled back", how, again=KEYS // 2 + 2 * IN_HAND)


@pytest.mark.slow
async def test_redis_reaches_its_memory_limit(crawl: Crawl, redis: Redis) -> None:
    """Leases are still renewed, the reason is logged, and the run goes on when there is memory again."""
    await redis.set("ballast", bytes(20_000_000))
    running = await crawl.start(rate=200)
    await crawl.requested(KEYS // 4)
    before = await workers_with_a_lease(redis)
    await redis.config_set("maxmemory", 2_000_000)
    try:
        await lasting(WORKER_LEASE_SECONDS + 3.0)
        assert await workers_with_a_lease(redis) == before, "the same leases as before"
        assert await redis.hget(STATE, "state") == b"running"
    finally:
        await redis.config_set("maxmemory", 0)
        await redis.delete("ballast")
    await crawl.recovered()
    ended = await crawl.complete(running)
    assert "when used memory > 'maxmemory'" in ended.err
    assert "lease" not in ended.err
    await crawl.audited("9 Redis at maxmemory", "13 s")


async def workers_with_a_lease(redis: Redis) -> set[bytes]:
    """Workers whose leases have not ended."""
    now = (await redis.time())[0] * 1000
    found: Any = await redis.zrangebyscore(RunKeys(NAME).workers, now + 1, "+inf")
    return set(found)


@pytest.mark.slow
async def test_the_disk_of_redis_is_full(crawl: Crawl, small_disk: SmallDisk) -> None:
    """MISCONF: the run waits and logs why. It goes on by itself when there is room again."""
    async with own_redis(small_disk.path) as server:
        crawl.environ["REDIS_URL"] = server.url
        running = await crawl.start(rate=200)
        await crawl.requested(KEYS // 4)
        small_disk.fill()

        async def refused() -> bool:
            try:
                await call(server.url, "SET", "probe", "x" * 5000)
            except RedisError as error:
                return "MISCONF" in str(error)
            return False

        await eventually(refused, "Redis to refuse writes")
        await lasting(5.0)
        small_disk.empty()
        await crawl.recovered()
        ended = await crawl.complete(running)
        assert "MISCONF" in ended.err
        await call(server.url, "DEL", "probe")
        await crawl.audited("10 disk of Redis full", "MISCONF for 5 s", again=2 * IN_HAND)


@pytest.mark.slow
async def test_redis_is_frozen_for_ten_seconds(embedded_crawl: Crawl) -> None:
    """Calls time out and are repeated, and leases end meanwhile. No page is doubled, and the run completes."""
    crawl = embedded_crawl
    running = await crawl.start()
    await crawl.requested(KEYS // 3)
    server = await running.child("redis")
    server.suspend()
    await lasting(10.0)
    server.resume()
    await crawl.recovered()
    await crawl.complete(running)
    await crawl.audited("11 Redis frozen", "SIGSTOP for 10 s", again=2 * IN_HAND)


async def test_another_program_deletes_pending_entries(crawl: Crawl, redis: Redis) -> None:
    """The counts show that keys are missing, and they are planned again. Nothing fails because of the gaps."""
    running = await crawl.start()
    await crawl.requested(KEYS // 4)
    deleted = 0
    for stream in await streams(redis):
        for entry in await redis.xpending_range(stream, "workers", "-", "+", 10):
            deleted += await redis.xdel(stream, entry["message_id"])
    assert deleted, "there was something to delete"
    await crawl.recovered()
    await crawl.complete(running)
    await crawl.audited("12 pending entries deleted", f"XDEL of {deleted} blocks", again=2 * IN_HAND)


@pytest.mark.slow
async def test_another_program_deletes_waiting_entries(crawl: Crawl, redis: Redis) -> None:
    """Blocks that no worker has claimed are deleted, and a whole stream with its group: they are planned again."""
    running = await crawl.start(rate=300)
    await crawl.requested(KEYS // 10)
    trimmed, deleted = (await streams(redis))[:2]
    await redis.xtrim(trimmed, maxlen=0, approximate=False)
    await redis.delete(deleted)
    await crawl.recovered()
    await crawl.complete(running)
    await crawl.audited("12 streams trimmed and deleted", "XTRIM, DEL", again=2 * IN_HAND)


async def streams(redis: Redis) -> list[bytes]:
    return sorted(
        [name async for name in redis.scan_iter(match=RunKeys(NAME).stream(0)[:-1].replace("{", "[{]") + "*")]
    )


async def call(url: str, *words: str) -> None:
    """Send one command, on a new connection."""
    client = connect_redis(url)
    try:
        await client.execute_command(*words)  # type: ignore[no-untyped-call]
    finally:
        await client.aclose()
