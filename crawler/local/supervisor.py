"""Starts child processes, restarts those that die, and passes a drain on to all of them."""

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
from crawler.local import child as child_module
from crawler.local.child_spec import (
    EPOCH_LOST_EXIT_CODE,
    ERROR_PREFIX,
    FAILPOINT_VARIABLE,
    INTERRUPTED_EXIT_CODE,
    ChildSpec,
)

logger = logging.getLogger(__name__)

# A child that ends with one of these exit codes and an error line is not restarted: the parent raises the error.
ERRORS_BY_EXIT_CODE: Mapping[int, type[ShardcrawlError]] = {
    1: ShardcrawlError,
    2: UsageError,
    EPOCH_LOST_EXIT_CODE: EpochLost,
}
FIRST_RESTART_WAIT_SECONDS = 0.1
MAX_RESTART_WAIT_SECONDS = 5.0
# A child that ended within this time failed at its start. Then each wait before a restart is twice as long.
CHILD_START_SECONDS = 5.0
# This many failures at the start in a row end the command. A child that was killed did not fail.
MAX_FAILED_STARTS = 3

OnDeath: TypeAlias = Callable[[int], Awaitable[None]]


@dataclass(slots=True)
class _Child:
    spec: ChildSpec
    process: asyncio.subprocess.Process | None = None
    last_error: str | None = None
    last_line: str = ""
    wait_seconds: float = FIRST_RESTART_WAIT_SECONDS
    failed_starts: int = 0
    starts: int = 0


class Supervisor:
    """The parent of a command's children.

    `on_line` gets each of their log lines, `on_death` the process id of each one that died; `environ` is what they
    inherit.
    """

    def __init__(
        self,
        specs: Sequence[ChildSpec],
        on_line: Callable[[str], None],
        environ: Mapping[str, str],
        on_death: OnDeath | None = None,
    ) -> None:
        self._environ = dict(environ)
        self._children = [_Child(spec) for spec in specs]
        self._on_line = on_line
        self._on_death = on_death
        self._draining = False

    @property
    def pids(self) -> dict[str, int]:
        """The process ids of the children that live, by their names."""
        return {
            child.spec.name: child.process.pid
            for child in self._children
            if child.process is not None and child.process.returncode is None
        }

    async def run(self) -> None:
        """Return when every child has ended its work.

        Raises the ShardcrawlError that a child reports, or one that says that a child cannot be kept running.
        """
        tasks = [asyncio.create_task(self._keep_alive(child), name=child.spec.name) for child in self._children]
        try:
            await asyncio.gather(*tasks)
        finally:
            await cancel_and_wait(tasks)

    def drain(self) -> None:
        """Ask every child to finish what is in flight and leave; none is restarted."""
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

    async def _keep_alive(self, child: _Child) -> None:
        """Run a child again and again, until it ends its work or the supervisor drains."""
        name = child.spec.name
        while not self._draining:
            began = monotonic()
            code = await self._run_once(child)
            if code == 0 or self._draining:
                return
            if child.process is not None and self._on_death is not None:
                await self._on_death(child.process.pid)
            if code in ERRORS_BY_EXIT_CODE and child.last_error is not None:
                raise ERRORS_BY_EXIT_CODE[code](child.last_error)
            if not child.spec.restart:
                raise ShardcrawlError(
                    f"{name} {_ending(code)} while it read standard input; run the same command again"
                )
            at_start = monotonic() - began <= CHILD_START_SECONDS
            child.failed_starts = child.failed_starts + 1 if code > 0 and at_start else 0
            if child.failed_starts >= MAX_FAILED_STARTS:
                raise ShardcrawlError(
                    f"{name} {_ending(code)} {MAX_FAILED_STARTS} times at its start: {child.last_line}"
                )
            longer = min(child.wait_seconds * 2, MAX_RESTART_WAIT_SECONDS)
            child.wait_seconds = longer if at_start else FIRST_RESTART_WAIT_SECONDS
            logger.warning("%s %s; starts again", name, _ending(code))
            await asyncio.sleep(child.wait_seconds)

    async def _run_once(self, child: _Child) -> int:
        """One process of a child, from start to end; returns its exit code, negative for a signal."""
        child.last_error = None
        child.starts += 1
        read_end, write_end = os.pipe()
        try:
            child.process = process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                child_module.__name__,
                str(read_end),
                child.spec.name,  # for people who look at the list of processes
                pass_fds=(read_end,),
                stdin=None if child.spec.reads_input else asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env=self._environ if child.starts == 1 else _without_failpoint(self._environ),
                start_new_session=True,  # the terminal's Ctrl-C then reaches the parent alone, which asks for a drain
            )
        except BaseException:
            os.close(write_end)
            raise
        finally:
            os.close(read_end)
        try:
            with suppress(BrokenPipeError):  # the child died before it read; its exit code is handled below
                os.write(write_end, child.spec.encode())
            if self._draining:
                process.terminate()
            await self._relay(child, process)
            return await process.wait()
        except asyncio.CancelledError:
            await _kill_and_wait(process)
            raise
        finally:
            os.close(write_end)

    async def _relay(self, child: _Child, process: asyncio.subprocess.Process) -> None:
        """Pass the child's log lines on and keep its error line, until its standard error is closed."""
        assert process.stderr is not None
        while True:
            try:
                line = (await process.stderr.readline()).decode(errors="replace").rstrip("\n")
            except ValueError:
                continue  # a line longer than the reader's buffer was dropped
            if not line and process.stderr.at_eof():
                return
            if line.startswith(ERROR_PREFIX):
                child.last_error = line.removeprefix(ERROR_PREFIX)
            else:
                child.last_line = line.strip() or child.last_line
                self._on_line(line)


def _without_failpoint(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child that is restarted: a failpoint is for the first process only."""
    return {name: value for name, value in environ.items() if name != FAILPOINT_VARIABLE}


async def _kill_and_wait(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
        await process.wait()


def _ending(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return "gave up its drain" if code == INTERRUPTED_EXIT_CODE else f"ended with exit code {code}"
