"""Upstreams that mean harm: each answer ends in a typed outcome, in bounded time and memory, and alone."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from time import time

from ops.bench.first_light import Row
from ops.bench.polite.crawl import Crawl, Ended, Plan
from ops.bench.polite.scripted import Act, Scripted, answer

TIMEOUT = 5.0
SLACK = 0.5
GROWTH = 50.0
RATE = 200
NEIGHBOURS = RATE * 20
EACH = 2
MIB = 1024 * 1024
METADATA = "http://169.254.169.254/latest/meta-data/"
# What each answer must end as: the outcome, and how its reason begins.
ENDINGS = {
    "bomb": ("failed", "too-large"),
    "drip": ("failed", "timeout"),
    "headers": ("failed", "protocol"),
    "endless": ("failed", "too-large"),
    "metadata": ("refused", "address"),
}
FINE = answer()


async def hostile(folder: Path) -> list[Row]:
    """Good keys alone, then the same among hostile ones: what became of each, when, and what it cost the workers."""
    script = Hostile()
    async with Scripted(lambda _: FINE) as good, Scripted(script, time) as bad:
        neighbours = [good.url(f"/{number}") for number in range(NEIGHBOURS)]
        enemies = [bad.url(f"/{kind}/{number}") for kind in ENDINGS for number in range(EACH)]
        limits = {good.authority: f"rate = {RATE}", bad.authority: "rate = 50"}
        request, retry = f"timeout = {TIMEOUT}", "attempts = 2\nbackoff = 0.2"
        async with Crawl(folder / "alone", Plan(neighbours, limits, 2, request, retry)) as crawl:
            await crawl.complete()
            alone = max(crawl.peaks.values())
        alone_took = good.log[-1].at - good.log[0].at
        good.log.clear()
        step = len(neighbours) // (4 * len(enemies))
        mixed = [url for place, enemy in enumerate(enemies) for url in (enemy, *neighbours[place * step :][:step])]
        mixed += neighbours[len(enemies) * step :]
        async with Crawl(folder / "among", Plan(mixed, limits, 2, request, retry)) as crawl:
            await crawl.complete()
            among = max(crawl.peaks.values())
            found = await crawl.ends()
        took = good.log[-1].at - good.log[0].at
        rows = [_ending(kind, bad, found) for kind in ENDINGS]
    stored = sum(found[url].outcome == "stored" for url in neighbours)
    return [
        *rows,
        Row(
            "neighbours of hostile answers",
            f"{stored:,} of {NEIGHBOURS:,} stored, {took:.1f} s; alone {alone_took:.1f} s",
            "all stored, within 5 % of the time",
            stored == NEIGHBOURS and took <= 1.05 * alone_took,
        ),
        Row(
            "a worker's most memory among hostile answers",
            f"{among - alone:+.1f} MB ({alone:.0f} MB alone)",
            f"+{GROWTH:.0f} MB at most",
            among - alone <= GROWTH,
        ),
    ]


def _ending(kind: str, bad: Scripted, found: dict[str, Ended]) -> Row:
    """What became of the keys of one kind, and the longest time from a key's last request to its outcome."""
    outcome, reason = ENDINGS[kind]
    last = {asked.path: asked.at for asked in bad.log}
    ends = {path: found[bad.url(path)] for path in (f"/{kind}/{number}" for number in range(EACH))}
    slowest = max(end.at - last[path] for path, end in ends.items())
    says = "; ".join(sorted({f"{end.outcome}, {end.reason.partition(' after ')[0][:60]}" for end in ends.values()}))
    return Row(
        NAMES[kind],
        f"{says}; {slowest:.2f} s",
        f"{outcome}, {reason}, within {TIMEOUT:.0f} s",
        slowest <= TIMEOUT + SLACK
        and all(end.outcome == outcome and end.reason.startswith(reason) for end in ends.values()),
    )


NAMES = {
    "bomb": "gzip bomb, 1 MB that says 1 GB",
    "drip": "a byte each 0.5 s",
    "headers": "100,000 headers",
    "endless": "chunks without end",
    "metadata": "redirect to 169.254.169.254",
}


class Hostile:
    """The script: what follows each kind of path."""

    def __init__(self) -> None:
        self._bomb = answer(_bomb(1024), "Content-Encoding: gzip")
        self._headers = answer(b"", *(f"X-{number}: 0123456789" for number in range(100_000)))

    def __call__(self, path: str) -> Act:
        """What follows a request for /KIND/NUMBER."""
        kind = path.split("/")[1]
        match kind:
            case "bomb":
                return self._bomb
            case "headers":
                return self._headers
            case "metadata":
                return answer(b"", f"Location: {METADATA}", status="302 Found")
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
    """A gzip stream of that many MiB of zeros, a thousandth as large; it has no end, which nobody should reach."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    head = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    return head + (packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)) * (mebibytes - 1)
