from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis.asyncio import Redis

from coordinator.errors import ShardcrawlError, UsageError
from coordinator.redis.keys import RunKeys
from crawler.job.job import read_job
from crawler.local import supervisor as supervisor_module
from crawler.local.child_spec import ChildSpec
from crawler.local.supervisor import MAX_FAILED_STARTS, Supervisor
from crawler.opening import open_run
from crawler.telemetry.pulse import PulseReader
from tests.crawler.local import stub_child
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

WORKER = ChildSpec("worker", "worker-1", "redis://127.0.0.1:1/0", "postgresql://nobody@127.0.0.1:1/nothing")


@dataclass
class Watched:
    """A supervisor at work, and every line that its children said."""

    supervisor: Supervisor
    task: asyncio.Task[None]
    lines: list[str] = field(default_factory=list)
    on_death: list[int] = field(default_factory=list)

    def said(self, words: str) -> bool:
        assert not self.task.done(), self.task.exception()
        return any(words in line for line in self.lines)

    async def ended(self) -> None:
        async with asyncio.timeout(30):
            await self.task


@asynccontextmanager
async def watched(*specs: ChildSpec) -> AsyncIterator[Watched]:
    lines: list[str] = []
    dead: list[int] = []

    async def release_dead(pid: int) -> None:
        dead.append(pid)

    supervisor = Supervisor(specs, lines.append, os.environ, release_dead)
    task = asyncio.create_task(supervisor.run())
    try:
        yield Watched(supervisor, task, lines, dead)
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert supervisor.pids == {}, "no child outlives its supervisor"


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
async def waiting_worker(redis: Redis, redis_url: str, database: str, tmp_path: Path) -> ChildSpec:
    """The spec of a worker at a run that nobody plans: it joins, and waits."""
    (tmp_path / "keys.txt").write_text("a\n")
    document = {
        "run": {"name": "test"},
        "source": {"path": "keys.txt"},
        "request": {"url": "https://upstream.example/{key}"},
    }
    await open_run(redis, database, read_job(document, str(tmp_path)))
    return ChildSpec("worker", "worker-1", redis_url, database, run="test")


async def test_a_worker_that_is_killed_is_started_again_and_one_that_drains_is_not(
    redis: Redis, waiting_worker: ChildSpec
) -> None:
    async def joined(times: int) -> bool:
        return bool(await redis.zcount(RunKeys("test").workers, 0, "+inf") == times)

    async with watched(waiting_worker) as parent:
        await eventually(lambda: joined(1), "the worker has joined")
        killed = parent.supervisor.pids["worker-1"]
        os.kill(killed, signal.SIGKILL)
        await eventually(lambda: joined(2), "its successor has joined")
        successor = parent.supervisor.pids["worker-1"]
        assert successor != killed
        assert not lives(killed)
        assert parent.on_death == [killed]
        parent.supervisor.drain()
        await parent.ended()
        assert any("drains" in line for line in parent.lines)
        assert any("left" in line for line in parent.lines), "it has given its lease back"
        assert await joined(1), "only the killed one's lease is still there"
        assert not lives(successor)
        assert parent.on_death == [killed], "the lease of a child that left by itself needs no release"


async def test_a_child_that_cannot_do_its_work_ends_the_command_in_its_own_words(waiting_worker: ChildSpec) -> None:
    bad = ChildSpec("worker", "worker-2", "redis://127.0.0.1:port/0", "postgresql://nobody@127.0.0.1:1/nothing")
    async with watched(waiting_worker, bad) as parent:
        with pytest.raises(ShardcrawlError) as caught:
            await parent.ended()
        assert not isinstance(caught.value, UsageError)
        message = str(caught.value)
        assert "127.0.0.1:port" in message
        assert "redis://HOST:PORT/0" in message
        assert not message.startswith("error")
        assert not any("redis://HOST" in line for line in parent.lines), "the error is told once"
        assert parent.supervisor.pids == {}, "the other child is not left alone"


async def test_a_usage_error_of_a_child_is_a_usage_error(redis: Redis, redis_url: str, database: str) -> None:
    bad = ChildSpec("coordinator", "coordinator", redis_url, database, run="nobody-knows-it")
    async with watched(bad) as parent:
        with pytest.raises(UsageError, match="Postgres has no run nobody-knows-it"):
            await parent.ended()


async def test_a_child_that_fails_again_and_again_at_its_start_is_given_up_with_its_last_words() -> None:
    bad = ChildSpec("worker", "worker-1", WORKER.redis, WORKER.database, log_level="NO SUCH LEVEL")
    async with watched(bad) as parent:
        with pytest.raises(ShardcrawlError, match="worker-1 ended with exit code 1 3 times at its start: ValueError"):
            await parent.ended()
        assert sum("Traceback" in line for line in parent.lines) == 3


async def test_a_child_that_reads_standard_input_is_not_started_again() -> None:
    async with watched(replace(WORKER, restart=False)) as parent:
        await eventually(lambda: parent.said("waits"), "the worker waits for Redis")
        os.kill(parent.supervisor.pids["worker-1"], signal.SIGKILL)
        with pytest.raises(ShardcrawlError, match="was ended by SIGKILL while it read standard input"):
            await parent.ended()


async def test_children_that_are_killed_are_gone_and_stay_gone() -> None:
    async with watched(WORKER) as parent:
        await eventually(lambda: parent.said("waits"), "the worker waits for Redis")
        pid = parent.supervisor.pids["worker-1"]
        parent.supervisor.kill()
        await parent.ended()
        assert not lives(pid)


async def test_a_supervisor_that_is_cancelled_leaves_no_child_behind() -> None:
    async with watched(WORKER) as parent:
        await eventually(lambda: parent.said("waits"), "the worker waits for Redis")
        pid = parent.supervisor.pids["worker-1"]
        parent.task.cancel()
        await asyncio.wait([parent.task])
        assert not lives(pid)


async def test_a_drain_that_comes_before_the_children_leaves_nothing_running() -> None:
    async with watched(WORKER) as parent:
        parent.supervisor.drain()
        await parent.ended()


async def test_a_drain_that_comes_while_a_child_is_being_started_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    start = asyncio.create_subprocess_exec
    parents: list[Supervisor] = []

    async def drained_meanwhile(*arguments: Any, **options: Any) -> asyncio.subprocess.Process:
        process = await start(*arguments, **options)
        parents[0].drain()
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", drained_meanwhile)
    async with watched(WORKER) as parent:
        parents.append(parent.supervisor)
        await parent.ended()


async def test_a_child_that_is_ended_by_a_drain_before_it_can_drain_is_no_error() -> None:
    async with watched(replace(WORKER, restart=False)) as parent:
        await eventually(lambda: bool(parent.supervisor.pids), "the child is there")
        parent.supervisor.drain()
        await parent.ended()


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ChildSpec]:
    """The spec of a stub_child of this name."""
    monkeypatch.setattr(supervisor_module, "CHILD_MODULE", stub_child.__name__)
    return lambda name: replace(WORKER, name=name, grace_seconds=0.0)


async def test_a_child_that_stands_still_is_killed_and_one_that_was_stopped_is_not(
    stub: Callable[[str], ChildSpec],
) -> None:
    """By the kernel when it uses the processor, else by its parent."""
    async with watched(stub("stands-still"), stub("waits-for-ever"), stub("is-stopped")) as parent:
        await eventually(lambda: len(parent.on_death) > 3, "both are killed, and their successors too")
        stopped = parent.supervisor.pids["is-stopped"]
        assert stopped not in parent.on_death
        os.kill(stopped, signal.SIGCONT)
        parent.supervisor.kill()
        await parent.ended()


async def test_a_child_that_does_not_leave_within_its_grace_is_killed(stub: Callable[[str], ChildSpec]) -> None:
    async with watched(stub("ignores")) as parent:
        await eventually(lambda: parent.said("ignores SIGTERM"), "the child ignores SIGTERM")
        parent.supervisor.drain()
        await parent.ended()


async def test_a_child_that_fails_at_work_is_started_again_each_time(stub: Callable[[str], ChildSpec]) -> None:
    async with watched(stub("fails-at-work")) as parent:
        await eventually(lambda: len(parent.on_death) > MAX_FAILED_STARTS, "more failures than a start may have")
        assert not parent.task.done()


@pytest.mark.parametrize(("name", "code"), [("stands-still", -signal.SIGPROF), ("ignores", 130)])
async def test_no_child_outlives_its_parent(name: str, code: int) -> None:
    """Whatever it does when its end of the socket is closed, as the kernel does it when the parent is killed."""
    ours, theirs = socket.socketpair()
    with ours:
        command = (sys.executable, "-m", stub_child.__name__, str(theirs.fileno()), name)
        process = await asyncio.create_subprocess_exec(*command, pass_fds=(theirs.fileno(),))
        theirs.close()
        ours.sendall(b"\n")
        await eventually(PulseReader(ours).read, "its first beat")
    async with asyncio.timeout(30):
        assert await process.wait() == code


async def test_a_worker_that_gets_sigterm_from_outside_drains_and_is_started_again(
    redis: Redis, waiting_worker: ChildSpec
) -> None:
    async with watched(waiting_worker) as parent:
        await eventually(lambda: parent.said("joined"), "the worker has joined")
        before = parent.supervisor.pids["worker-1"]
        os.kill(before, signal.SIGTERM)
        await eventually(lambda: sum("joined" in line for line in parent.lines) == 2, "its successor has joined")
        assert parent.said("left")
        assert parent.supervisor.pids["worker-1"] != before
        parent.supervisor.drain()
        await parent.ended()


async def test_no_secret_stands_in_the_list_of_processes() -> None:
    secret = ChildSpec("worker", "worker-1", "redis://:s3cret@127.0.0.1:1/0", "postgresql://u:s3cret@127.0.0.1:1/x")
    async with watched(secret) as parent:
        await eventually(lambda: parent.said("waits"), "the worker waits for Redis")
        arguments = psutil.Process(parent.supervisor.pids["worker-1"]).cmdline()
        assert "crawler.local.child" in arguments
        assert not any("s3cret" in argument for argument in arguments)
        assert not parent.said("s3cret")
