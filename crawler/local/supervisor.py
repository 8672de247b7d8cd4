"""Starts child processes, restarts those that die, and passes a drain on to all of them."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from time import monotonic
from typing import TYPE_CHECKING, TypeAlias

import psutil

from coordinator.errors import EpochLost, RunCancelled, ShardcrawlError, UsageError
from coordinator.source import STANDARD_INPUT
from coordinator.tasks import cancel_and_wait
from crawler.corpus import is_rereadable
from crawler.job.job import Job
from crawler.local.child_spec import EPOCH_LOST_EXIT_CODE, ERROR_PREFIX, FAILPOINT_VARIABLE, ChildSpec, ending_words
from crawler.local.events import Listener
from crawler.local.services import Addresses
from crawler.telemetry import logs
from crawler.telemetry.pulse import PulseReader

if TYPE_CHECKING:
    from crawler.local import child  # noqa: F401 - an edge of the import graph: it is started, see CHILD_MODULE

logger = logging.getLogger(__name__)

# Not imported here: that would cost each command a tenth of a second.
CHILD_MODULE = f"{__package__}.child"

# A child that ends with one of these exit codes and an error line is not restarted: the parent raises the error.
ERRORS_BY_EXIT_CODE: Mapping[int, type[ShardcrawlError]] = {
    1: ShardcrawlError,
    2: UsageError,
    EPOCH_LOST_EXIT_CODE: EpochLost,
    RunCancelled.exit_code: RunCancelled,
}
FIRST_RESTART_WAIT_SECONDS = 0.1
MAX_RESTART_WAIT_SECONDS = 5.0
# After a child that lived no longer, each wait before a restart is twice as long.
SHORT_LIFE_SECONDS = 5.0
# So many children in a row that failed before they were at work end the command. One that was killed did not fail.
MAX_FAILED_STARTS = 3
# A child ends by itself when its grace is over. If it cannot, it is killed so much later.
GRACE_SLACK_SECONDS = 2.0

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
    pulse: PulseReader | None = None
    killed_for: str | None = None


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
        self._then: ShardcrawlError | None = None

    @property
    def pids(self) -> dict[str, int]:
        """The process ids of the children that live, by their names."""
        return {
            child.spec.name: child.process.pid
            for child in self._children
            if child.process is not None and child.process.returncode is None
        }

    @property
    def silent(self) -> list[str]:
        """The names of the children whose event loop seems to stand still."""
        return [child.spec.name for child in self._children if child.pulse is not None and child.pulse.is_silent]

    @property
    def draining(self) -> bool:
        """Whether the children were asked to leave."""
        return self._draining

    @property
    def interrupted(self) -> bool:
        """Whether they were asked to leave for good."""
        return self._draining and self._then is None

    async def run(self) -> None:
        """Return when every child has ended its work.

        Raises the ShardcrawlError of a child, of one that cannot be kept running, or of `drain`.
        """
        tasks = [asyncio.create_task(self._keep_alive(child), name=child.spec.name) for child in self._children]
        watch = asyncio.create_task(self._watch(), name="watch")
        try:
            await asyncio.gather(*tasks)
        finally:
            await cancel_and_wait([watch, *tasks])
        if self._then is not None:
            raise self._then

    def drain(self, then: ShardcrawlError | None = None) -> None:
        """Ask every child to finish what is in flight and leave; then `run` raises `then`, of the last drain."""
        self._draining, self._then = True, then
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End every child at once."""
        self._draining = True
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        for child in self._children:
            if child.process is not None and child.process.returncode is None:
                child.process.send_signal(number)

    async def _watch(self) -> None:
        """Once a second, kill each child whose event loop is silent, or whose drain takes longer than its grace."""
        seconds_of_drain = 0
        while True:
            await asyncio.sleep(1.0)
            seconds_of_drain += self._draining
            for child in self._children:
                process, pulse = child.process, child.pulse
                if process is None or pulse is None or process.returncode is not None:
                    continue
                if not pulse.tick():
                    if _is_stopped(process.pid):
                        pulse.grant()
                    else:
                        child.killed_for = f"stood still for {pulse.holds_seconds} s and was killed"
                elif seconds_of_drain > child.spec.grace_seconds + GRACE_SLACK_SECONDS:
                    child.killed_for = "was killed after its grace"
                if child.killed_for:
                    _kill_with_its_own(process.pid)

    async def _keep_alive(self, child: _Child) -> None:
        """Run a child again and again, until it ends its work or the supervisor drains."""
        name = child.spec.name
        while not self._draining:
            began = monotonic()
            code = await self._run_once(child)
            if code == 0 or self._draining:
                return
            ending = child.killed_for or ending_words(code)
            if child.process is not None and self._on_death is not None:
                await self._on_death(child.process.pid)
            if code in ERRORS_BY_EXIT_CODE and child.last_error is not None:
                raise ERRORS_BY_EXIT_CODE[code](child.last_error)
            if not child.spec.restart:
                raise ShardcrawlError(
                    f"{name} {ending} while it read standard input or a pipe; run the same command again"
                )
            failed_at_start = code in ERRORS_BY_EXIT_CODE and child.pulse is not None and not child.pulse.begun
            child.failed_starts = child.failed_starts + 1 if failed_at_start else 0
            if child.failed_starts >= MAX_FAILED_STARTS:
                raise ShardcrawlError(f"{name} {ending} {MAX_FAILED_STARTS} times at its start: {child.last_line}")
            longer = min(child.wait_seconds * 2, MAX_RESTART_WAIT_SECONDS)
            lived_short = monotonic() - began <= SHORT_LIFE_SECONDS
            child.wait_seconds = longer if lived_short else FIRST_RESTART_WAIT_SECONDS
            logger.warning("%s %s; starts again", name, ending, extra={"event": "process_restarted"})
            await asyncio.sleep(child.wait_seconds)

    async def _run_once(self, child: _Child) -> int:
        """One process of a child, from start to end; returns its exit code, negative for a signal."""
        child.last_error = child.killed_for = child.pulse = None
        child.starts += 1
        ours, theirs = socket.socketpair()
        try:
            child.process = process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # a folder or file in the working folder is never imported instead of ours
                "-m",
                CHILD_MODULE,
                str(theirs.fileno()),
                child.spec.name,  # for people who look at the list of processes
                pass_fds=(theirs.fileno(),),
                stdin=None if child.spec.reads_input else asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env=self._environ if child.starts == 1 else _without_failpoint(self._environ),
                start_new_session=True,  # the terminal's Ctrl-C then reaches the parent alone, which asks for a drain
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        try:
            with suppress(OSError):  # the child died before it read; its exit code is handled below
                ours.sendall(child.spec.encode())
            child.pulse = PulseReader(ours)
            if self._draining:
                process.terminate()
            relay = asyncio.create_task(self._relay(child, process))
            try:
                code = await process.wait()
                child.pulse.read()
                _kill_with_its_own(process.pid)  # its parser's process has the same standard error
                await relay
            finally:
                await cancel_and_wait([relay])
            return code
        except asyncio.CancelledError:
            await _kill_and_wait(process)
            raise
        finally:
            ours.close()

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
    _kill_with_its_own(process.pid)
    await process.wait()


def _kill_with_its_own(pid: int) -> None:
    """Kill a child and every process that it started, unless that left the child's session."""
    with suppress(ProcessLookupError, PermissionError):  # macOS says EPERM of a group of zombies
        os.killpg(pid, signal.SIGKILL)


def _is_stopped(pid: int) -> bool:
    """Whether somebody stopped the process, or debugs it."""
    with suppress(psutil.Error):
        return psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    return False


def children_of_run(addresses: Addresses, job: Job, listener: Listener, workers: int) -> list[ChildSpec]:
    """The specs of a run's coordinator and of so many workers."""
    coordinator = ChildSpec(
        "coordinator",
        "coordinator",
        addresses.redis,
        addresses.database,
        run=job.run.name,
        document=job.document,
        folder=job.folder,
        log_level=listener.log_level,
        line_format=logs.line_format(),
        grace_seconds=job.run.grace,
        debug=listener.debug,
        # What a coordinator has read from a pipe is lost when it dies: a second one could not read it again.
        restart=is_rereadable(job),
        reads_input=job.source.path == STANDARD_INPUT,
    )
    worker = replace(coordinator, role="worker", restart=True, reads_input=False)
    return [coordinator, *(replace(worker, name=f"worker-{number + 1}") for number in range(workers))]
