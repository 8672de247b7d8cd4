"""Upstreams that ask for pauses, or respond with compressed bombs, floods or nothing."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import psutil
import pytest

from tests.faults.crawl import NAME, Crawl
from tests.servers.misbehaving import misbehaving
from tests.servers.silent import silent_hosts
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

RATE = 300
DATE = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
THEN = int(DATE.timestamp()) + 2
DATED = f"Date: {format_datetime(DATE, usegmt=True)}\r\n"
# Headers of a 429, and the seconds of pause that they ask for; 0 where the value cannot be followed.
PAUSES = {
    "Retry-After: 2": 2.0,
    f"{DATED}Retry-After: {format_datetime(DATE + timedelta(seconds=3), usegmt=True)}": 3.0,
    "Retry-After: Thu, 01 Jan 2015 00:00:00 GMT": 0.0,
    "Retry-After: -1": 0.0,
    "Retry-After: 1e9": 0.0,
    "Retry-After: in a moment": 0.0,
    "X-RateLimit-Remaining: 0\r\nX-RateLimit-Reset: 2": 2.0,
    f"{DATED}X-RateLimit-Remaining: 0\r\nX-RateLimit-Reset: {THEN}": 2.0,
    f"{DATED}X-RateLimit-Remaining: 0\r\nX-RateLimit-Reset: {THEN}000": 2.0,
    'RateLimit: "default";r=0;t=2': 2.0,
}


@pytest.mark.slow
async def test_all_workers_pause_for_as_long_as_the_upstream_says(crawl: Crawl) -> None:
    """In the upstream's own log there is no request before the pause is over, and no burst after it. Headers that
    cannot be followed stop the workers only for a moment."""
    running = await crawl.start(rate=RATE)
    for number, headers in enumerate(PAUSES, start=1):
        before = crawl.upstream.requests
        await crawl.requested(before + 100)
        crawl.upstream.throttle(f"{headers}\r\n")
        await eventually(lambda: len(crawl.upstream.throttled) == number, "the 429")  # noqa: B023
    await crawl.complete(running)
    times = crawl.upstream.times
    pauses = zip(crawl.upstream.throttled, PAUSES.items(), strict=True)
    for began, (headers, seconds) in pauses:
        silence = crawl.upstream.silence_after(began)
        assert seconds - 0.05 <= silence < seconds + 10, headers
        assert sum(0 <= at - began - silence < 1 for at in times) <= 1.15 * RATE, headers
    await crawl.audited("21 throttled", f"{len(PAUSES)} kinds of headers", again=len(PAUSES))


ATTEMPTS = 2
# Path -> how the reason of its failure begins. A response that is too large is not requested again.
HOSTILE = {
    "/bomb": "too-large",
    "/endless": "too-large",
    "/large": "too-large",
    "/gzip-cut": "decode",
    "/gzip-not": "decode",
    "/headers": "protocol",
    "/huge-header": "protocol",
    "/malformed": "protocol",
    "/chunk-malformed": "protocol",
    "/length-twice": "protocol",
    "/short": "reset",
    "/plenty": "reset",
    "/chunked-cut": "reset",
    "/reset": "reset",
    "/silent": "timeout",
    "/drip": "timeout",
    "/drip-headers": "timeout",
    "/informed": "timeout",
}
HOSTS_OF_A_KIND = 4
KEYS_OF_A_HOST = 20
MAX_MEMORY_BYTES = 150 * 1024 * 1024


async def test_hostile_responses(crawl: Crawl) -> None:
    """Each fails its key with its kind of reason, in bounded time and memory. The good keys beside them are stored."""
    keys = crawl.good_keys()
    async with misbehaving() as hostile:
        urls = {hostile.url(path): kind for path, kind in HOSTILE.items()}
        running = await crawl.start_job(
            [*keys[:10], *urls, *keys[10:]],
            request="robots = false\ntimeout = 2.0\nmax_body = 200_000",
            rest=f"[retry]\nattempts = {ATTEMPTS}\nbackoff = 0.1",
        )
        peak = Peak(await running.child("worker-1"))
        await eventually(peak.has_ended, "the worker's end", seconds=60)
        await crawl.complete(running, code=3)
        assert all(
            hostile.requested[path] <= (1 if kind in ("too-large", "decode") else 2 * ATTEMPTS)
            for path, kind in HOSTILE.items()
        ), hostile.requested
    found = await crawl.outcomes()
    assert all(found[key] == ("stored", None) for key in keys)
    kinds = {
        url: (outcome, (reason or "").partition(":")[0]) for url, (outcome, reason) in found.items() if url in urls
    }
    assert kinds == {url: ("failed", kind) for url, kind in urls.items()}
    assert peak.bytes < MAX_MEMORY_BYTES, f"{peak.bytes / 1e6:.0f} MB"
    await crawl.agreed("23 hostile responses", f"{len(HOSTILE)} kinds", len(keys) + len(urls))


@pytest.mark.parametrize("robots", ["true", pytest.param("false", marks=pytest.mark.slow)])
async def test_dead_hosts(crawl: Crawl, robots: str) -> None:
    """Each key fails after its attempts, and one attempt is for all keys of a host. The good keys beside them are
    stored. The log has a line for each host."""
    keys = crawl.good_keys()
    with silent_hosts(HOSTS_OF_A_KIND) as silent:
        kinds = {
            **{f"http://127.0.8.{number}:1": "connect" for number in range(HOSTS_OF_A_KIND)},
            **{f"http://no-such-host-{number}.invalid": "dns" for number in range(HOSTS_OF_A_KIND)},
            **dict.fromkeys(silent, "timeout"),
        }
        dead = {f"{host}/{key}": kind for key in range(KEYS_OF_A_HOST) for host, kind in kinds.items()}
        # From a file: its keys come in blocks, so that many of a host wait together.
        crawl.shell.write("keys.txt", [*keys[:10], *dead, *keys[10:]])
        job = f"""
            [run]
            name = "{NAME}"
            workers = 1
            [source]
            path = "keys.txt"
            [request]
            robots = {robots}
            timeout = 2.0
            [retry]
            attempts = {ATTEMPTS}
            backoff = 1.0
        """
        running = await crawl.shell.start("run", crawl.shell.write("job.toml", job), environ=crawl.environ)
        ended = await crawl.complete(running, code=3)
    rows = await crawl.shell.sql("select key, outcome, reason, attempts from pages", environ=crawl.environ)
    found = {
        row["key"]: (row["outcome"], (row["reason"] or "").partition(":")[0], row["attempts"])
        for row in rows
        if row["key"] in dead
    }
    assert found == {key: ("failed", kind, ATTEMPTS) for key, kind in dead.items()}
    assert sum(row["outcome"] == "stored" for row in rows) == len(keys)
    assert ended.err.count("cannot be reached: ") == len(kinds), ended.err
    counts = json.loads((await crawl.shell.run("status", NAME, "--json", environ=crawl.environ)).out)
    assert counts["requests"] <= 1 + len(keys) + 2 * ATTEMPTS * len(kinds)
    await crawl.agreed("24 dead hosts", f"robots = {robots}", len(keys) + len(dead))


class Peak:
    """The most memory that a process was seen with, in `bytes`."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self.bytes = 0

    def has_ended(self) -> bool:
        """Whether the process has ended; if not, look at its memory once more."""
        try:
            self.bytes = max(self.bytes, self._process.memory_info().rss)
            return bool(self._process.status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True
