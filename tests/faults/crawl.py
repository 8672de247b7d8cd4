"""A small run that a test disturbs, and the audit with which every such test ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import asyncpg
import pytest

from crawler.local.embedded import running
from tests.faults.table import Row
from tests.live.examples import COUNT_PAGES, each_key_once
from tests.live.shell import CommandResult, Running, Shell
from tests.servers.disturbed import Disturbed
from tests.waiting import eventually

NAME = "urls"
KEYS = 1500
# Good keys among bad ones. All of them must be stored.
GOOD_KEYS = 300
CONCURRENCY = 16
BATCH_ROWS = 200
# Keys that one worker may have fetched without recording them, when it dies or loses its lease.
IN_HAND = CONCURRENCY + BATCH_ROWS


@dataclass(slots=True)
class Crawl:
    """`shardcrawl run` on KEYS keys.

    `environ` has the addresses of Redis and Postgres. If it is empty, the run starts its own. `recovery` is the seconds
    that `recovered` waited.
    """

    shell: Shell
    upstream: Disturbed
    report: Callable[[Row], None]
    environ: dict[str, str] = field(default_factory=dict)
    recovery: float | None = None
    _latest: Running | None = None

    async def start(
        self,
        *options: str,
        rate: int | None = 700,
        workers: int = 2,
        environ: Mapping[str, str] | None = None,
        command: str = "run",
    ) -> Running:
        """Start the run, or go on with it. `environ` is added to the crawl's own, and wins over it."""
        self._latest = await self.shell.start(
            *(command, self.corpus(), "--workers", str(workers), "--concurrency", str(CONCURRENCY)),
            *("--batch-rows", str(BATCH_ROWS), *(("--rate", str(rate)) if rate else ()), *options),
            environ={**self.environ, **(environ or {})},
        )
        return self._latest

    def corpus(self, more: Sequence[str] = ()) -> Path:
        """Write the keys as a file of URLs."""
        lines = [f"{self.upstream.url}/item/{number}" for number in range(KEYS)]
        return self.shell.write(f"{NAME}.txt", [*lines, *more])

    async def job(
        self,
        keys: Sequence[str],
        *,
        request: str = "",
        rest: str = "",
        code: int = 0,
    ) -> CommandResult:
        """Run a job file over these keys to its end, with one worker. It must end with this exit code.

        `request` is added to the section [request], and `rest` to the end of the file.
        """
        return await self.complete(await self.start_job(keys, request=request, rest=rest), code)

    async def start_job(
        self,
        keys: Sequence[str],
        *,
        request: str = "",
        rest: str = "",
        allowed: str = "127.0.0.0/8",
        environ: Mapping[str, str] | None = None,
    ) -> Running:
        """Start such a run. It may connect to `allowed`, a network that is not public."""
        self.shell.write("corpus.py", f"def keys():\n    yield from {list(keys)!r}\n")
        job = f"""
            [run]
            name = "{NAME}"
            workers = 1
            concurrency = 32
            [source]
            python = "corpus:keys"
            [request]
            allow_private = ["{allowed}"]
            {request}
            {rest}
        """
        environ = {**self.environ, "SHARDCRAWL_ALLOW_PRIVATE": allowed, **(environ or {})}
        self._latest = await self.shell.start("run", self.shell.write("job.toml", job), environ=environ)
        return self._latest

    def good_keys(self) -> list[str]:
        """URLs whose pages are stored."""
        return [f"{self.upstream.url}/item/{number}" for number in range(GOOD_KEYS)]

    async def outcomes(self, name: str = "key") -> dict[str, tuple[str, str | None]]:
        """(outcome, reason) by key, or by `name`, an SQL expression that makes a short name of a key."""
        rows = await self.shell.sql(f"select {name} as key, outcome, reason from pages", environ=self.environ)
        return {row["key"]: (row["outcome"], row["reason"]) for row in rows}

    async def requested(self, requests: int) -> None:
        """Wait until the upstream got so many requests. The test fails when the run ends before."""

        async def enough() -> bool:
            run = self._latest
            if run is not None and run.process.returncode is not None and self.upstream.requests < requests:
                pytest.fail(f"the run has ended: {(await run.end()).err}")
            return self.upstream.requests >= requests

        await eventually(enough, f"{requests} requests", seconds=60)

    async def pages(self) -> int | None:
        """How many pages are committed; None when Postgres is not available."""
        url = self.environ.get("DATABASE_URL")
        if url is None:
            services = running(self.shell.data)
            url = services.database_url if services else None
        try:
            connection = await asyncpg.connect(url, timeout=2.0)
        except (OSError, asyncpg.PostgresError):
            return None
        try:
            return int(await connection.fetchval("SELECT count(*) FROM pages_r1"))
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return None
        finally:
            connection.terminate()

    async def recovered(self, before: int | None = None, *, seconds: float = 60.0) -> None:
        """Wait after a fault until pages are committed again, and keep in `recovery` how long that took.

        `before` is the number of pages that were committed before the fault ended; without it, that of now.
        """
        began = monotonic()
        known = await self.pages() if before is None else before

        async def more_pages() -> bool:
            pages = await self.pages()
            return pages is not None and (pages > (known or 0) or pages == KEYS)

        await eventually(more_pages, "pages to be committed again", seconds=seconds)
        self.recovery = monotonic() - began

    async def complete(self, running: Running, code: int = 0) -> CommandResult:
        """Wait until the run is complete. It must end with this exit code: 3 when many keys failed."""
        ended = await running.end()
        assert ended.code == code, ended.err
        assert "Traceback" not in ended.err, ended.err
        return ended

    async def agreed(self, scenario: str, injected: str, keys: int) -> None:
        """Check that each of so many keys has one page, with any outcome, and that source, Postgres and Redis agree."""
        counts = await self._audit(scenario, injected, keys)
        assert (counts["keys"], counts["digests"]) == (keys, keys), counts

    async def audited(self, scenario: str, injected: str, *, again: int = 0) -> None:
        """Check that each of KEYS keys has exactly one page with its own body, that source, Postgres and Redis agree,
        and that at most `again` requests were repeated."""
        log = self.shell.write("requests.log", [f"0 {path}" for path in self.upstream.paths])
        counts = await self._audit(scenario, injected, KEYS, "--requests", str(log), "--allowed", str(again))
        assert [counts] == each_key_once(KEYS), counts
        assert self.upstream.requests <= KEYS + again, self.upstream.requests

    async def _audit(self, scenario: str, injected: str, keys: int, *options: str) -> dict[str, int]:
        """Report the fault's row, check that the audit finds nothing wrong, and return the result of COUNT_PAGES."""
        ended = await self.shell.run("audit", NAME, "--json", *options, environ=self.environ, code=None)
        counts = (await self.shell.sql(COUNT_PAGES, environ=self.environ))[0]
        lost, doubled = keys - counts["digests"], counts["keys"] - counts["digests"]
        self.report(Row(scenario, injected, lost, doubled, self.recovery))
        assert ended.out, f"exit code {ended.code}: {ended.err}"
        failed = [check for check in json.loads(ended.out) if not check["ok"]]
        assert not failed, failed
        return counts


async def lasting(seconds: float) -> None:
    """Let a fault last so long. A test sleeps only here: the fault's length is what it tests."""
    await asyncio.sleep(seconds)
