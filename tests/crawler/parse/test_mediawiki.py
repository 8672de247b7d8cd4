"""The parser that the README shows, with what a real MediaWiki sends: one odd title costs only itself."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from coordinator.model import Outcome
from crawler.model import HttpResponse
from crawler.parse.columns import Table
from crawler.parse.hook import Hook, Remarks
from tests.crawler.examples import a_page, a_table
from tests.crawler.parse import mediawiki
from tests.crawler.parse.test_hook import Sent

README = (Path(__file__).parents[3] / "README.md").read_text()
TABLES = [Table(a_table("revisions", page_id="bigint", rev_id="bigint", user_name="text", at="timestamptz"))]


def parsed(*keys: str, body: Any) -> tuple[dict[str, tuple[str, str | None, list[int]]], Remarks | None]:
    """{key: (outcome, reason, ids of the revisions)}, and what was remarked."""
    names: dict[str, Any] = {}
    (code,) = re.findall(r"```python\n(.+?)```", README, re.DOTALL)
    exec(code, names)
    pages = [a_page(key, body=None) for key in keys]
    response = HttpResponse(200, Sent(), json.dumps(body).encode())
    remarks = Hook(names["revisions"], TABLES, __name__).apply(pages, "https://wiki.example/", response)
    return {
        page.item.key: (page.outcome.value, page.reason, [values[1] for _, values in page.records]) for page in pages
    }, remarks


NO_RECORD = ("failed", "no record", [])
INVALID = ("failed", 'The requested page title contains invalid characters: "[".', [])
GONE = ("gone", "the response says that it does not exist", [])
EXPECTED = {
    "Albert_Einstein": ("stored", None, [1]),
    "deletion discussion 100": ("stored", None, [2]),
    "No such page": GONE,
    "Foo[bar]": INVALID,
    "NYC": ("stored", None, [3]),
    "New York City": ("stored", None, [3]),
    "Special:Random": NO_RECORD,
    "fr:Paris": NO_RECORD,
}


def test_every_title_of_a_request_has_the_outcome_that_is_its_own() -> None:
    assert parsed(*EXPECTED, body=mediawiki.MIXED) == (EXPECTED, None)


@pytest.mark.parametrize("key", EXPECTED)
def test_a_title_alone_has_the_same_outcome(key: str) -> None:
    expected = ("stored", None, []) if EXPECTED[key] == NO_RECORD else EXPECTED[key]
    query = mediawiki.MIXED["query"]
    names = (key, key.replace("_", " "), key[0].upper() + key[1:], "New York City" if key == "NYC" else key)
    body = {"batchcomplete": True, "query": {**query, "pages": [p for p in query["pages"] if p["title"] in names]}}
    found, _ = parsed(key, body=body)
    assert found == {key: expected}


def test_a_response_that_is_cut_off_is_an_error() -> None:
    reason = "parse: ValueError: the response is cut off"
    found, remarks = parsed("A", "B", body=mediawiki.CUT_OFF)
    assert found == dict.fromkeys("AB", (Outcome.FAILED, reason, []))
    assert remarks is not None
    assert remarks.error == reason


def test_a_response_without_pages_has_no_record_and_one_with_an_error_is_an_error() -> None:
    assert parsed("fr:Paris", "fr:Berlin", body=mediawiki.ONLY_INTERWIKI)[0] == dict.fromkeys(
        ["fr:Paris", "fr:Berlin"], NO_RECORD
    )
    assert parsed("A", "B", body=mediawiki.FAILED)[0]["A"][:2] == ("failed", "parse: KeyError: 'query'")


def test_the_names_of_the_first_format_are_read_too() -> None:
    def parse(response: Any) -> dict[str, Any]:
        found = response.json()["query"]["pages"].values()
        return {
            "revisions": [
                {"_key": response.key_for(page["title"]), "page_id": page["pageid"]}
                for page in found
                if "pageid" in page
            ]
        }

    pages = [a_page(key, body=None) for key in ("Cafe\u0301", "No such page")]
    Hook(parse, TABLES, __name__).apply(
        pages, "", HttpResponse(200, Sent(), json.dumps(mediawiki.FIRST_FORMAT).encode())
    )
    assert [page.records for page in pages] == [[(0, (7, None, None, None))], []]
