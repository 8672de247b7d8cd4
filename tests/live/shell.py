"""`shardcrawl` as its users start it: a process with a folder, real children and real signals."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import eventually

DEADLINE = 90.0


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str


class Running:
    """A command under way."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self.process = process
        self._folder = folder

    async def end(self) -> Ended:
        """Wait for its end, with a deadline."""
        ending = asyncio.create_task(self.process.communicate())
        if not (await asyncio.wait({ending}, timeout=DEADLINE))[0]:
            kill_tree(self.process.pid)
            pytest.fail(f"not over after {DEADLINE:.0f} s:\n{(await ending)[1].decode()[-3000:]}")
        out, err = await ending
        assert self.process.returncode is not None
        return Ended(self.process.returncode, out.decode(), err.decode())

    def children(self, word: str) -> list[psutil.Process]:
        """Its live children of that kind: worker-1, coordinator, redis-server, postgres, crawler.local.child."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=False):
            try:
                line = child.cmdline()
                if child.status() == psutil.STATUS_ZOMBIE:
                    continue
            except psutil.Error:
                continue
            ours = "crawler.local.child" in line
            if (ours and (word == "crawler.local.child" or line[-1].startswith(word))) or (
                not ours and child.name() == word
            ):
                found.append(child)
        return found

    async def child(self, word: str) -> psutil.Process:
        """One such child, as soon as there is one."""
        await eventually(lambda: bool(self.children(word)), f"a {word} of process {self.process.pid}")
        return self.children(word)[0]

    def interrupt(self) -> None:
        """What Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)


class Shell:
    """Starts commands in one folder, with the environment that a fresh user has; ends what a test leaves behind.

    Upstreams on loopback are allowed, because every test's upstream is there; nor need anybody be polite to it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self._started: list[asyncio.subprocess.Process] = []

    async def start(
        self, *arguments: str | Path, environ: Mapping[str, str] | None = None, stdin: int | None = None
    ) -> Running:
        """Start `shardcrawl ARGUMENTS`."""
        clean = {
            name: value
            for name, value in os.environ.items()
            if name not in ("REDIS_URL", "DATABASE_URL") and not name.startswith("SHARDCRAWL_")
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "crawler",
            *map(str, arguments),
            cwd=self.folder,
            env={
                **clean,
                "SHARDCRAWL_DATA": str(self.data),
                "SHARDCRAWL_ALLOW_PRIVATE": "127.0.0.0/8",
                "SHARDCRAWL_RATE": "none",
                **(environ or {}),
            },
            stdin=asyncio.subprocess.DEVNULL if stdin is None else stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        self._started.append(process)
        return Running(process, self.folder)

    async def run(
        self, *arguments: str | Path, environ: Mapping[str, str] | None = None, code: int | None = 0
    ) -> Ended:
        """Start a command and wait for its end, which must have this exit code."""
        ended = await (await self.start(*arguments, environ=environ)).end()
        if code is not None:
            assert ended.code == code, f"exit code {ended.code}:\n{ended.out}\n{ended.err}"
        return ended

    async def sql(self, query: str, environ: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        """The rows of a query."""
        ended = await self.run("sql", "--json", query, environ=environ)
        rows: list[dict[str, Any]] = json.loads(ended.out)
        return rows

    def write(self, name: str, lines: Sequence[str] | str) -> Path:
        """A file in the folder."""
        path = self.folder / name
        path.write_text(lines if isinstance(lines, str) else "".join(f"{line}\n" for line in lines))
        return path

    async def sweep(self) -> None:
        """Kill what is left of everything that was started here, servers of killed runs included."""
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
    """SIGKILL for a process and all its descendants, the parent first, as a power cut would."""
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
