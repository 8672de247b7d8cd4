"""A sample corpus against the bundled upstream, start to end."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import orjson
from rich.console import Console

from coordinator.errors import ShardcrawlError
from crawler.cli import screen
from crawler.cli.commands import query_rows
from crawler.cli.progress import say
from crawler.local.run import Place, RunEnd, Voice, run_at, services
from crawler.sample import upstream

QUERIES = (
    "select outcome, count(*) as keys from pages_current group by outcome",
    "select key, status, body->>'title' as title, fetched_at from pages_current order by key limit 5",
)


async def demo(place: Place, voice: Voice, *, keys: int, workers: int, port: int) -> RunEnd:
    """Run a sample corpus against the bundled upstream, then show its outcomes and some rows."""
    async with services(place) as addresses, _upstream(port) as url:
        folder = place.data / "demo"
        folder.mkdir(parents=True, exist_ok=True)
        corpus = folder / "keys.txt"
        corpus.write_text("".join(f"item-{number:07}\n" for number in range(keys)))
        document = {
            "run": {"name": f"demo-{datetime.now(UTC):%Y%m%d-%H%M%S}", "workers": workers},
            "source": {"path": str(corpus.resolve())},
            "request": {"url": f"{url}/item/{{key}}", "allow_private": ["127.0.0.0/8"]},
            "limits": {"*": {"rate": "none"}},
        }
        say(voice.console, f"the sample upstream answers at {url}; {keys:,} keys, {workers} workers")
        end = await run_at(addresses, document, str(folder), voice)
        out = Console()
        screen.summary(end, out, again="shardcrawl demo", at=place.options)
        if end.stored is not None:
            for query in QUERIES:
                say(out, f'\nshardcrawl sql{place.options} "{query}"')
                screen.rows(*await query_rows(addresses.database, query), out)
            say(out, f"everything is kept in {place.data}; next: shardcrawl run YOUR-URLS.txt --rate 10")
        return end


@asynccontextmanager
async def _upstream(port: int) -> AsyncIterator[str]:
    """The bundled upstream as a process of its own; gives its URL, ends with us."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        upstream.__name__,
        "--port",
        str(port),
        "--stdin-guard",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        line = await process.stdout.readline()
        if not line:
            _, errors = await process.communicate()
            words = (errors.decode(errors="replace").strip().splitlines() or ["it ended at once"])[-1]
            raise ShardcrawlError(f"the sample upstream does not start: {words}; choose another --port")
        yield str(orjson.loads(line)["url"])
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
