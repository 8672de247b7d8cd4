"""A small run that a test disturbs, and the same audit at every end."""

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
from tests.conftest import eventually
from tests.faults.table import Row
from tests.live.shell import Ended, Running, Shell
from tests.live.test_run import ONCE
from tests.servers.disturbed import Disturbed

NAME = "urls"
KEYS = 1500
# Keys beside the poison, which must not suffer from it.
GOOD = 300
CONCURRENCY = 16
BATCH_ROWS = 200
# What one worker may have had fetched and not recorded when it died, or lost its lease.
IN_HAND = CONCURRENCY + BATCH_ROWS


@dataclass(slots=True)
class Crawl:
    """`shardcrawl run` on KEYS keys. `environ` holds the services' own addresses; empty: the run starts its own."""

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
        """Begin, or go on; `environ` beats the services' own addresses."""
        self._latest = await self.shell.start(
            *(command, self.corpus(), "--workers", str(workers), "--concurrency", str(CONCURRENCY)),
            *("--batch-rows", str(BATCH_ROWS), *(("--rate", str(rate)) if rate else ()), *options),
            environ={**self.environ, **(environ or {})},
        )
        return self._latest

    def corpus(self, more: Sequence[str] = ()) -> Path:
        """The keys as a file of URLs."""
        lines = [f"{self.upstream.url}/item/{number}" for number in range(KEYS)]
        return self.shell.write(f"{NAME}.txt", [*lines, *more])

    async def job(
        self,
        keys: Sequence[str],
        *,
        request: str = "",
        rest: str = "",
        code: int = 0,
    ) -> Ended:
        """A whole run of a job file over these keys by one worker, with more lines for [request] and for its end; it
        must end with this exit code."""
        return await self.complete(await self.begin(keys, request=request, rest=rest), code)

    async def begin(
        self,
        keys: Sequence[str],
        *,
        request: str = "",
        rest: str = "",
        allowed: str = "127.0.0.0/8",
        environ: Mapping[str, str] | None = None,
    ) -> Running:
        """Start that run; it may connect to `allowed`, a network that is not public."""
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
        """URLs that are beyond reproach."""
        return [f"{self.upstream.url}/item/{number}" for number in range(GOOD)]

    async def outcomes(self, what: str = "key") -> dict[str, tuple[str, str | None]]:
        """(outcome, reason) of every key, under its name or what this expression makes of it."""
        rows = await self.shell.sql(f"select {what} as key, outcome, reason from pages", environ=self.environ)
        return {row["key"]: (row["outcome"], row["reason"]) for row in rows}

    async def asked(self, requests: int) -> None:
        """Wait until the upstream was asked so often; fails when the run ends before."""

        async def enough() -> bool:
            run = self._latest
            if run is not None and run.process.returncode is not None and self.upstream.requests < requests:
                pytest.fail(f"the run has ended: {(await run.end()).err}")
            return self.upstream.requests >= requests

        await eventually(enough, f"{requests} requests", seconds=60)

    async def pages(self) -> int | None:
        """How many pages are committed; None when Postgres does not say."""
        url = self.environ.get("DATABASE_URL")
        if url is None:
            found = running(self.shell.data)
            url = found.database_url if found else None
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
        """The fault is over: wait until pages are committed again, and remember how long that took."""
        began = monotonic()
        known = await self.pages() if before is None else before

        async def more() -> bool:
            pages = await self.pages()
            return pages is not None and (pages > (known or 0) or pages == KEYS)

        await eventually(more, "pages to be committed again", seconds=seconds)
        self.recovery = monotonic() - began

    async def complete(self, running: Running, code: int = 0) -> Ended:
        """The run ends by itself, complete; with code 3 when many keys failed."""
        ended = await running.end()
        assert ended.code == code, ended.err
        assert "Traceback" not in ended.err, ended.err
        return ended

    async def agreed(self, scenario: str, injected: str, keys: int) -> None:
        """Each of so many keys has one page; source, Postgres and Redis agree, whatever the outcomes are."""
        found = json.loads((await self.shell.run("audit", NAME, "--json", environ=self.environ, code=None)).out)
        once = (await self.shell.sql(ONCE, environ=self.environ))[0]
        self.report(Row(scenario, injected, keys - once["digests"], once["keys"] - once["digests"], self.recovery))
        broken = [one for one in found if not one["ok"]]
        assert not broken, broken
        assert (once["keys"], once["digests"]) == (keys, keys), once

    async def audited(self, scenario: str, injected: str, *, again: int = 0) -> None:
        """Every key has exactly one page, with its own body; source, Postgres and Redis agree; the upstream was asked
        for at most `again` keys more than once."""
        log = self.shell.write("requests.log", [f"0 {path}" for path in self.upstream.paths])
        line = ("audit", NAME, "--json", "--requests", str(log), "--allowed", str(again))
        found = json.loads((await self.shell.run(*line, environ=self.environ, code=None)).out)
        once = (await self.shell.sql(ONCE, environ=self.environ))[0]
        self.report(Row(scenario, injected, KEYS - once["digests"], once["keys"] - once["digests"], self.recovery))
        broken = [one for one in found if not one["ok"]]
        assert not broken, broken
        assert once == {"keys": KEYS, "digests": KEYS, "stored": KEYS, "right_id": KEYS}, once
        assert self.upstream.requests <= KEYS + again, self.upstream.requests


async def lasting(seconds: float) -> None:
    """The fault lasts so long: there is nothing to wait for but its time."""
    await asyncio.sleep(seconds)
