"""What a response was read into goes with it: nothing of it waits for the garbage collection, which seldom comes."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest

from crawler.job.job import read_job
from crawler.model import HttpResponse
from crawler.parse import hook
from tests.crawler.examples import a_document
from tests.crawler.parse.follow.examples import a_list_page
from tests.crawler.parse.test_hook import Sent

PAGES = 50
HTML = (
    "<base href='/a/'><h1>T</h1><article><p>"
    + "words and words. " * 30
    + "</article><a href=1>1</a><a rel=next href=2>"
)
ITEMS = {"next": "c2", "items": [{"id": 1, "links": ["/p/1"]}, {"id": None, "links": []}]}
FOLLOW = {"from": "a @href"}


def table(**columns: str) -> dict[str, Any]:
    """A table of texts, from a selector each."""
    return {"name": "facts", "columns": {name: {"type": "text", "from": one} for name, one in columns.items()}}


NAMED = table(title="h1", text="$article.text?", at="$article.date?")
PARSERS = {
    "reads": "response.css('a')[0].css('b'), response.links(), response.select('h1'), response.json",
    "follows": "[response.follow(one) for one in response.links()]",
    "raises": "[][1]",
    "says": "response.failed(response.key, 'why')",
}


@pytest.mark.parametrize(
    ("sections", "body", "reason"),
    [
        ({"parse": {"format": "html"}, "follow": [FOLLOW], "tables": [NAMED]}, HTML, None),
        ({"parse": {"format": "html"}, "paginate": {"next": "a[rel=next] @href"}, "tables": [NAMED]}, HTML, None),
        ({"parse": {"format": "html"}, "tables": [table(n="h3")]}, HTML, "h3"),
        ({"parse": {"format": "html", "failed": "h2"}, "tables": [NAMED]}, HTML + "<h2>", "h2"),
        ({"parse": {"format": "xml"}, "tables": [table(n="b")]}, "<a><b>1</b></a>", None),
        ({"parse": {"format": "xml"}, "tables": [table(n="b")]}, "<a><b>1</b>", "XML"),
        (
            {
                "tables": [{**table(n="id?", m="^.next"), "rows": "items"}],
                "follow": [{"from": "items[].links[]"}],
            },
            json.dumps(ITEMS),
            None,
        ),
        ({"tables": [table(n="absent")]}, json.dumps(ITEMS), "absent"),
        ({"parse": {"format": "csv"}, "tables": [table(n="id")]}, "id\n1\n2\n", None),
        ({"parse": {"format": "ndjson"}, "tables": [table(n="id")]}, '{"id":1}', None),
        *(({"parse": {"python": f"cycles:{name}"}}, HTML, None) for name in PARSERS),
    ],
)
def test_a_page_leaves_no_garbage(tmp_path: Path, sections: dict[str, Any], body: str, reason: str | None) -> None:
    text = "".join(f"def {name}(response):\n    {code}\n" for name, code in PARSERS.items())
    (tmp_path / "cycles.py").write_text(text)
    parser = hook.load(read_job(a_document(**sections), tmp_path))
    assert parser is not None

    def parse() -> None:
        page = a_list_page()
        parser.apply([page], "https://shop.example/a", HttpResponse(200, Sent({}), body.encode()))
        if reason is not None:
            assert reason in str(page.reason)

    def garbage() -> int:
        for _ in range(PAGES):
            parse()
        return gc.collect()

    gc.disable()
    try:
        # The first times also bring what tests before this one have left.
        assert min(garbage() for _ in range(3)) < PAGES
    finally:
        gc.enable()
