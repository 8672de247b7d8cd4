"""Several machines: coordinators and workers that share only Redis and Postgres."""

from __future__ import annotations

import json

import pytest
from redis.asyncio import Redis

from crawler.sample.upstream import Upstream
from tests.live.examples import COUNT_PAGES, each_key_once
from tests.live.shell import Shell, kill_tree
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

KEYS = 3000
STARTS_WITH = "where it shall run, start `shardcrawl work` with"


@pytest.mark.slow
async def test_workers_of_two_machines_share_a_run(shell: Shell, upstream: Upstream, environ: dict[str, str]) -> None:
    """`work` may start before the run exists. It works on it, then on the next one. Ctrl-C drains it."""
    urls = shell.write("urls.txt", [f"{upstream.url}/item/{number}" for number in range(KEYS)])
    machines = [await shell.start("work", "--workers", "1", environ=environ) for _ in range(2)]
    for name in ("first", "second"):
        ended = await shell.run("coordinate", urls, "--name", name, "--rate", "1500", environ=environ)
        assert f"run {name} is complete: 3,000 keys" in ended.out
    for machine in machines:
        machine.interrupt()
        assert (await machine.end()).code == 0
    counts = await shell.sql("select counts->>'stored' as stored from runs", environ=environ)
    assert counts == [{"stored": "3000"}] * 2
    assert upstream.requests == 2 * KEYS
    published = COUNT_PAGES.replace("from pages", "from pages_current")
    assert await shell.sql(published, environ=environ) == each_key_once(KEYS)


@pytest.mark.slow
async def test_a_second_coordinator_takes_over_from_a_killed_one(
    shell: Shell, upstream: Upstream, environ: dict[str, str]
) -> None:
    lines = [f"{upstream.url}/item/{number}" for number in range(KEYS)]
    text = f'[run]\nname = "shared"\nhigh_water = 1000\n[source]\npath = "{shell.write("urls.txt", lines)}"\n'
    job = shell.write("job.toml", text)
    first = await shell.start("coordinate", job, environ=environ)

    async def leader() -> str | None:
        ended = await shell.run("status", "shared", "--json", environ=environ, code=None)
        name: str | None = json.loads(ended.out)["coordinator"] if ended.code == 0 else None
        return name

    async def has_leader() -> bool:
        return await leader() is not None

    await eventually(has_leader, "a leading coordinator")
    before = await leader()
    second = await shell.start("coordinate", job, environ=environ)
    await second.child("coordinator")
    kill_tree(first.process.pid)

    async def taken_over() -> bool:
        return await leader() not in (None, before)

    await eventually(taken_over, "the second coordinator to lead", seconds=15)
    worker = await shell.start("work", "--workers", "1", environ=environ)
    ended = await second.end()
    assert ended.code == 0, ended.err
    worker.interrupt()
    await worker.end()
    assert upstream.requests == KEYS


async def test_an_empty_redis_is_filled_from_postgres(
    shell: Shell, upstream: Upstream, redis: Redis, environ: dict[str, str]
) -> None:
    """What Postgres has is not fetched again."""
    urls = shell.write("urls.txt", [f"{upstream.url}/item/{number}" for number in range(KEYS)])
    running = await shell.start("run", urls, "--rate", "1500", environ=environ)
    await eventually(lambda: upstream.requests > 1000, "1000 requests")
    running.interrupt()
    assert (await running.end()).code == 130
    await redis.flushall()
    again = await shell.run("run", urls, environ=environ)
    assert "rebuilt from Postgres" in again.err
    assert await shell.sql(COUNT_PAGES, environ=environ) == each_key_once(KEYS)
    assert upstream.requests == KEYS


async def test_redis_that_loses_all_in_mid_run_is_rebuilt_and_the_run_goes_on(
    shell: Shell, upstream: Upstream, redis: Redis, environ: dict[str, str]
) -> None:
    """`run` sees it, rebuilds from Postgres and goes on. Only what was not committed is requested again."""
    urls = shell.write("urls.txt", [f"{upstream.url}/item/{number}" for number in range(KEYS)])
    limits = ("--workers", "2", "--concurrency", "16", "--batch-rows", "200", "--rate", "1500")
    running = await shell.start("run", urls, *limits, environ=environ)
    await eventually(lambda: upstream.requests > 1000, "1000 requests")
    await redis.flushall()
    ended = await running.end()
    assert ended.code == 0, ended.err
    assert "nothing is called done until the run is rebuilt" in ended.err
    assert await shell.sql(COUNT_PAGES, environ=environ) == each_key_once(KEYS)
    assert upstream.requests <= KEYS + 2 * (16 + 200) + 2 * 1500, "what two seconds fetch, and what was in flight"


async def test_rebuild_fills_redis_from_postgres(
    shell: Shell, upstream: Upstream, redis: Redis, environ: dict[str, str]
) -> None:
    urls = shell.write("urls.txt", [f"{upstream.url}/item/{number}" for number in range(KEYS)])
    running = await shell.start("run", urls, "--rate", "1500", environ=environ)
    await eventually(lambda: upstream.requests > 1000, "1000 requests")
    running.interrupt()
    await running.end()
    committed = upstream.requests
    await redis.flushall()
    ended = await shell.run("rebuild", "urls", environ=environ)
    assert f"run urls is rebuilt: {committed:,} keys are done" in ended.out
    await shell.run("run", urls, environ=environ)
    assert upstream.requests == KEYS
    await shell.run("rebuild", "urls", environ=environ, code=2)


async def test_a_run_that_cannot_be_worked_on_does_not_stop_the_others(
    shell: Shell, upstream: Upstream, redis: Redis, environ: dict[str, str]
) -> None:
    """A secret that is missing, or more than a machine allows, is an error line there. Other runs go on.

    What another program writes into Redis names no job: neither does a worker act on it, nor is it stopped by it.
    """
    urls = shell.write("urls.txt", [f"{upstream.url}/item/{number}" for number in range(300)])
    header = 'headers = { Authorization = "Bearer ${NOT_SET_HERE}" }'
    text = f'[run]\nname = "secret"\n[source]\npath = "{urls}"\n[request]\nhosts = ["{upstream.url}"]\n{header}\n'
    more = text.replace('"secret"', '"more"').replace("NOT_SET_HERE", "DATABASE_URL")
    more += 'allow_private = ["10.0.0.0/8"]\n[parse]\npython = "os:system"\n'
    blocked = [
        await shell.start("coordinate", shell.write(f"{number}.toml", text), environ=environ)
        for number, text in enumerate((text, more))
    ]

    async def named() -> bool:
        return await redis.scard("shardcrawl:runs") == len(blocked)

    await eventually(named, "both runs in Redis")
    await redis.sadd("shardcrawl:runs", "../planted", "planted", b"\xff", "nul\0")
    planted = {"request": {"url": f"{upstream.url}/planted/{{key}}"}, "parse": {"python": "os:system"}}
    fields = {"name": "open", "run_id": 1, "epoch": "e", "shards": 1, "buckets": 1, "document": planted, "folder": "/"}
    for name in ("open", "planted"):
        await redis.set(f"shardcrawl:{{{name}}}:spec", json.dumps(fields))
    machine = await shell.start("work", "--workers", "1", "--allow-env", "NOT_SET*", environ=environ)
    ended = await shell.run("coordinate", urls, "--name", "open", environ=environ)
    assert "run open is complete: 300 keys" in ended.out
    for other in blocked:
        other.interrupt()
        assert (await other.end()).code == 130
    machine.interrupt()
    said = (await machine.end()).err
    assert "error: run secret: job: [request] headers: ${NOT_SET_HERE} is not set" in said
    wanted = "--allow-parser os:system --allow-env DATABASE_URL --allow-private 10.0.0.0/8"
    assert said.count(f"run more: its job wants more than this machine allows; {STARTS_WITH} {wanted}") == 1, said
    assert "Postgres does not have 1 runs of Redis, like planted" in said
    assert all(path.startswith("/item/") for path in upstream.paths)


@pytest.mark.slow
async def test_a_run_that_was_given_keys_back_is_rebuilt_by_its_coordinator(
    shell: Shell, upstream: Upstream, environ: dict[str, str]
) -> None:
    """`retry` during a run: the coordinator of another machine sees the new epoch, rebuilds, and no key is left out."""
    lines = [f"{upstream.url}/status/500/{number}" for number in range(20)]
    lines += [f"{upstream.url}/item/{number}" for number in range(KEYS)]
    text = '[run]\nname = "shared"\n[retry]\nattempts = 1\n[limits."*"]\nconcurrency = 16\n'
    job = shell.write("job.toml", f'{text}[source]\npath = "{shell.write("urls.txt", lines)}"\n')
    worker = await shell.start("work", "--workers", "1", environ=environ)
    running = await shell.start("coordinate", job, "--rate", "20", environ=environ)

    async def some_failed() -> bool:
        ended = await shell.run("retry", "shared", "--reason", "500", environ=environ, code=None)
        return "back into run shared" in ended.out

    async def faster() -> bool:
        return not (await shell.run("limit", "shared", "*", "--rate", "none", environ=environ, code=None)).code

    await eventually(some_failed, "keys that failed", seconds=60)
    await eventually(faster, "the rebuilt run: until then limits are refused", seconds=60)
    ended = await running.end()
    assert ended.code == 0, ended.err
    assert "nothing is called done until the run is rebuilt" in ended.err
    worker.interrupt()
    await worker.end()
    counts = await shell.sql(
        "select outcome, count(*) as keys from pages_current group by 1 order by 1", environ=environ
    )
    assert counts == [{"outcome": "failed", "keys": 20}, {"outcome": "stored", "keys": KEYS}]
