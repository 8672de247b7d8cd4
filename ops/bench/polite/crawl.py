"""A whole `shardcrawl run` as a child process of the benchmark, with embedded services in the benchmark's folder."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil

from ops.bench.whole_run import children, peak_memory

DEADLINE_SECONDS = 150.0
POLL_SECONDS = 0.1
NAME = "polite"


class CrawlFailed(Exception):
    """A run ended too early or with an error, or took too long."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A job over `urls`. `limits` has lines of TOML by upstream; `request` and `retry` are lines of these sections."""

    urls: Iterable[str]
    limits: dict[str, str]
    workers: int = 4
    request: str = ""
    retry: str = ""

    def job(self) -> str:
        """The job file."""
        limits = "".join(f'[limits."{name}"]\n{lines}\n' for name, lines in self.limits.items())
        return (
            f'[run]\nname = "{NAME}"\nworkers = {self.workers}\nmax_failed = 1.0\n[source]\npath = "urls.txt"\n'
            f'[request]\nallow_private = ["127.0.0.0/8"]\nrobots = false\n{self.request}\n'
            f"{limits}[retry]\n{self.retry}\n"
        )


@dataclass(frozen=True, slots=True)
class Ended:
    """How a key ended; `at` is seconds since 1970."""

    outcome: str
    reason: str
    at: float


class Crawl:
    """`async with Crawl(folder, plan) as crawl` starts a run, and at the end interrupts it if it still runs.

    `before` is a command that gets the run's command as its arguments. `peaks` has the peak memory (MB) by worker pid.
    """

    def __init__(self, folder: Path, plan: Plan, before: Sequence[str] = ()) -> None:
        self._folder = folder
        self._plan = plan
        self._before = before
        self._output = folder / "output.txt"
        self._ended: asyncio.Task[int] | None = None
        self.peaks: dict[int, float] = {}

    async def __aenter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "urls.txt").open("w") as file:
            file.writelines(f"{url}\n" for url in self._plan.urls)
        (self._folder / "job.toml").write_text(self._plan.job())
        with self._output.open("w") as output:
            self._process = await self._start("run", "job.toml", stdout=asyncio.subprocess.DEVNULL, stderr=output)
        self._ended = asyncio.create_task(self._process.wait())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGINT)
        try:
            await asyncio.wait_for(self._process.wait(), 40.0)
        except TimeoutError:
            for process in [*children(self._process.pid), psutil.Process(self._process.pid)]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            await self._process.wait()

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition, and read the workers' memory meanwhile. Raises CrawlFailed when the run ends before."""
        await self._watch(condition, what)
        if not condition():
            raise CrawlFailed(f"the run ended before {what}: {self._last_words()}")

    async def complete(self) -> None:
        """Wait until the run is complete. Raises CrawlFailed."""
        await self._watch(lambda: False, "the run's end")
        if self._process.returncode != 0:
            raise CrawlFailed(f"exit code {self._process.returncode}: {self._last_words()}")

    def joined(self) -> int:
        """How many workers have joined."""
        return self._output.read_text(errors="replace").count(" joined")

    async def ends(self) -> dict[str, Ended]:
        """How each key ended, from Postgres."""
        moment = "extract(epoch from fetched_at)::float8"
        query = f"select key, outcome, coalesce(reason, '') as reason, {moment} as at from pages"
        process = await self._start("sql", "--json", query, stdout=asyncio.subprocess.PIPE)
        out, _ = await process.communicate()
        return {row.pop("key"): Ended(**row) for row in json.loads(out)}

    async def _watch(self, condition: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                while self._ended is not None and not self._ended.done() and not condition():
                    self._read_memory()
                    await asyncio.wait([self._ended], timeout=POLL_SECONDS)
        except TimeoutError:
            raise CrawlFailed(f"{what} did not come in {DEADLINE_SECONDS:.0f} s: {self._last_words()}") from None

    def _read_memory(self) -> None:
        """Keep the peak memory of each worker. A process that is just ending is left out."""
        for process in children(self._process.pid):
            with suppress(psutil.Error, OSError, StopIteration):
                if any(word.startswith("worker") for word in process.cmdline()[-1:]):
                    self.peaks[process.pid] = peak_memory(process.pid)

    def _last_words(self) -> str:
        return " / ".join(self._output.read_text(errors="replace").splitlines()[-2:])

    async def _start(self, *arguments: str, stdout: int, stderr: Any = None) -> asyncio.subprocess.Process:
        environ = {
            name: value
            for name, value in os.environ.items()
            if name not in ("REDIS_URL", "DATABASE_URL") and not name.startswith("SHARDCRAWL_")
        }
        return await asyncio.create_subprocess_exec(
            *(*self._before, sys.executable, "-m", "crawler", *arguments, "--data", str(self._folder / "services")),
            cwd=self._folder,
            env=environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
        )
