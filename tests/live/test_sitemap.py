"""Whole runs over a sitemap: every page that it names is stored once, also when the run is killed on the way."""

from __future__ import annotations

import gzip

import pytest

from crawler.sample.connection import CannedResponse
from crawler.sample.upstream import Upstream
from tests.live.shell import Shell, kill_tree
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

PAGES = 1_200
OLD = 100
BY_KIND = (
    "select kind, outcome, count(*) as pages, count(distinct digest) as digests, max(depth) as depth, "
    "count(body) as bodies from pages group by 1, 2 order by 1"
)


class Site(Upstream):
    """Its robots.txt names an index, which names three sitemaps of the pages /item/N: XML, gzip and text."""

    broken = False

    def respond(self, method: str, target: bytes, condition: str) -> CannedResponse:
        path = target.decode()
        if path == "/robots.txt":
            text = f"User-agent: *\nDisallow: /robots\nDisallow: /item/1\nSitemap: {self.url}/index.xml\n"
            return CannedResponse(200, text.encode(), "text/plain")
        if not path.startswith("/index") and not path.startswith("/map"):
            return super().respond(method, target, condition)
        super().respond(method, target, condition)  # which counts it
        match path:
            case "/index.xml":
                names = ("map-a.xml", "map-b.xml.gz", "map-c.txt", "index.xml", "map-a.xml")
                entries = "".join(f"<sitemap><loc>{self.url}/{name}</loc></sitemap>" for name in names)
                return CannedResponse(200, f"<sitemapindex>{entries}</sitemapindex>".encode(), "text/xml")
            case "/map-a.xml":
                return CannedResponse(503 if self.broken else 200, self._urlset(1_000, 1_500), "application/xml")
            case "/map-b.xml.gz":
                return CannedResponse(200, gzip.compress(self._urlset(1_400, 2_000)), "application/gzip")
            case _:
                lines = "".join(f"{self.url}/item/{number}\n" for number in range(1_900, 2_200 + OLD))
                return CannedResponse(200, lines.encode(), "text/plain")

    def _urlset(self, first: int, last: int) -> bytes:
        days = {True: "2026-02-01", False: "2025-12-31T23:59:59Z"}
        entries = (
            f"<url><loc>{self.url}/item/{number}</loc><lastmod>{days[number >= 1_000 + OLD]}</lastmod></url>"
            for number in range(first, last)
        )
        return f'<?xml version="1.0"?><urlset>{"".join(entries)}</urlset>'.encode()


def job(site: Upstream, more: str = "") -> str:
    return f"""
        [run]
        name = "site"
        [source]
        sitemap = "{site.url}/robots.txt"
        since = "2026-01-01"
        [request]
        robots = false
        {more}
    """


@pytest.mark.slow
async def test_a_killed_run_over_an_index_goes_on_and_stores_each_page_once(
    shell: Shell, environ: dict[str, str]
) -> None:
    async with Site() as site:
        command = ("run", shell.write("job.toml", job(site)), "--rate", "500", "--batch-rows", "50")
        running = await shell.start(*command, environ=environ)
        await eventually(lambda: site.requests >= 300, "300 requests", seconds=60)
        kill_tree(running.process.pid)
        await shell.run(*command, environ=environ)
        assert await shell.sql(BY_KIND, environ) == [
            {"kind": "sitemap", "outcome": "stored", "pages": 5, "digests": 5, "depth": 0, "bodies": 0},
            {"kind": None, "outcome": "stored", "pages": PAGES, "digests": PAGES, "depth": 0, "bodies": PAGES},
        ]
        assert site.requests < 5 + PAGES + 200, "what a kill loses at most"
        await shell.run("audit", "site", environ=environ)


async def test_robots_txt_holds_for_the_pages_and_not_for_itself(shell: Shell, environ: dict[str, str]) -> None:
    async with Site() as site:
        shell.write("job.toml", job(site).replace("robots = false", ""))
        checked = await shell.run("check", "job.toml", "--try", "1", code=1, environ=environ)
        assert f"sitemap {site.url}/robots.txt" in checked.out
        assert "the pages that the sitemap names" in checked.out
        assert f"  {site.url}/item/1100: refused: robots.txt of {site.url} disallows it" in checked.out
        await shell.run("run", "job.toml", environ=environ)
        by_outcome = "select kind, outcome, count(*) as pages from pages group by 1, 2 order by 1, 2"
        assert await shell.sql(by_outcome, environ) == [
            {"kind": "sitemap", "outcome": "stored", "pages": 5},
            {"kind": None, "outcome": "refused", "pages": PAGES - 300},
            {"kind": None, "outcome": "stored", "pages": 300},
        ]


async def test_a_sitemap_that_failed_is_requested_again_by_retry(shell: Shell, environ: dict[str, str]) -> None:
    async with Site() as site:
        site.broken = True
        shell.write("job.toml", job(site, "[retry]\nattempts = 1\n"))
        await shell.run("run", "job.toml", environ=environ)
        assert await shell.sql("select count(*) as pages from pages where kind is null", environ) == [
            {"pages": PAGES - 300}
        ]
        site.broken = False
        await shell.run("retry", "site", environ=environ)
        await shell.run("run", "job.toml", environ=environ)
        assert [row["pages"] for row in await shell.sql(BY_KIND, environ)] == [5, PAGES]
        await shell.run("audit", "site", environ=environ)
