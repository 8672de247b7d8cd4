"""Starts and stops one server process, and stops those that a killed run left behind."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import shutil
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from enum import Enum
from functools import partial
from pathlib import Path
from typing import ClassVar

import psutil

from coordinator.errors import ShardcrawlError
from crawler.local.embedded.account import Account, hand_over, program_for
from crawler.local.embedded.folder import DataFolder, entry_path, folder_errors

logger = logging.getLogger(__name__)

# A server that starts may stay silent, neither ready nor loading its data, for this long.
MAX_SILENCE_SECONDS = 120.0
# How long loading takes before it is logged.
LOADING_NOTICE_SECONDS = 2.0
POLL_SECONDS = 0.02
LOG_TAIL_BYTES = 16_384
# Servers get nothing of the user's environment: variables like PGPORT would change what they do.
SERVER_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


class Readiness(Enum):
    """Whether a server can be used. To a SILENT one nobody can connect yet."""

    READY = "ready"
    LOADING = "loading"
    SILENT = "silent"


class StartError(ShardcrawlError):
    """The server ended before it was ready."""


class Server(ABC):
    """A server on `data/<name>`, logging to `data/<name>.log`, started as our child in a session of its own.

    It runs as `account`, or as ourselves without one, with its socket in a folder of its own below `sockets`.
    """

    name: ClassVar[str]
    executables: ClassVar[Sequence[str]]
    # Sent one after the other until it ends, each with the seconds that it may take.
    stop_signals: ClassVar[Sequence[tuple[signal.Signals, float]]]

    def __init__(self, data: DataFolder, sockets: Path, account: Account | None) -> None:
        self.data = data
        self.folder = data.path / self.name
        self.log = data.path / f"{self.name}.log"
        self.socket_folder = sockets / self.name
        self.account = account
        self._programs = sockets / "programs" / self.name
        self._process: subprocess.Popen[bytes] | None = None
        self._logged_before = 0

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients find the server; the same after every restart."""

    @abstractmethod
    async def prepare(self) -> Path:
        """Bring the folder into a state in which the server can start; returns the server's program."""

    @abstractmethod
    def tidy(self, folder: int) -> None:
        """Remove from the server's open folder what a killed server left and a new one cannot use."""

    @abstractmethod
    def command(self, program: Path, folder: str, sockets: str) -> Sequence[str]:
        """The server's command line; it has `self.folder` in it, by which a leftover is recognised.

        `folder` and `sockets` are names under which the server reaches its folder and that of its socket.
        """

    @abstractmethod
    async def readiness(self) -> Readiness:
        """Whether the server is ready for clients now."""

    @property
    def pid(self) -> int | None:
        """The process id, None before the first start."""
        return self._process.pid if self._process else None

    @property
    def ending(self) -> str | None:
        """How the process ended, None while it lives."""
        code = self._process.poll() if self._process else None
        if code is None:
            return None
        return f"exit code {code}" if code >= 0 else f"signal {-code}"

    async def spawn(self) -> None:
        """Stop servers that a killed run left, and start this one; it need not be ready yet. Raises ShardcrawlError."""
        await self.stop_leftovers()
        program = await self.prepare()
        self._logged_before = self.log.stat().st_size if self.log.exists() else 0
        with ExitStack() as opened:
            folder = self.data.open_folder(self.name)
            opened.callback(os.close, folder)
            self.tidy(folder)
            sockets = self._make_socket_folder()
            opened.callback(os.close, sockets)
            with folder_errors(self.folder):
                hand_over(folder, self.account)
                hand_over(sockets, self.account)
            names = entry_path(folder, self.folder), entry_path(sockets, self.socket_folder)
            self._process = self.launch(self.command(program, *names), self.account, folder, sockets)

    def launch(self, command: Sequence[str], account: Account | None, *folders: int) -> subprocess.Popen[bytes]:
        """Start a command in a session of its own, so that a terminal's Ctrl-C does not reach it.

        It writes to the server's log, runs as `account` if there is one, and inherits the open `folders`. Raises
        ShardcrawlError.
        """
        log = self.data.open_file(self.log.name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            return subprocess.Popen(  # noqa: S603  (arguments of ours, and no shell)
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=SERVER_ENVIRONMENT,
                start_new_session=True,
                umask=0o077,
                user=account.uid if account else None,
                group=account.gid if account else None,
                extra_groups=[] if account else None,
                pass_fds=folders,
            )
        except OSError as error:
            hint = "; set TMPDIR to a folder that other users can enter and that programs run in" if account else ""
            raise ShardcrawlError(f"cannot start {command[0]}: {error.strerror or error}{hint}") from error
        finally:
            os.close(log)

    def program(self, installed: Path, site: Path, parts: Sequence[Path]) -> Path:
        """`installed`, or a copy of it and its `parts` below `site`, where the server's account can run it."""
        with folder_errors(self._programs):
            return program_for(self.account, installed, site, parts, self._programs)

    @abstractmethod
    def fill_socket_folder(self) -> None:
        """Put into the new folder of the socket what else the server needs there."""

    def _make_socket_folder(self) -> int:
        """Make it anew: the lock of a killed server would prevent the start if another process has its pid by now."""
        with folder_errors(self.socket_folder):
            shutil.rmtree(self.socket_folder, ignore_errors=True)
            self.socket_folder.mkdir(mode=0o700)
            self.fill_socket_folder()
            return os.open(self.socket_folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)

    async def wait_until_ready(self) -> None:
        """Wait until the server is ready, however long it loads its data.

        Raises StartError with the reason from its log when it ends, ShardcrawlError when it is silent for two minutes.
        """
        started = time.monotonic()
        deadline = started + MAX_SILENCE_SECONDS
        logged = False
        while (readiness := await self.readiness()) is not Readiness.READY:
            if self.ending:
                failure = failure_in_log(self.log, self._logged_before)
                raise StartError(f"{self.name} does not start ({self.ending}): {failure}; see {self.log}")
            if readiness is Readiness.LOADING:
                deadline = time.monotonic() + MAX_SILENCE_SECONDS
                if not logged and time.monotonic() - started > LOADING_NOTICE_SECONDS:
                    logger.info("%s is loading its data in %s", self.name, self.folder)
                    logged = True
            if time.monotonic() > deadline:
                raise ShardcrawlError(f"{self.name} does not answer within {MAX_SILENCE_SECONDS:.0f} s; see {self.log}")
            await asyncio.sleep(POLL_SECONDS)

    async def stop(self) -> None:
        """Stop the server and wait for its end; does nothing when it is not running. Raises ShardcrawlError."""
        if (process := self._process) is not None:
            await stop_process(
                self.name, process.pid, process.send_signal, lambda: process.poll() is not None, self.stop_signals
            )

    def abandon(self) -> None:
        """Ask the server to stop, and do not wait for it."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(self.stop_signals[0][0])

    async def stop_leftovers(self) -> None:
        """Stop the servers that a killed run left on this folder: two servers on the same files would damage them.

        Call it only while no child of ours lives. Raises ShardcrawlError when one cannot be stopped.
        """
        for process in [found for found in psutil.process_iter() if self.runs(found.pid, self.data.path)]:
            logger.warning("stopping %s (pid %s), left by a run that was killed", self.name, process.pid)
            try:
                await stop_found_process(self.name, process, self.stop_signals)
            except psutil.AccessDenied as error:
                raise ShardcrawlError(
                    f"{self.name} (pid {process.pid}) of another user still runs on {self.data.path}; stop it first"
                ) from error

    @classmethod
    def runs(cls, pid: int, data: Path) -> bool:
        """Whether this process is this server on this data folder, by its command line."""
        words, folder = command_line(pid), str(data / cls.name)
        on_folder = any(word.rpartition("=")[2] == folder for word in words)
        return on_folder and any(Path(word).name in cls.executables for word in words)


def binary(package: str, *path: str) -> Path:
    """The path of a program inside an installed package, which is not imported. Raises ShardcrawlError."""
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (found := Path(place, *path).resolve()).is_file():
            return found
    raise ShardcrawlError(
        f"{path[-1]} of the package {package} is not installed; install it, or name running services with "
        "--redis and --database"
    )


def failure_in_log(log: Path, since: int) -> str:
    """Why a program ended: its last FATAL, PANIC or error line after byte `since` of its log, or its last line."""
    with log.open("rb") as file:
        file.seek(max(since, log.stat().st_size - LOG_TAIL_BYTES))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "FATAL:" in line or "PANIC:" in line or "error:" in line]
    return (errors or lines or ["it said nothing"])[-1]


async def stop_process(
    name: str,
    pid: int,
    send: Callable[[int], None],
    is_gone: Callable[[], bool],
    stop_signals: Sequence[tuple[signal.Signals, float]],
) -> None:
    """Send each signal in turn, and wait its seconds, until the process is gone. Raises ShardcrawlError if it stays."""
    for number, seconds in stop_signals:
        if is_gone():
            return
        if number is signal.SIGKILL:
            logger.warning("%s (pid %s) does not stop when asked; killing it", name, pid)
        send(number)
        deadline = time.monotonic() + seconds
        while not is_gone():
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(POLL_SECONDS)
    if not is_gone():
        raise ShardcrawlError(f"{name} (pid {pid}) does not end, not even by SIGKILL; restart the machine")


def command_line(pid: int) -> list[str]:
    """The arguments of a process; none when it is gone or we may not see them."""
    try:
        # A process of Postgres overwrites its arguments with its title, and fills the rest with hundreds of empty ones.
        return [word for word in psutil.Process(pid).cmdline() if word]
    except psutil.Error:
        return []


async def stop_found_process(
    name: str, process: psutil.Process, stop_signals: Sequence[tuple[signal.Signals, float]]
) -> None:
    """Like `stop_process`, for a process that is not our child: it may stay a zombie, which counts as gone."""
    with suppress(psutil.NoSuchProcess):
        await stop_process(name, process.pid, process.send_signal, partial(_is_gone, process), stop_signals)


def _is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
