"""Starts child processes, starts again what dies, and passes on the wish to leave."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import TypeAlias

from coordinator.errors import EpochLost, ShardcrawlError, UsageError
from coordinator.tasks import cancel_and_wait
from crawler.local.child import EPOCH_LOST, ERROR, FAILPOINT_VARIABLE, INTERRUPTED, ChildSpec

logger = logging.getLogger(__name__)

# What a child's exit code says, beside its last line.
ERRORS: Mapping[int, type[ShardcrawlError]] = {1: ShardcrawlError, 2: UsageError, EPOCH_LOST: EpochLost}
FIRST_WAIT = 0.1
LONGEST_WAIT = 5.0
# A child that lived this long did not fail at its start: its successor is started without a wait.
SETTLED = 5.0
# So many errors at the start, one after the other, are a fault that no new start will heal. Kills do not count.
MOST_FAILURES = 3


OnDeath: TypeAlias = Callable[[int], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class ChildPlan:
    """One child: what it does, whether it may be started again, and whether it reads the user's standard input."""

    spec: ChildSpec
    restart: bool = True
    reads_input: bool = False


@dataclass(slots=True)
class _Child:
    plan: ChildPlan
    process: asyncio.subprocess.Process | None = None
    last_error: str | None = None
    last_line: str = ""
    waits: float = FIRST_WAIT
    failures: int = 0
    lives: int = 0


class Supervisor:
    """The parent of one machine's workers and coordinator; `show` gets each log line of theirs,
    `environ` is what they inherit, `on_death` hears of each
    process that died."""

    def __init__(
        self,
        plans: Sequence[ChildPlan],
        show: Callable[[str], None],
        environ: Mapping[str, str],
        on_death: OnDeath | None = None,
    ) -> None:
        self._environ = dict(environ)
        self._children = [_Child(plan) for plan in plans]
        self._show = show
        self._on_death = on_death
        self._draining = False

    @property
    def pids(self) -> dict[str, int]:
        """The children that live, by name."""
        return {
            child.plan.spec.who: child.process.pid
            for child in self._children
            if child.process is not None and child.process.returncode is None
        }

    async def run(self) -> None:
        """Return when every child has ended its work. Raises ShardcrawlError with the words of a child that cannot
        do its work."""
        tasks = [asyncio.create_task(self._keep(child), name=child.plan.spec.who) for child in self._children]
        try:
            await asyncio.gather(*tasks)
        finally:
            await cancel_and_wait(tasks)

    def drain(self) -> None:
        """Ask every child to finish what is in flight and leave; none is started again."""
        self._draining = True
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End every child at once."""
        self._draining = True
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        for child in self._children:
            if child.process is not None and child.process.returncode is None:
                child.process.send_signal(number)

    async def _keep(self, child: _Child) -> None:
        who = child.plan.spec.who
        while not self._draining:
            began = monotonic()
            code = await self._live(child)
            if code == 0 or self._draining:
                return
            if child.process is not None and self._on_death is not None:
                await self._on_death(child.process.pid)
            if code in ERRORS and child.last_error is not None:
                raise ERRORS[code](child.last_error)
            if not child.plan.restart:
                raise ShardcrawlError(f"{who} {_ending(code)} while it read standard input; run the same command again")
            child.failures = child.failures + 1 if code > 0 and monotonic() - began < SETTLED else 0
            if child.failures >= MOST_FAILURES:
                raise ShardcrawlError(f"{who} {_ending(code)} {MOST_FAILURES} times at its start: {child.last_line}")
            child.waits = FIRST_WAIT if monotonic() - began > SETTLED else min(child.waits * 2, LONGEST_WAIT)
            logger.warning("%s %s; starts again", who, _ending(code))
            await asyncio.sleep(child.waits)

    async def _live(self, child: _Child) -> int:
        """One life of a child; returns its exit code, negative for a signal."""
        child.last_error = None
        child.lives += 1
        read_end, write_end = os.pipe()
        try:
            child.process = process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "crawler.local.child",
                str(read_end),
                child.plan.spec.who,  # for whoever looks at the list of processes
                pass_fds=(read_end,),
                stdin=None if child.plan.reads_input else asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env=self._environ if child.lives == 1 else _without_crash(self._environ),
                start_new_session=True,  # the terminal's Ctrl-C reaches this process alone, which asks for a drain
            )
        except BaseException:
            os.close(write_end)
            raise
        finally:
            os.close(read_end)
        try:
            with suppress(BrokenPipeError):  # it died before it read; its exit code says the rest
                os.write(write_end, child.plan.spec.packed())
            if self._draining:
                process.terminate()
            await self._relay(child, process)
            return await process.wait()
        except asyncio.CancelledError:
            await _end(process)
            raise
        finally:
            os.close(write_end)

    async def _relay(self, child: _Child, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        while True:
            try:
                line = (await process.stderr.readline()).decode(errors="replace").rstrip("\n")
            except ValueError:
                continue  # a line longer than the reader's buffer was dropped
            if not line and process.stderr.at_eof():
                return
            if line.startswith(ERROR):
                child.last_error = line.removeprefix(ERROR)
            else:
                child.last_line = line.strip() or child.last_line
                self._show(line)


def _without_crash(environ: Mapping[str, str]) -> dict[str, str]:
    """A child that crashed where a test wanted it is left alone from then on."""
    return {name: value for name, value in environ.items() if name != FAILPOINT_VARIABLE}


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
        await process.wait()


def _ending(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return "gave up its drain" if code == INTERRUPTED else f"ended with exit code {code}"
