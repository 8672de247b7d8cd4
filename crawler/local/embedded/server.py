"""One server process of ours, from its spawn to its last signal, and those that a killed run left behind."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import logging
import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum
from functools import partial
from pathlib import Path
from typing import ClassVar

import psutil

from coordinator.errors import ShardcrawlError
from crawler.local.embedded.account import RunAs
from crawler.local.embedded.folder import usable

logger = logging.getLogger(__name__)

START_SECONDS = 120.0  # of silence
TELL_SECONDS = 2.0
# Servers see nothing of the user's environment: PGPORT and its kin would change what they do.
ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


class Readiness(Enum):
    """What a server says when it is asked whether it is there."""

    READY = "ready"
    LOADING = "loading"
    SILENT = "silent"


class StartError(ShardcrawlError):
    """The server ended instead of answering."""


class Server(ABC):
    """A server on `data/<name>`, logging to `data/<name>.log`, spawned as our child in a session of its own."""

    name: ClassVar[str]
    executable: ClassVar[str]
    folder_flag: ClassVar[str]
    endings: ClassVar[Sequence[tuple[signal.Signals, float]]]  # signals to stop it, each with the seconds it may take

    def __init__(self, data: Path, sockets: Path) -> None:
        self.data = data
        self.folder = data / self.name
        self.log = data / f"{self.name}.log"
        self.sockets = sockets
        self._process: subprocess.Popen[bytes] | None = None
        self._logged_before = 0

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients find the server; the same after every restart."""

    @abstractmethod
    async def prepare(self) -> None:
        """Bring the folders into a state that the server can start on."""

    @abstractmethod
    def command(self) -> Sequence[str]:
        """The server's command line."""

    @abstractmethod
    async def readiness(self) -> Readiness:
        """Ask the server whether it is ready for clients."""

    def run_as(self) -> RunAs:
        """As whom the server runs."""
        return RunAs()

    @property
    def pid(self) -> int | None:
        """The process id, None before the first spawn."""
        return self._process.pid if self._process else None

    @property
    def ending(self) -> str | None:
        """How the process ended, None while it lives."""
        code = self._process.poll() if self._process else None
        if code is None:
            return None
        return f"exit code {code}" if code >= 0 else f"signal {-code}"

    async def spawn(self) -> None:
        """Start the server where no other one is left, without waiting until it answers."""
        await self.stop_leftovers()
        await self.prepare()
        self._logged_before = self.log.stat().st_size if self.log.exists() else 0
        self._process = run(self.command(), self.log, self.run_as())

    async def ready(self) -> None:
        """Wait until the server answers, however long it loads its data.

        Raises StartError with its last words when it ends, ShardcrawlError when it is silent for two minutes.
        """
        started = time.monotonic()
        deadline = started + START_SECONDS
        told = False
        while (readiness := await self.readiness()) is not Readiness.READY:
            if self.ending:
                complaint = last_words(self.log, self._logged_before)
                raise StartError(f"{self.name} does not start ({self.ending}): {complaint}; see {self.log}")
            if readiness is Readiness.LOADING:
                deadline = time.monotonic() + START_SECONDS
                if not told and time.monotonic() - started > TELL_SECONDS:
                    logger.info("%s is loading its data in %s", self.name, self.folder)
                    told = True
            if time.monotonic() > deadline:
                raise ShardcrawlError(f"{self.name} does not answer within {START_SECONDS:.0f} s; see {self.log}")
            await asyncio.sleep(0.02)

    async def stop(self) -> None:
        """End the server and reap it; nothing when it does not run."""
        if (process := self._process) is not None:
            await end(self.name, process.pid, process.send_signal, lambda: process.poll() is not None, self.endings)

    def abandon(self) -> None:
        """Ask the server to stop, and do not wait for it."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(self.endings[0][0])

    async def stop_leftovers(self) -> None:
        """End what a killed run left on this folder: a second server on the same files would ruin them.

        To be called while no child of ours lives.
        """
        for process in [found for found in psutil.process_iter() if self.runs(found.pid, self.data)]:
            logger.warning("stopping %s (pid %s), left by a run that was killed", self.name, process.pid)
            try:
                await end_found(self.name, process, self.endings)
            except psutil.AccessDenied as error:
                raise ShardcrawlError(
                    f"{self.name} (pid {process.pid}) of another user still runs on {self.data}; stop it first"
                ) from error

    @classmethod
    def runs(cls, pid: int, data: Path) -> bool:
        """Whether this process, told by its command line, is this server on this data folder."""
        words = command_line(pid)
        named = any(Path(word).name == cls.executable for word in words)
        return named and (cls.folder_flag, str(data / cls.name)) in itertools.pairwise(words)


def binary(package: str, *path: str) -> Path:
    """A program inside an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (found := Path(place, *path).resolve()).is_file():
            return found
    raise ShardcrawlError(
        f"{path[-1]} of the package {package} is not installed; install it, or name running services with "
        "--redis and --database"
    )


def run(command: Sequence[str], log: Path, run_as: RunAs) -> subprocess.Popen[bytes]:
    """Start a command, logging to `log`, in a session of its own: a terminal's Ctrl-C does not reach it."""
    with usable(log.parent):
        output = log.open("ab")
    account = run_as.account
    try:
        return subprocess.Popen(  # noqa: S603  (our own words, and no shell)
            [*run_as.prefix, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env=ENVIRONMENT,
            start_new_session=True,
            umask=0o077,
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
        )
    except OSError as error:
        raise ShardcrawlError(f"cannot start {command[0]}: {error.strerror or error}") from error
    finally:
        output.close()


def last_words(log: Path, since: int) -> str:
    """The line that tells best why a program ended: its last FATAL or error line after byte `since`, or its last."""
    with log.open("rb") as file:
        file.seek(max(since, log.stat().st_size - 16_384))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    grave = [line for line in lines if "FATAL:" in line or "PANIC:" in line or "error:" in line]
    return (grave or lines or ["it said nothing"])[-1]


async def end(
    name: str,
    pid: int,
    send: Callable[[int], None],
    gone: Callable[[], bool],
    endings: Sequence[tuple[signal.Signals, float]],
) -> None:
    """Send each signal in turn until the process is gone."""
    for step, seconds in endings:
        if gone():
            return
        if step is signal.SIGKILL:
            logger.warning("%s (pid %s) does not stop when asked; killing it", name, pid)
        send(step)
        deadline = time.monotonic() + seconds
        while not gone():
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(0.02)
    if not gone():
        raise ShardcrawlError(f"{name} (pid {pid}) does not end, not even by SIGKILL; restart the machine")


def command_line(pid: int) -> list[str]:
    """The words of a process's command line; none when it is gone or not to be looked at."""
    try:
        return list(psutil.Process(pid).cmdline())
    except psutil.Error:
        return []


async def end_found(name: str, process: psutil.Process, endings: Sequence[tuple[signal.Signals, float]]) -> None:
    """Like `end`, for a process that is not our child: somebody else reaps it."""
    with suppress(psutil.NoSuchProcess):
        await end(name, process.pid, process.send_signal, partial(_gone, process), endings)


def _gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
