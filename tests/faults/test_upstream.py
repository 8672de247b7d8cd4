"""Upstreams that ask for pauses, or respond with compressed bombs, floods or nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import psutil
import pytest

from tests.faults.crawl import Crawl
from tests.servers.misbehaving import misbehaving
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
