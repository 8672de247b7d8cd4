"""`python -m ops.bench.site`: HTML pages of a generated shop: their links are followed, their products are selected.

Two promises. A crawl from one page, with 20 links on each, makes at least 0.8 times the pages a second of the same
pages as a list; every page once, at its least depth. And selectors make at least 3 times the pages a second of Scrapy
with its own selectors on the same pages. Rounds alternate. Prints a table, writes site.json, and exits with 1 when a
promise does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import asyncpg
from rich import box
from rich.console import Console
from rich.table import Table

from coordinator.errors import ShardcrawlError
from ops.bench import watch
from ops.bench.arena import Arena, machine, open_arena
from ops.bench.report import Report
from ops.nginx import Nginx

HERE = Path(__file__).parent
LINKS = 20
DEADLINE_SECONDS = 900.0
FOLLOWED, LISTED, SELECTED, SCRAPY = "links followed", "the same as a list", "selectors", "Scrapy's selectors"
SECONDS = "SELECT extract(epoch FROM max(fetched_at) - min(fetched_at))::float8 FROM pages"
PROMISED_CRAWL, PROMISED_SELECTORS = 0.8, 3.0
WORDS = [
    "plain",
    "sturdy",
    "oak",
    "beech",
    "walnut",
    "brass",
    "linen",
    "wool",
    "glazed",
    "woven",
    "folding",
    "stacking",
    "narrow",
    "wide",
    "low",
    "tall",
]
JOB = """
[run]
name = "site"
concurrency = 128
[source]
path = "{source}"
[request]
robots = false
allow_private = ["127.0.0.0/8"]
[limits."*"]
rate = "none"
[parse]
format = "html"
[store]
batch_rows = 4000
[[tables]]
name = "products"
[tables.columns]
title = {{ type = "text", from = "h1" }}
price = {{ type = "numeric", from = ".price", as = "number" }}
sku = {{ type = "text", from = ".product @data-sku" }}
stock = {{ type = "integer", from = ".stock", as = "number" }}
about = {{ type = "text", from = ".about" }}
"""
FOLLOW = '[[follow]]\nfrom = "ul.next a @href"\ndepth = 1000\n'


@dataclass(frozen=True, slots=True)
class Crawl:
    """One crawl: pages a second, and the most memory of all its processes in MB."""

    what: str
    pages: int
    rate: float
    memory: float


def neighbours(page: int, pages: int) -> list[int]:
    """The pages to which a page links."""
    return [(page * LINKS + link) % pages for link in range(1, LINKS + 1)]


def write_site(folder: Path, pages: int) -> None:
    """Write the files of the shop."""
    folder.mkdir(parents=True, exist_ok=True)
    for page in range(pages):
        links = "".join(
            f'<li><a href="/site/{one}">{WORDS[one % 16]} {one}</a></li>' for one in neighbours(page, pages)
        )
        about = " ".join(WORDS[(page + word * word) % 16] for word in range(150))
        (folder / str(page)).write_text(
            f"<!DOCTYPE html><html><head><title>{page}</title></head><body><h1>{WORDS[page % 16]} chair {page}</h1>"
            f'<div class="product" data-sku="S-{page}"><span class="price">${page % 900 + 1:,}.50</span>'
            f'<b class="stock">{page % 7}</b><p class="about">{about}</p></div>'
            f'<ul class="next">{links}</ul></body></html>'
        )


def depths(pages: int) -> Counter[int]:
    """How many pages have each depth, from page 0."""
    depth = {0: 0}
    waiting = [0]
    for page in waiting:
        for one in neighbours(page, pages):
            if one not in depth:
                depth[one] = depth[page] + 1
                waiting.append(one)
    return Counter(depth.values())


async def measure(pages: int, rounds: int, parts: Sequence[str], console: Console) -> list[Crawl]:
    """Crawls in turn; each round begins with another one."""
    crawls: list[Crawl] = []
    folder = Path(tempfile.mkdtemp(prefix="shardcrawl-bench-"))
    try:
        with Nginx(folder / "nginx") as nginx:
            write_site(nginx.site, pages)
            async with open_arena(folder) as arena:
                for number in range(rounds):
                    for part in parts if number % 2 == 0 else parts[::-1]:
                        crawls.append(await _crawl(arena, f"{nginx.url}/site/", part, pages))
                        shown = f"{crawls[-1].rate:,.0f} pages/s, {crawls[-1].memory:.0f} MB"
                        console.print(f"round {number + 1} of {rounds}: {part}: {shown}", highlight=False)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return crawls


async def _crawl(arena: Arena, url: str, what: str, pages: int) -> Crawl:
    await arena.clear()
    source = arena.folder / "urls.txt"
    count = 1 if what == FOLLOWED else pages
    source.write_text("".join(f"{url}{page}\n" for page in range(count)))
    job = arena.folder / "job.toml"
    job.write_text(JOB.format(source=source) + (FOLLOW if what == FOLLOWED else ""))
    command = ["crawler", "run", str(job), "--workers", "2", "--rate", "none"]
    if what == SCRAPY:
        command = ["ops.bench.rivals.scrapy_selectors", str(source), arena.database]
    spent = await asyncio.to_thread(
        watch.run, command, arena.environ, arena.folder, deadline_seconds=DEADLINE_SECONDS, poll_seconds=2.0
    )
    connection = await asyncpg.connect(arena.database)
    try:
        rows = await connection.fetchval("SELECT count(DISTINCT url) FROM pages")
        if rows != pages:
            raise watch.ContenderFailed(f"{what}: stored {rows} of {pages} pages")
        if what == SCRAPY:
            report = Report.read(spent.out)
            return Crawl(what, pages, pages / (report.last - report.first), spent.memory)
        seconds = await connection.fetchval(
            "SELECT extract(epoch FROM max(fetched_at) - min(fetched_at))::float8 FROM pages"
        )
        records = await connection.fetchval("SELECT count(DISTINCT sku) FROM products")
        found = await connection.fetch("SELECT depth, count(*) FROM pages GROUP BY 1")
    finally:
        await connection.close()
    if records != pages or (what == FOLLOWED and dict(found) != dict(depths(pages))):
        raise watch.ContenderFailed(f"{what}: {records} products of {pages} pages, at depths {dict(found)}")
    return Crawl(what, pages, pages / seconds, spent.memory)


def ratio(crawls: Sequence[Crawl], one: str, other: str) -> float:
    """The median of the rounds' ratios of the pages a second."""
    rates = [[crawl.rate for crawl in crawls if crawl.what == what] for what in (one, other)]
    return float(median(first / second for first, second in zip(*rates, strict=True)))


def promises(crawls: Sequence[Crawl], parts: Sequence[str]) -> dict[str, bool]:
    """What is promised, and whether it held."""
    held = {}
    if FOLLOWED in parts:
        words = f"links followed make >= {PROMISED_CRAWL} times the pages of a list"
        held[words] = ratio(crawls, FOLLOWED, LISTED) >= PROMISED_CRAWL
    if SCRAPY in parts:
        words = f"selectors make >= {PROMISED_SELECTORS:.0f} times the pages of Scrapy's"
        held[words] = ratio(crawls, SELECTED, SCRAPY) >= PROMISED_SELECTORS
    return held


def table(crawls: Sequence[Crawl], parts: Sequence[str]) -> Table:
    """The figures: medians of the rounds."""
    shown = Table(box=box.SIMPLE_HEAD, title=f"{crawls[0].pages:,} HTML pages with {LINKS} links each")
    for column in ("crawl", "pages/s", "ratio to the next", "MB at most"):
        shown.add_column(column, justify="left" if column == "crawl" else "right")
    for number, part in enumerate(parts):
        same = [crawl for crawl in crawls if crawl.what == part]
        other = f"{ratio(crawls, part, parts[number + 1]):.2f}" if number % 2 == 0 else ""
        rate, memory = median(crawl.rate for crawl in same), max(crawl.memory for crawl in same)
        shown.add_row(part, f"{rate:,.0f}", other, f"{memory:.0f}")
    return shown


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=["follow", "select", []], default=[])
    parser.add_argument("--pages", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=watch.output_folder, default=HERE, help="folder of site.json")
    arguments = parser.parse_args()
    watch.stop_on_sigterm()
    wanted = arguments.parts or ["follow", "select"]
    parts = [*([FOLLOWED, LISTED] if "follow" in wanted else []), *([SELECTED, SCRAPY] if "select" in wanted else [])]
    where = machine()
    try:
        crawls = asyncio.run(measure(arguments.pages, arguments.rounds, parts, Console(stderr=True)))
    except ShardcrawlError as error:
        sys.exit(f"error: {error}")
    held = promises(crawls, parts)
    results = {"machine": where, "crawls": [asdict(crawl) for crawl in crawls], "promises": held}
    (arguments.output / "site.json").write_text(json.dumps(results, indent=1) + "\n")
    console = Console(width=120)
    console.print(table(crawls, parts))
    for promise, holds in held.items():
        console.print(f"{'yes' if holds else 'NO ':<4} {promise}", highlight=False)
    sys.exit(0 if all(held.values()) else 1)


if __name__ == "__main__":
    main()
