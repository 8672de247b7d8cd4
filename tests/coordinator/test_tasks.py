"""Coroutines that live and end together."""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from coordinator.tasks import Background, cancel_and_wait, run_until_first_ends
from tests.waiting import eventually

pytestmark = pytest.mark.anyio


class Sleeper:
    """Sleeps until cancelled, and then takes a while to end."""

    def __init__(self) -> None:
        self.began = self.ended = False

    async def run(self) -> None:
        self.began = True
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(5):
                await asyncio.sleep(0)
            self.ended = True


async def nothing() -> None:
    await asyncio.sleep(0)


async def failing(error: Exception) -> None:
    await asyncio.sleep(0)
    raise error


async def test_when_the_first_returns_the_others_are_ended_before_it_goes_on() -> None:
    one, two = Sleeper(), Sleeper()
    await run_until_first_ends(one.run(), nothing(), two.run())
    assert one.began
    assert one.ended
    assert two.ended


async def test_when_the_first_fails_the_others_are_ended_and_its_error_is_raised() -> None:
    sleeper = Sleeper()
    with pytest.raises(LookupError, match="mine"):
        await run_until_first_ends(sleeper.run(), failing(LookupError("mine")))
    assert sleeper.ended


async def test_of_several_that_failed_at_once_the_first_argument_counts() -> None:
    with pytest.raises(LookupError):
        await run_until_first_ends(failing(LookupError()), failing(KeyError()))
    with pytest.raises(KeyError):
        await run_until_first_ends(nothing(), failing(KeyError()), failing(LookupError()))


async def test_what_fails_while_it_is_cancelled_hides_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def fails_at_its_end() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise LookupError

    with caplog.at_level(logging.ERROR):
        with pytest.raises(OSError, match="the cause"):
            await run_until_first_ends(fails_at_its_end(), failing(OSError("the cause")))
        await run_until_first_ends(fails_at_its_end(), nothing())
        gc.collect()
    assert not caplog.records, "no task is reported as forgotten"


async def test_cancelling_the_call_ends_all() -> None:
    one, two = Sleeper(), Sleeper()
    call = asyncio.create_task(run_until_first_ends(one.run(), two.run()))
    await eventually(lambda: one.began and two.began, "both to begin")
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert one.ended
    assert two.ended


async def test_a_swallowed_cancellation_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.tasks.CANCEL_REPEAT_SECONDS", 0.01)
    swallowed = 0

    async def deaf() -> None:
        nonlocal swallowed
        while swallowed < 3:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed += 1

    task = asyncio.create_task(deaf())
    await asyncio.sleep(0)
    async with asyncio.timeout(20):
        await cancel_and_wait([task])
    assert task.done()
    assert swallowed == 3


@pytest.mark.parametrize("body", [nothing, lambda: failing(LookupError())])
async def test_tasks_that_ended_already_are_no_trouble(body: Callable[[], object]) -> None:
    task: asyncio.Task[None] = asyncio.create_task(body())  # type: ignore[arg-type]
    await asyncio.wait([task])
    await cancel_and_wait([task])
    await cancel_and_wait([])


async def test_a_caller_that_is_cancelled_meanwhile_leaves_no_task_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.tasks.CANCEL_REPEAT_SECONDS", 0.01)
    swallowed = asyncio.Event()

    async def deaf_once() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            swallowed.set()
        await asyncio.Event().wait()

    inner = asyncio.create_task(deaf_once())
    await asyncio.sleep(0)
    outer = asyncio.create_task(cancel_and_wait([inner]))
    await swallowed.wait()
    outer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await outer
    assert inner.cancelled()


def test_a_loop_in_the_background_ends_its_tasks_and_then_finishes() -> None:
    sleeper, ended = Sleeper(), []

    async def finish() -> None:
        ended.append(sleeper.ended)

    background = Background(finish)
    threads = threading.active_count()
    future = background.start(sleeper.run())
    assert background.result(asyncio.sleep(0, "slept")) == "slept"
    background.close()
    background.close()
    assert (future.cancelled(), ended, threading.active_count()) == (True, [True], threads - 1)


def test_a_loop_in_the_background_that_nobody_closes_ends_with_its_program() -> None:
    """As that of a global generator does, which is closed when its module is torn down."""
    program = """if True:
        import asyncio
        from coordinator.tasks import Background
        async def finish():
            print("finished")
        def rows():
            background = Background(finish)
            try:
                yield background.result(asyncio.sleep(0, 1))
            finally:
                background.close()
        found = rows()
        next(found)
    """
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("finished\n", "", 0)
