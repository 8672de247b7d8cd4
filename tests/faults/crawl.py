"""A small run that a test disturbs, and the same audit at every end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import asyncpg

from crawler.embedded import running
from tests.conftest import eventually
from tests.faults.table import Row
from tests.faults.upstreams import Disturbed
from tests.live.shell import Ended, Running, Shell
from tests.live.test_run import ONCE

NAME = "urls"
KEYS = 1500
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

    async def start(
        self,
        *options: str,
        rate: int | None = 700,
        workers: int = 2,
        environ: Mapping[str, str] | None = None,
        command: str = "run",
    ) -> Running:
        """Begin, or go on; `environ` beats the services' own addresses."""
        return await self.shell.start(
            *(command, self.corpus(), "--workers", str(workers), "--concurrency", str(CONCURRENCY)),
            *("--batch-rows", str(BATCH_ROWS), *(("--rate", str(rate)) if rate else ()), *options),
            environ={**self.environ, **(environ or {})},
        )

    def corpus(self, more: Sequence[str] = ()) -> Path:
        """The keys as a file of URLs."""
        lines = [f"{self.upstream.url}/item/{number}" for number in range(KEYS)]
        return self.shell.write(f"{NAME}.txt", [*lines, *more])

    async def asked(self, requests: int) -> None:
        """Wait until the upstream was asked so often."""
        await eventually(lambda: self.upstream.requests >= requests, f"{requests} requests", seconds=60)

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

    async def complete(self, running: Running) -> Ended:
        """The run ends by itself, complete."""
        ended = await running.end()
        assert ended.code == 0, ended.err
        assert "Traceback" not in ended.err, ended.err
        return ended

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
