"""A process dies, as in a power cut, at every step of the protocol; nothing is lost, nothing is doubled."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coordinator import steps
from ops.upstream import Upstream
from tests.conftest import eventually
from tests.live.shell import Shell, kill_tree
from tests.live.test_run import ONCE

pytestmark = pytest.mark.anyio

KEYS = 1500
CONCURRENCY, BATCH_ROWS = 16, 200
PLANNER = ("read", "published")
OPENING = ("made", "rebuilt")
WORKER = tuple(step for step in steps.STEPS if step not in PLANNER + OPENING)
EVERY_KEY_ONCE = [{"keys": KEYS, "digests": KEYS, "stored": KEYS, "right_id": KEYS}]


@pytest.fixture
async def shell(tmp_path: Path) -> AsyncIterator[Shell]:
    shell = Shell(tmp_path)
    yield shell
    await shell.sweep()


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream(size=300) as upstream:
        yield upstream


def command(shell: Shell, upstream: Upstream, workers: int = 2) -> tuple[str, ...]:
    urls = shell.write("urls.txt", [f"{upstream.url}/item/{number}" for number in range(KEYS)])
    return (
        *("run", str(urls), "--workers", str(workers)),
        *("--concurrency", str(CONCURRENCY), "--batch-rows", str(BATCH_ROWS)),
    )


@pytest.mark.parametrize(
    ("who", "step"), [("coordinator", step) for step in PLANNER] + [("worker-1", step) for step in WORKER]
)
async def test_a_child_that_dies_at_a_step(shell: Shell, upstream: Upstream, who: str, step: str) -> None:
    line = command(shell, upstream, workers=1 if step == "finished" else 2)  # the last step is reached by one worker
    ended = await shell.run(*line, environ={"CRASH_AT": f"{who}:{step}"})
    assert f"{who} was ended by SIGKILL" in ended.err
    assert await shell.sql(ONCE) == EVERY_KEY_ONCE
    assert upstream.requests <= KEYS + CONCURRENCY + BATCH_ROWS


async def test_a_command_that_dies_between_postgres_and_redis_when_it_makes_a_run(
    shell: Shell, upstream: Upstream
) -> None:
    line = command(shell, upstream)
    await shell.run(*line, environ={"CRASH_AT": "opening:made"}, code=-signal.SIGKILL)
    await shell.run(*line)
    assert await shell.sql(ONCE) == EVERY_KEY_ONCE
    assert upstream.requests == KEYS


async def test_everything_dies_between_the_final_counts_and_redis(shell: Shell, upstream: Upstream) -> None:
    """The next command tells Redis what Postgres knows, so that nothing of the queue is left behind."""
    line = command(shell, upstream, workers=1)
    running = await shell.start(*line, environ={"CRASH_AT": "worker-1:finished"})
    await eventually(lambda: not running.children("worker-1") and upstream.requests == KEYS, "the worker's death")
    kill_tree(running.process.pid)
    await running.process.wait()
    again = await shell.run(*line)
    assert "complete" in again.out
    await shell.run("audit", "urls")
    assert upstream.requests == KEYS


async def test_a_command_that_dies_while_it_rebuilds(shell: Shell, upstream: Upstream) -> None:
    """The epoch reaches Postgres last: a rebuild that was cut short is begun again, and costs no request."""
    line = command(shell, upstream)
    running = await shell.start(*line, "--rate", "800")
    await eventually(lambda: upstream.requests >= KEYS // 2, "half of the requests")
    running.interrupt()
    assert (await running.end()).code == 130
    (shell.data / "redis").rename(shell.data / "redis-lost")
    await shell.run(*line, environ={"CRASH_AT": "opening:rebuilt"}, code=-signal.SIGKILL)
    again = await shell.run(*line)
    assert "rebuilt from Postgres" in again.err
    assert await shell.sql(ONCE) == EVERY_KEY_ONCE
    assert upstream.requests == KEYS
