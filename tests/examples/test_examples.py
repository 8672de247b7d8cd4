"""Every example does what its README says, with the commands that its README shows."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from crawler.sample.upstream import Upstream
from tests.live.shell import Running, Shell

pytestmark = pytest.mark.anyio

EXAMPLES = Path(__file__).parents[2] / "examples"
ADDRESS_IN_EXAMPLES = "127.0.0.1:8077"  # of the sample upstream
SETTINGS_OF_THE_JOB = {"SHARDCRAWL_RATE": "", "SHARDCRAWL_ALLOW_PRIVATE": ""}


class Example:
    """Runs the commands of one example's README on real servers, with the test's upstream instead of port 8077."""

    def __init__(self, shell: Shell, environ: dict[str, str]) -> None:
        self._shell = shell
        self._environ = environ

    async def follow(self, name: str, upstream: Upstream) -> None:
        """Run every command that the README shows."""
        folder = self._shell.folder
        shutil.copytree(EXAMPLES / name, folder, dirs_exist_ok=True)
        for path in (folder / "job.toml", *folder.glob("urls.txt")):
            path.write_text(path.read_text().replace(ADDRESS_IN_EXAMPLES, upstream.url.removeprefix("http://")))
        commands = re.findall(r"^shardcrawl (.+)$", (EXAMPLES / name / "README.md").read_text(), re.MULTILINE)
        assert [command.split()[0] for command in commands[:3]] == ["check", "run", "sql"]
        for command in commands:
            await self.run(*shlex.split(command))

    async def follow_notebook(self, name: str, upstream: Upstream) -> None:
        """Execute the cells of the example's notebook as one program: a kernel would be a large package."""
        folder = self._shell.folder
        program = []
        for cell in json.loads((EXAMPLES / name / "notebook.ipynb").read_text())["cells"]:
            source = "".join(cell["source"]).replace(ADDRESS_IN_EXAMPLES, upstream.url.removeprefix("http://"))
            if written := re.fullmatch(r"%%writefile (\S+)\n(.*)", source, re.DOTALL):
                (folder / written[1]).write_text(written[2])
            elif cell["cell_type"] == "code":
                program.append(source)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-c", "\n".join(program)),
            cwd=folder,
            env={**os.environ, **self._environ},
            stderr=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        ended = await Running(process).end()
        assert ended.code == 0, ended.err

    async def run(self, *words: str) -> None:
        await self._shell.run(*words, environ=self._environ)

    async def sql(self, query: str) -> list[dict[str, Any]]:
        return await self._shell.sql(query, self._environ)

    async def outcomes(self) -> dict[str, int]:
        rows = await self.sql("select outcome, count(*) as keys from pages_current group by 1")
        return {row["outcome"]: row["keys"] for row in rows}


@pytest.fixture
def example(shell: Shell, environ: dict[str, str]) -> Example:
    return Example(shell, {**SETTINGS_OF_THE_JOB, **environ})


def test_every_example_is_listed_and_tested() -> None:
    folders = {path.parent.name for path in EXAMPLES.glob("*/README.md")}
    assert folders == set(re.findall(r"\((.+)/README\.md\)", (EXAMPLES / "README.md").read_text()))
    assert folders == set(re.findall(r'await example.follow\w*\("(.+)", ', Path(__file__).read_text()))


async def test_urls(example: Example) -> None:
    async with Upstream(size=300, disallow="/item/private") as upstream:
        await example.follow("urls", upstream)
        assert await example.outcomes() == {"stored": 48, "gone": 1, "refused": 3}
        assert not [path for path in upstream.paths if "private" in path]
        sent = upstream.requests
        await example.run("run", "job.toml")
        assert upstream.requests == sent, "a complete run fetches nothing"
    assert await example.sql("select attempts from pages where attempts > 1") == [{"attempts": 2}]
    refused = await example.sql("select reason from pages where outcome = 'refused'")
    assert sum("robots.txt" in row["reason"] for row in refused) == 2


@pytest.mark.slow
async def test_api_batch(example: Example) -> None:
    async with Upstream() as upstream:
        await example.follow("api-batch", upstream)
        assert upstream.requests == 4
    assert await example.outcomes() == {"stored": 195, "gone": 5}
    joined = "select count(*) as n from items_current join pages_current using (run_id, digest) where key = item_id"
    assert await example.sql(joined) == [{"n": 195}]


@pytest.mark.slow
async def test_records(example: Example) -> None:
    async with Upstream() as upstream:
        await example.follow("records", upstream)
    assert await example.outcomes() == {"stored": 100}
    assert await example.sql("select article, (price * 100)::bigint as n from articles_current order by 1") == [
        {"article": key, "n": crc32(key.encode())} for key in (f"page-{number:03}" for number in range(100))
    ]
    assert await example.sql("select count(*) as words from article_words_current") == [{"words": 1000}]


async def test_transform(example: Example) -> None:
    async with Upstream() as upstream:
        await example.follow("transform", upstream)
    assert await example.outcomes() == {"stored": 100}
    own = (
        "select count(distinct page) as pages, count(*) filter (where page = key) = count(*) as own from chunks_current"
    )
    assert await example.sql(f"{own} join pages_current using (run_id, digest)") == [{"pages": 100, "own": True}]
    lengths = (
        "select max(abs(1 - l)) < 0.0001 as one from (select sum(v * v) as l from chunks_current, unnest(vector) v"
    )
    assert await example.sql(f"{lengths} group by digest, position) as each") == [{"one": True}]


async def test_selectors(example: Example) -> None:
    async with Upstream() as upstream:
        await example.follow("selectors", upstream)
    assert await example.outcomes() == {"stored": 100}
    assert await example.sql("select count(modified) as dates, count(subtitle) as none from titles_current") == [
        {"dates": 100, "none": 0}
    ]
    assert await example.sql("select number from titles_current order by 1") == [
        {"number": number} for number in sorted(crc32(f"page-{number:03}".encode()) for number in range(100))
    ]
    own = "select count(*) filter (where own.title = titles.title) = count(*) as own, count(*) > 1000 as many"
    joined = "title_words_current own join titles_current titles using (run_id, digest)"
    assert await example.sql(f"{own} from {joined}") == [{"own": True, "many": True}]


BY_KIND = "select kind, outcome, count(*) as keys from pages_current group by 1, 2 order by 1"


@pytest.mark.slow
async def test_rest_cursor(example: Example) -> None:
    async with Upstream() as upstream:
        await example.follow("rest-cursor", upstream)
        assert len(upstream.paths) == 6 + 2, "each page once, and two keys for check --try"
    assert await example.outcomes() == {"stored": 6}
    assert await example.sql(
        "select topic, count(distinct work) as works from works_current group by 1 order by 1"
    ) == [
        {"topic": "T1", "works": 60},
        {"topic": "T2", "works": 60},
    ]


@pytest.mark.slow
async def test_graphql(example: Example) -> None:
    async with Upstream() as upstream:
        await example.follow("graphql", upstream)
        assert upstream.paths == ["/graphql"] * (3 + 1)
    assert await example.sql("select count(*) as n, count(distinct product_id) as ids from products_current") == [
        {"n": 60, "ids": 60}
    ]


async def test_mediawiki_category(example: Example) -> None:
    async with Upstream() as upstream:
        await example.follow("mediawiki-category", upstream)
        lists = [path for path in upstream.paths if "categorymembers" in path]
        assert len(lists) == 3 + 1
        assert len(upstream.paths) - len(lists) <= 6, "the titles of each list page in one or two requests"
    assert await example.sql(BY_KIND) == [
        {"kind": "article", "outcome": "stored", "keys": 120},
        {"kind": None, "outcome": "stored", "keys": 3},
    ]
    assert await example.sql("select count(distinct title) as titles from articles_current") == [{"titles": 120}]


@pytest.mark.slow
async def test_shop(example: Example) -> None:
    async with Upstream() as upstream:
        await example.follow("shop", upstream)
        assert len(upstream.paths) == 63 + 1
    assert await example.sql(BY_KIND) == [
        {"kind": "product", "outcome": "stored", "keys": 60},
        {"kind": None, "outcome": "stored", "keys": 3},
    ]
    assert await example.sql(
        "select price::text, right(image, 13) as image from products_current where page ~ '/60$'"
    ) == [{"price": "1320.60", "image": "/image/60.png"}]


@pytest.mark.slow
async def test_sitemap(example: Example) -> None:
    async with Upstream() as upstream:
        await example.follow("sitemap", upstream)
    assert await example.sql(BY_KIND) == [
        {"kind": "sitemap", "outcome": "stored", "keys": 3},
        {"kind": None, "outcome": "stored", "keys": 35},
    ]
    assert await example.sql("select count(*) as products from products_current") == [{"products": 35}]


@pytest.mark.slow
async def test_images(example: Example) -> None:
    async with Upstream() as upstream:
        await example.follow("images", upstream)
    assert await example.outcomes() == {"stored": 30, "gone": 1}
    png = "select count(distinct content) as n from pages where substr(content, 1, 4) = '\\x89504e47'"
    assert await example.sql(png) == [{"n": 30}]


@pytest.mark.slow
async def test_refresh(example: Example) -> None:
    async with Upstream() as upstream:
        await example.follow("refresh", upstream)
        assert upstream.requests == 200, "the second run finds everything young enough"
    assert await example.outcomes() == {"unchanged": 200}
    rows = "select count(*) as items, count(distinct id) as ids from items_current"
    assert await example.sql(rows) == [{"items": 200, "ids": 200}]


@pytest.mark.slow
async def test_notebook(example: Example) -> None:
    async with Upstream() as upstream:
        await example.follow_notebook("notebook", upstream)
        assert upstream.requests == 200 + 200
    assert await example.outcomes() == {"stored": 1, "unchanged": 199}
    assert await example.sql("select count(*) as items, min(words) > 50 as full from items_current") == [
        {"items": 200, "full": True}
    ]
