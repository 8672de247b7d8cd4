"""`shardcrawl init`: each kind of start passes `check` as it is written, and its selectors do what its comments say."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from crawler.cli.check import STARTS
from crawler.testing import parse, response
from tests.live.shell import Shell

pytestmark = pytest.mark.anyio

FILES = {"job.toml", "keys.txt", "README.md"}
ITEM = {"id": "1001", "title": "A", "tags": [{"name": "x"}, {"name": "y"}], "updated_at": "2026-01-01T00:00:00Z"}
PAGE = (
    '<ul><li class="product"><h2><a href="/a">A</a></h2><b class="price">$1,299.00</b><i class="tag">x</i></li>'
    '<li class="product"><h2><a href="/b">B</a></h2></li></ul>'
)
ARTICLE = '<h1>A</h1><time datetime="2026-01-01T00:00:00Z">today</time><p>Text.</p>'
PRODUCT = {"data": {"product": {"id": "1001", "title": "A", "price": {"amount": "1.50"}}}}
# Of each kind with rows: a body, the table, and columns of its rows.
ROWS: dict[str, tuple[Any, str, list[dict[str, Any]]]] = {
    "api": (ITEM, "items", [{"item_id": "1001", "title": "A", "price": None, "tags": ["x", "y"]}]),
    "graphql": (PRODUCT, "products", [{"product_id": "1001", "title": "A", "price": Decimal("1.50")}]),
    "sitemap": (
        ARTICLE,
        "articles",
        [{"title": "A", "published": datetime(2026, 1, 1, tzinfo=UTC), "page": "https://www.example.org/a"}],
    ),
    "html": (
        PAGE,
        "products",
        [
            {"name": "A", "link": "https://www.example.org/a", "price": Decimal("1299.00"), "tags": ["x"]},
            {"name": "B", "link": "https://www.example.org/b", "price": None, "tags": []},
        ],
    ),
}


@pytest.mark.parametrize("kind", [None, *STARTS])
async def test_each_start_passes_check(shell: Shell, environ: dict[str, str], kind: str | None) -> None:
    ended = await shell.run("init", "new/job", *([f"--{kind}"] if kind else []), environ=environ)
    folder = shell.folder / "new" / "job"
    assert "next: edit them, then shardcrawl check new/job/job.toml" in ended.out
    assert {path.name for path in folder.iterdir()} == FILES - ({"keys.txt"} if kind == "sitemap" else set())
    limits_of_the_job = {**environ, "SHARDCRAWL_RATE": "", "SHARDCRAWL_ALLOW_PRIVATE": ""}
    checked = await shell.run("check", folder / "job.toml", environ=limits_of_the_job)
    assert "the job is fine; nothing was sent" in checked.out, "there is no warning"
    if kind in ROWS:
        body, table, rows = ROWS[kind]
        keys = folder / "keys.txt"
        key = keys.read_text().split()[0] if keys.exists() else "https://www.example.org/a"
        headers = {"content-type": "text/html"} if isinstance(body, str) else None
        parsed = parse(folder / "job.toml", response(body, key=key, headers=headers))
        assert parsed.outcomes == {key: ("stored", None)}
        shown = [{name: row[name] for name in wanted} for row, wanted in zip(parsed.tables[table], rows, strict=True)]
        assert shown == rows


@pytest.mark.parametrize("name", sorted(FILES))
async def test_no_file_is_overwritten(shell: Shell, name: str) -> None:
    shell.write(name, ["mine"])
    ended = await shell.run("init", code=2)
    assert ended.err.splitlines() == [
        f"error: init: {name} is there already, and nothing was written; name another folder"
    ]
    assert FILES & {path.name for path in shell.folder.iterdir()} == {name}
    assert (shell.folder / name).read_text() == "mine\n"


async def test_a_folder_that_cannot_be_written_is_one_line(shell: Shell) -> None:
    shell.write("file", ["x"])
    ended = await shell.run("init", "file/job", code=1)
    assert ended.err.splitlines() == ["error: init: file/job: Not a directory; name a folder that can be written"]
