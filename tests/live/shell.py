"""Starts `shardcrawl` as its users do: as a process in a folder, with real child processes and real signals."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from crawler.cli.inspect import write_rows
from crawler.local.embedded.redis import RedisServer
from crawler.local.services import Place, services
from tests.waiting import eventually

COMMAND_DEADLINE_SECONDS = 90.0


@dataclass(frozen=True, slots=True)
class CommandResult:
    """Exit code and output of a command that has ended."""

    code: int
    out: str
    err: str


class Running:
    """A command that runs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def end(self) -> CommandResult:
        """Wait until it ends. The test fails when that takes longer than the deadline."""
        ending = asyncio.create_task(self.process.communicate())
        if not (await asyncio.wait({ending}, timeout=COMMAND_DEADLINE_SECONDS))[0]:
            kill_tree(self.process.pid)
            pytest.fail(f"not ended after {COMMAND_DEADLINE_SECONDS:.0f} s:\n{(await ending)[1].decode()[-3000:]}")
        out, err = await ending
        assert self.process.returncode is not None
        return CommandResult(self.process.returncode, out.decode(), err.decode())

    def children(self, word: str) -> list[psutil.Process]:
        """Its living child processes of one kind.

        `word` is worker-1, worker- (all workers), coordinator, redis, postgres, or crawler.local.child (all that
        run our own code).
        """
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=False):
            try:
                line = child.cmdline()
                if child.status() == psutil.STATUS_ZOMBIE:
                    continue
            except psutil.Error:
                continue
            if "crawler.local.child" in line:
                matches = word == "crawler.local.child" or line[-1].startswith(word)
            else:
                matches = child.name() in (RedisServer.executables if word == "redis" else (word,))
            if matches:
                found.append(child)
        return found

    async def child(self, word: str) -> psutil.Process:
        """Wait for a child process of this kind, and return the first one."""
        await eventually(lambda: bool(self.children(word)), f"a {word} of process {self.process.pid}")
        return self.children(word)[0]

    def interrupt(self) -> None:
        """Send SIGINT, as Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)


class Shell:
    """Starts commands in one folder, in an environment without settings of shardcrawl, Redis or Postgres.

    Three settings differ from a new user's: upstreams on loopback are allowed, because every test's upstream is there,
    there is no polite default rate, and a command has one worker: a test that needs more says `--workers`. `new_data`
    makes the data folder before the first command that needs one. `on_host` are the words before each command that let
    it run on another host.
    """

    def __init__(
        self, folder: Path, new_data: Callable[[Path], None] | None = None, *, on_host: Sequence[str] = ()
    ) -> None:
        self.folder = folder
        self._on_host = on_host
        self.data = folder / "data"
        self._new_data = new_data
        self._started: list[asyncio.subprocess.Process] = []

    async def start(
        self, *arguments: str | Path, environ: Mapping[str, str] | None = None, stdin: int | None = None
    ) -> Running:
        """Start `shardcrawl ARGUMENTS`."""
        if self._new_data is not None and "DATABASE_URL" not in (environ or {}) and not self.data.exists():
            self._new_data(self.data)
        clean = {
            name: value
            for name, value in os.environ.items()
            if name not in ("REDIS_URL", "DATABASE_URL") and not name.startswith("SHARDCRAWL_")
        }
        process = await asyncio.create_subprocess_exec(
            *self._on_host,
            sys.executable,
            "-P",
            "-m",
            "crawler",
            *map(str, arguments),
            cwd=self.folder,
            env={
                **clean,
                "SHARDCRAWL_DATA": str(self.data),
                "SHARDCRAWL_ALLOW_PRIVATE": "127.0.0.0/8",
                "SHARDCRAWL_RATE": "none",
                "SHARDCRAWL_WORKERS": "1",
                **(environ or {}),
            },
            stdin=asyncio.subprocess.DEVNULL if stdin is None else stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        self._started.append(process)
        return Running(process)

    async def run(
        self, *arguments: str | Path, environ: Mapping[str, str] | None = None, code: int | None = 0
    ) -> CommandResult:
        """Run a command to its end. It must have this exit code; None allows any."""
        ended = await (await self.start(*arguments, environ=environ)).end()
        if code is not None:
            assert ended.code == code, f"exit code {ended.code}:\n{ended.out}\n{ended.err}"
        return ended

    async def sql(self, query: str, environ: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        """The rows of a query, as the command `sql` prints them, but without a process for it."""
        urls = environ or {}
        place = Place(urls.get("REDIS_URL"), urls.get("DATABASE_URL"), self.data)
        out = io.BytesIO()
        async with services(place, share=True) as addresses:
            await write_rows(addresses.database, query, "json", out)
        rows: list[dict[str, Any]] = json.loads(out.getvalue())
        return rows

    def write(self, name: str, lines: Sequence[str] | str) -> Path:
        """Write a file into the folder: a text, or lines without their line ends."""
        path = self.folder / name
        path.write_text(lines if isinstance(lines, str) else "".join(f"{line}\n" for line in lines))
        return path

    async def kill_rest(self) -> None:
        """Kill all processes that commands of this shell left behind, also the servers of killed runs."""
        for process in self._started:
            if process.returncode is None:
                kill_tree(process.pid)
                await process.wait()
        for process in psutil.process_iter():
            try:
                if str(self.data) in " ".join(process.cmdline()) and process.pid != os.getpid():
                    process.kill()
            except psutil.Error:
                continue


def kill_tree(pid: int) -> None:
    """Send SIGKILL to a process, then to all its descendants. The parent goes first, so that it restarts nothing."""
    try:
        parent = psutil.Process(pid)
        family = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
