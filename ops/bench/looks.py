"""Looks at the pages of `shardcrawl serve`: in Chromium, by plain connections, and as one who scrapes its metrics."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import httpx
import psutil
from redis.asyncio import Redis

from coordinator.errors import ShardcrawlError
from ops.bench import watch
from ops.bench.arena import Arena
from ops.bench.crowd import NAME, Crowd, ask_upstreams
from ops.browser import DESK, PHONE, Browser, Tab, open_chromium

DEADLINE_SECONDS = 120.0
VIEWS = {  # what of a page shows that its rows are there
    "the run": (f"/runs/{NAME}", "[aria-label^=Upstreams] tbody tr"),
    "its failed keys": (f"/runs/{NAME}/keys", "[aria-label^='Keys that are'] tbody tr"),
}
METRICS = "/metrics"
# Two of these are never read at once: what was read is kept for a second.
SCRAPE_SECONDS = 1.05
# Notes when the rows are there and painted, in milliseconds since the visit began.
NOTE_ROWS = """new MutationObserver((_, observer) => {
  if (!document.querySelector(SELECTOR)) return;
  observer.disconnect();
  requestAnimationFrame(() => setTimeout(() => { window.rowsAt = performance.now(); }));
}).observe(document, {childList: true, subtree: true});"""
NOTED = "window.rowsAt && [performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0, window.rowsAt]"


@dataclass(frozen=True, slots=True)
class Looked:
    """One kind of page: milliseconds until something and until its rows are seen, bytes, and CPU ms of each look."""

    what: str
    first_ms: Sequence[float]
    rows_ms: Sequence[float]
    bytes: int
    serve_cpu_ms: float
    redis_cpu_ms: float
    postgres_cpu_ms: float


class Costs:
    """CPU seconds so far of `serve`, Redis and Postgres. Redis counts its own, more exactly than the kernel does."""

    def __init__(self, arena: Arena, serve: int, redis: Redis) -> None:
        self._arena = arena
        self._serve = serve
        self._redis = redis

    async def read(self) -> tuple[float, float, float]:
        """The three sums."""
        info = await self._redis.info("cpu")
        redis = float(info["used_cpu_user"]) + float(info["used_cpu_sys"])
        return watch.cpu([self._serve]), redis, watch.cpu([self._arena.postgres_pid])

    async def of(self, work: Callable[[], Awaitable[object]], times: float) -> list[float]:
        """What some work cost, in ms for each of so many times."""
        before = await self.read()
        await work()
        return [1000 * (after - first) / times for first, after in zip(before, await self.read(), strict=True)]


@asynccontextmanager
async def served(arena: Arena) -> AsyncIterator[tuple[int, str]]:
    """`shardcrawl serve`: its process, and its address."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "crawler", "serve", "--listen", "127.0.0.1:0"),
        env=arena.environ,
        cwd=arena.folder,
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            line = (await process.stderr.readline()).decode()
        if (address := re.search(r"http://[^/\s]+", line)) is None:
            raise ShardcrawlError(f"shardcrawl serve did not begin; it said: {line}")
        yield process.pid, address[0]
    finally:
        watch.end(psutil.Process(process.pid))
        await process.wait()


@asynccontextmanager
async def open_pages(url: str, run: str, count: int) -> AsyncIterator[None]:
    """So many pages of a run that are open: each reads the news, as a browser does."""

    async def read(client: httpx.AsyncClient) -> None:
        async with client.stream("GET", "/api/news", params={"run": run}) as news:
            async for _ in news.aiter_raw():
                pass

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits, trust_env=False) as client:
        readers = [asyncio.create_task(read(client)) for _ in range(count)]
        await asyncio.sleep(1.0)
        try:
            yield
            if ended := [one for one in readers if one.done()]:
                raise ShardcrawlError(f"{len(ended)} of the {count} pages have ended: {ended[0].exception()}")
        finally:
            for one in readers:
                one.cancel()
            await asyncio.gather(*readers, return_exceptions=True)


async def look(crowd: Crowd, redis: Redis, url: str, costs: Costs, looks: int, pictures: Path | None) -> list[Looked]:
    """So many looks at each kind of page, and at the metrics; `pictures` is a folder for pictures of them."""
    found = []
    async with open_chromium() as browser:
        for what, (path, selector) in VIEWS.items():
            await ask_upstreams(crowd, redis)
            found.append(await _visits(browser, what, url + path, selector, costs, looks))
        if pictures is not None:
            await ask_upstreams(crowd, redis)
            await _draw(await browser.tab(), url, pictures)
    async with httpx.AsyncClient(base_url=url, timeout=DEADLINE_SECONDS, trust_env=False) as client:
        found.append(await _scrapes(client, costs, looks))
    return found


async def _visits(browser: Browser, what: str, url: str, selector: str, costs: Costs, looks: int) -> Looked:
    """Visits of one page, each as the first of its browser: the server lets nothing be cached."""
    tab = await browser.tab()
    await tab.call("Page.addScriptToEvaluateOnNewDocument", source=NOTE_ROWS.replace("SELECTOR", json.dumps(selector)))
    seen: list[tuple[float, float]] = []

    async def visit() -> None:
        await tab.call("Page.navigate", url=url)
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not (noted := await tab.run(NOTED)):
                await asyncio.sleep(0.02)
        seen.append(noted)
        await tab.call("Page.navigate", url="about:blank")

    async def visit_all() -> None:
        for _ in range(looks):
            await visit()

    await visit()  # connections, and the browser's own start
    seen.clear()
    spent = await costs.of(visit_all, looks)
    async with httpx.AsyncClient(trust_env=False, timeout=DEADLINE_SECONDS) as client:
        size = len((await client.get(url.replace("/runs/", "/api/runs/"))).content) if url.endswith("/keys") else 0
    return Looked(what, [first for first, _ in seen], [rows for _, rows in seen], size, *spent)


async def _scrapes(client: httpx.AsyncClient, costs: Costs, looks: int) -> Looked:
    taken: list[float] = []
    body = (await client.get(METRICS)).content

    async def scrape_all() -> None:
        for _ in range(looks):
            await asyncio.sleep(SCRAPE_SECONDS)
            began = perf_counter()
            (await client.get(METRICS)).raise_for_status()
            taken.append(1000 * (perf_counter() - began))

    spent = await costs.of(scrape_all, looks)
    return Looked(METRICS, taken, taken, len(body), *spent)


async def _draw(tab: Tab, url: str, folder: Path) -> None:
    """Pictures of the pages on a desk and on a phone, in light and in dark colours."""
    for (path, _), name in zip(VIEWS.values(), ("run", "keys"), strict=True):
        for screen, (width, height) in (("desk", DESK), ("phone", PHONE)):
            for dark in (False, True):
                await tab.size(width, height, dark=dark)
                await tab.go(url + path, "status 503")
                await tab.picture(folder / f"{name}-{screen}{'-dark' if dark else ''}.png", whole=True)
