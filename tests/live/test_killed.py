"""Processes are killed at any moment and started again: nothing is lost, nothing is stored twice."""

from __future__ import annotations

import random
import signal

import psutil
import pytest

from crawler.sample.upstream import Upstream
from tests.live.examples import COUNT_PAGES, each_key_once
from tests.live.shell import Running, Shell, kill_tree
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

KEYS = 6000
CONCURRENCY = 16
BATCH_ROWS = 200
# Keys that one killed worker may have fetched without recording them; they are fetched again.
REFETCHED_AFTER_A_KILL = CONCURRENCY + BATCH_ROWS
EVERY_KEY_ONCE = each_key_once(KEYS)


async def begin(shell: Shell, upstream: Upstream, workers: int = 2) -> Running:
    """Start the run that the tests disturb, or go on with it."""
    urls = shell.write("urls.txt", [f"{upstream.url}/item/{number}" for number in range(KEYS)])
    return await shell.start(
        "run", urls, "--workers", str(workers), "--concurrency", str(CONCURRENCY), "--batch-rows", str(BATCH_ROWS),
        "--rate", "2500",
    )  # fmt: skip


async def requested(upstream: Upstream, requests: int) -> None:
    """Wait until the upstream got so many requests."""
    await eventually(lambda: upstream.requests >= requests, f"{requests} requests at the upstream", seconds=60)


@pytest.mark.slow
async def test_kill_9_of_one_worker(shell: Shell, upstream: Upstream) -> None:
    running = await begin(shell, upstream)
    await requested(upstream, 1500)
    (await running.child("worker-1")).kill()
    ended = await running.end()
    assert ended.code == 0, ended.err
    assert await shell.sql(COUNT_PAGES) == EVERY_KEY_ONCE
    assert upstream.requests <= KEYS + REFETCHED_AFTER_A_KILL


@pytest.mark.slow
async def test_kill_9_of_all_workers(shell: Shell, upstream: Upstream) -> None:
    running = await begin(shell, upstream)
    await requested(upstream, 1500)
    for worker in running.children("worker-"):
        worker.kill()
    ended = await running.end()
    assert ended.code == 0, ended.err
    assert await shell.sql(COUNT_PAGES) == EVERY_KEY_ONCE
    assert upstream.requests <= KEYS + 2 * REFETCHED_AFTER_A_KILL


@pytest.mark.slow
async def test_kill_9_of_the_coordinator(shell: Shell, upstream: Upstream) -> None:
    running = await begin(shell, upstream)
    (await running.child("coordinator")).kill()
    await requested(upstream, 1000)
    (await running.child("coordinator")).kill()
    ended = await running.end()
    assert ended.code == 0, ended.err
    assert await shell.sql(COUNT_PAGES) == EVERY_KEY_ONCE
    assert upstream.requests == KEYS


@pytest.mark.slow
async def test_kill_9_of_redis_and_of_postgres(shell: Shell, upstream: Upstream) -> None:
    running = await begin(shell, upstream)
    await requested(upstream, 1000)
    (await running.child("redis")).kill()
    await requested(upstream, 2500)
    (await running.child("postgres")).kill()
    ended = await running.end()
    assert ended.code == 0, ended.err
    assert await shell.sql(COUNT_PAGES) == EVERY_KEY_ONCE


async def test_kill_9_of_everything_and_start_again(shell: Shell, upstream: Upstream) -> None:
    running = await begin(shell, upstream)
    await requested(upstream, 2000)
    kill_tree(running.process.pid)
    await running.process.wait()
    before = upstream.requests
    again = await (await begin(shell, upstream)).end()
    assert again.code == 0, again.err
    assert "goes on" in again.err
    assert await shell.sql(COUNT_PAGES) == EVERY_KEY_ONCE
    assert upstream.requests <= KEYS + 2 * REFETCHED_AFTER_A_KILL
    assert upstream.requests - before < KEYS


@pytest.mark.slow
async def test_children_of_a_killed_run_leave_by_themselves(shell: Shell, upstream: Upstream) -> None:
    running = await begin(shell, upstream)
    await requested(upstream, 1000)
    children = running.children("crawler.local.child")
    assert len(children) == 3
    running.process.kill()
    await eventually(lambda: not any(map(alive, children)), "children of the killed run to leave")
    again = await (await begin(shell, upstream)).end()
    assert again.code == 0, again.err
    assert await shell.sql(COUNT_PAGES) == EVERY_KEY_ONCE


async def test_ctrl_c_drains_and_the_next_run_fetches_only_the_rest(shell: Shell, upstream: Upstream) -> None:
    running = await begin(shell, upstream)
    await requested(upstream, 2000)
    running.interrupt()
    ended = await running.end()
    assert ended.code == 130, ended.err
    assert "go on with: shardcrawl run" in ended.out
    assert upstream.requests < KEYS
    assert (await (await begin(shell, upstream)).end()).code == 0
    assert await shell.sql(COUNT_PAGES) == EVERY_KEY_ONCE
    assert upstream.requests == KEYS, "what was in flight was committed, so nothing is requested twice"


async def test_ctrl_c_twice_leaves_at_once_and_the_same_command_goes_on(shell: Shell) -> None:
    async with Upstream(size=100) as upstream:
        urls = shell.write("urls.txt", [f"{upstream.url}/slow/20000/{number}" for number in range(50)])
        command = ("run", urls, "--workers", "1", "--refresh")
        running = await shell.start(*command)
        await requested(upstream, 5)
        children = running.children("crawler.local.child")
        running.interrupt()
        await eventually(lambda: len(running.children("coordinator")) == 0, "the coordinator to drain")
        running.interrupt()
        assert (await running.end()).code == 130
        await eventually(lambda: not any(map(alive, children)), "the killed children to be gone")
        again = await shell.start(*command)
        await again.child("worker-1")
        again.interrupt()
        assert (await again.end()).code == 130, "the leases of the killed are not another refresh that goes on"


async def test_random_kills_until_the_run_is_complete(shell: Shell, upstream: Upstream) -> None:
    """Workers, coordinator, Redis and Postgres die in turn; the run ends by itself with the same counts."""
    choice = random.Random(7)
    running = await begin(shell, upstream, workers=3)
    kills = 0
    for step in range(1, 9):
        goal = step * KEYS // 10
        await eventually(
            lambda goal=goal: upstream.requests >= goal or running.process.returncode is not None,  # type: ignore[misc]
            f"{goal} requests",
            seconds=60,
        )
        victims = running.children("worker-") + running.children("coordinator")
        victims += running.children("redis") + running.children("postgres")
        if victims:
            victim = choice.choice(victims)
            victim.send_signal(signal.SIGKILL)
            kills += 1
    ended = await running.end()
    assert ended.code == 0, ended.err
    assert kills == 8
    assert await shell.sql(COUNT_PAGES) == EVERY_KEY_ONCE
    assert upstream.requests <= KEYS + 3 * kills * REFETCHED_AFTER_A_KILL


def alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
