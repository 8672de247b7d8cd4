"""Hostile upstreams: each response gives its key an outcome with a reason, in bounded time and memory, and no other
key suffers."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from time import time

from ops.bench.polite.crawl import Crawl, Ended, Plan
from ops.bench.polite.scripted import Scripted, ScriptedResponse, response
from ops.bench.whole_run import Row

TIMEOUT_SECONDS = 5.0
SLACK_SECONDS = 0.5
MAX_GROWTH_MB = 50.0
RATE = 200
NEIGHBOURS = RATE * 20
KEYS_OF_A_KIND = 2
MIB = 1024 * 1024
METADATA = "http://169.254.169.254/latest/meta-data/"
# Kind of response -> (outcome of its key, how the reason begins).
OUTCOMES = {
    "bomb": ("failed", "too-large"),
    "drip": ("failed", "timeout"),
    "headers": ("failed", "protocol"),
    "endless": ("failed", "too-large"),
    "metadata": ("refused", "address"),
}
FINE = response()


async def hostile(folder: Path) -> list[Row]:
    """Good keys alone, then the same keys among hostile ones: outcomes, times, and the workers' memory."""
    script = Hostile()
    async with Scripted(lambda _: FINE) as good, Scripted(script, time) as bad:
        neighbours = [good.url(f"/{number}") for number in range(NEIGHBOURS)]
        hostile_urls = [bad.url(f"/{kind}/{number}") for kind in OUTCOMES for number in range(KEYS_OF_A_KIND)]
        limits = {good.authority: f"rate = {RATE}", bad.authority: "rate = 50"}
        request, retry = f"timeout = {TIMEOUT_SECONDS}", "attempts = 2\nbackoff = 0.2"
        async with Crawl(folder / "alone", Plan(neighbours, limits, 2, request, retry)) as crawl:
            await crawl.complete()
            alone = max(crawl.peaks.values())
        alone_took = good.log[-1].at - good.log[0].at
        good.log.clear()
        step = len(neighbours) // (4 * len(hostile_urls))
        mixed = [
            url
            for place, hostile_url in enumerate(hostile_urls)
            for url in (hostile_url, *neighbours[place * step :][:step])
        ]
        mixed += neighbours[len(hostile_urls) * step :]
        async with Crawl(folder / "among", Plan(mixed, limits, 2, request, retry)) as crawl:
            await crawl.complete()
            among = max(crawl.peaks.values())
            found = await crawl.ends()
        took = good.log[-1].at - good.log[0].at
        rows = [_ending(kind, bad, found) for kind in OUTCOMES]
    stored = sum(found[url].outcome == "stored" for url in neighbours)
    return [
        *rows,
        Row(
            "good keys among hostile responses",
            f"{stored:,} of {NEIGHBOURS:,} stored, {took:.1f} s; alone {alone_took:.1f} s",
            "all stored, within 5 % of the time",
            stored == NEIGHBOURS and took <= 1.05 * alone_took,
        ),
        Row(
            "a worker's most memory among hostile responses",
            f"{among - alone:+.1f} MB ({alone:.0f} MB alone)",
            f"+{MAX_GROWTH_MB:.0f} MB at most",
            among - alone <= MAX_GROWTH_MB,
        ),
    ]


def _ending(kind: str, bad: Scripted, found: dict[str, Ended]) -> Row:
    """Outcomes of the keys of one kind, and the longest time from a key's last request to its outcome."""
    outcome, reason = OUTCOMES[kind]
    last = {request.path: request.at for request in bad.log}
    ends = {path: found[bad.url(path)] for path in (f"/{kind}/{number}" for number in range(KEYS_OF_A_KIND))}
    slowest = max(end.at - last[path] for path, end in ends.items())
    says = "; ".join(sorted({f"{end.outcome}, {end.reason.partition(' after ')[0][:60]}" for end in ends.values()}))
    return Row(
        NAMES[kind],
        f"{says}; {slowest:.2f} s",
        f"{outcome}, {reason}, within {TIMEOUT_SECONDS:.0f} s",
        slowest <= TIMEOUT_SECONDS + SLACK_SECONDS
        and all(end.outcome == outcome and end.reason.startswith(reason) for end in ends.values()),
    )


NAMES = {
    "bomb": "gzip bomb, 1 MB that decodes to 1 GB",
    "drip": "a byte each 0.5 s",
    "headers": "100,000 headers",
    "endless": "chunks without end",
    "metadata": "redirect to 169.254.169.254",
}


class Hostile:
    """The script: a response for each kind of path."""

    def __init__(self) -> None:
        self._bomb = response(_bomb(1024), "Content-Encoding: gzip")
        self._headers = response(b"", *(f"X-{number}: 0123456789" for number in range(100_000)))

    def __call__(self, path: str) -> ScriptedResponse:
        """The response for /KIND/NUMBER."""
        kind = path.split("/")[1]
        match kind:
            case "bomb":
                return self._bomb
            case "headers":
                return self._headers
            case "metadata":
                return response(b"", f"Location: {METADATA}", status="302 Found")
            case "drip":
                return _drip()
            case _:
                return _endless()


async def _drip() -> AsyncIterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
    while True:
        yield b"x"
        await asyncio.sleep(0.5)


async def _endless() -> AsyncIterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    piece = b"10000\r\n" + bytes(65536) + b"\r\n"
    while True:
        yield piece


def _bomb(mebibytes: int) -> bytes:
    """A gzip stream of that many MiB of zeros, a thousandth as large. It has no end: no client should read so far."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    head = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    return head + (packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)) * (mebibytes - 1)
