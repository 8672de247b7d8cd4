"""Which key of a request an upstream means by a name, with responses like those of a real MediaWiki."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import pytest

from coordinator.model import Outcome
from crawler.model import Again
from crawler.parse.response import Response
from tests.crawler.parse.test_hook import Sent

TITLES = ("Albert_Einstein", "deletion discussion 100", "NYC", "New York City", "Foo|Bar", "No such page", "Café")
MEDIAWIKI = {
    "batchcomplete": True,
    "query": {
        "normalized": [
            {"fromencoded": False, "from": "Albert_Einstein", "to": "Albert Einstein"},
            {"fromencoded": False, "from": "deletion discussion 100", "to": "Deletion discussion 100"},
            {"fromencoded": True, "from": "Cafe%CC%81", "to": "Café"},  # decomposed: e, then the accent
        ],
        "redirects": [
            {"from": "Deletion discussion 100", "to": "Discussion 100", "tofragment": "Top"},
            {"from": "NYC", "to": "New York City"},
        ],
        "pages": [],
    },
}


def response(keys: Sequence[str], document: Any = MEDIAWIKI, **more: Any) -> Response:
    return Response(keys, "https://wiki.example/w/api.php", 200, Sent(), json.dumps(document).encode(), **more)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Albert_Einstein", "Albert_Einstein"),  # a key is its own name
        ("Albert Einstein", "Albert_Einstein"),  # normalized
        ("Discussion 100", "deletion discussion 100"),  # normalized, then a redirect
        ("Deletion discussion 100", "deletion discussion 100"),  # half of that way
        ("New York City", "New York City"),  # a key itself, though another key is a redirect to it
        ("No such page", "No such page"),
        ("albert einstein", None),  # nothing is guessed
        ("Berlin", None),
    ],
)
def test_the_key_for_a_name_is_what_the_upstream_says(name: str, key: str | None) -> None:
    found = response(TITLES)
    assert found.key_for(name) == key
    assert found.unknown == ([] if key else [name])


def test_a_key_that_is_not_in_normal_form_c_is_found() -> None:
    assert response(["Cafe\u0301"]).key_for("Café") == "Cafe\u0301"


def test_what_a_key_is_called_in_the_end() -> None:
    found = response(TITLES)
    assert [found.name_of(key) for key in TITLES[:5]] == [
        *("Albert Einstein", "Discussion 100", "New York City", "New York City", "Foo|Bar")
    ]


def test_outcomes_are_said_by_either_name() -> None:
    found = response(TITLES)
    found.gone("Albert Einstein")
    found.failed("Foo|Bar", "invalid")
    assert found.said_of("Albert_Einstein") == (Outcome.GONE, "the response says that it does not exist")
    assert found.said_of("Foo|Bar") == (Outcome.FAILED, "invalid")
    with pytest.raises(ValueError, match="key 'Berlin' is not one of this request's"):
        found.gone("Berlin")


def test_a_parser_can_say_itself_what_a_key_is_called() -> None:
    found = response(["10.1000/ABC"], {})
    assert found.key_for("https://doi.example/10.1000/abc") is None
    found.alias("10.1000/ABC", "10.1000/abc")
    found.alias("10.1000/abc", "https://doi.example/10.1000/abc")
    assert found.key_for("https://doi.example/10.1000/abc") == "10.1000/ABC"


def test_the_job_names_where_another_upstream_lists_its_names() -> None:
    document = {"meta": {"renamed": [{"from": "a", "to": "A"}]}, "query": {"normalized": [{"from": "a", "to": "B"}]}}
    found = response(["a"], document, alias_paths=["meta.renamed", "meta.absent"])
    assert (found.key_for("A"), found.key_for("B")) == ("a", None)


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {"query": []},
        {"query": {"normalized": {"from": "a", "to": "b"}}},
        {"query": {"normalized": ["a", None, {}, {"from": "a"}, {"from": 1, "to": 2}]}},
        {"query": {"redirects": [{"from": "a", "to": "b"}, {"from": "b", "to": "a"}, {"from": "c", "to": "c"}]}},
    ],
)
def test_lists_that_say_nothing_useful_do_no_harm(document: Any) -> None:
    found = response(["a", "c"], document)
    assert (found.key_for("a"), found.key_for("c"), found.key_for("z")) == ("a", "c", None)


def test_a_body_that_is_no_json_has_no_names() -> None:
    assert Response(["a"], "", 200, Sent(), b"<html>").key_for("b") is None


# -- selectors of a parser's own

SHOP = b"""<html><head><base href="/shop/"></head><body><h1>A
 shop</h1><ul><li id=1><a href="p/1#x">One</a></li><li id=2><a href="p/2">Two</a></li></ul>
<a href="p/1">again</a><a href="mailto:me@x.example">me</a><a href="//other.example/a b">other</a><a>none</a></body>"""


def a_page_of(body: bytes = SHOP, language: str = "html") -> Response:
    sent = Sent({"content-type": "text/html"})
    return Response(["k"], "https://x.example/list?p=1", 200, sent, body, language=language)


def test_css_finds_elements_and_texts_of_attributes() -> None:
    page = a_page_of()
    assert [element.text for element in page.css("h1")] == ["A shop"]
    items = page.css("li")
    assert [(item.attr("id"), item.css("a")[0].text, item.css("a @href"), item.attr("none")) for item in items] == [
        ("1", "One", ["https://x.example/shop/p/1#x"], None),
        ("2", "Two", ["https://x.example/shop/p/2"], None),
    ]
    assert page.css("li @id") == ["1", "2"]
    assert page.css("p") == page.css("p @id") == []
    with pytest.raises(ValueError, match="invalid CSS selector"):
        page.css("li[")


def test_links_are_absolute_each_once_and_without_fragments() -> None:
    assert a_page_of().links() == [
        "https://x.example/shop/p/1",
        "https://x.example/shop/p/2",
        "https://other.example/a%20b",
    ]
    many = b"".join(b"<a href=/%d>x</a>" % number for number in range(100_000))
    assert len(a_page_of(b"<base href='http://[::bad'>" + many).links()) == 100_000


@pytest.mark.parametrize(
    ("body", "language", "path", "value"),
    [
        (b'{"a": [{"b": 1}, {"b": 2}]}', "json", "a[].b", [1, 2]),
        (b'{"a": 1}', "json", "$.a", 1),
        (b'{"a": 1}', "json", "b?", None),
        (b'{"a": 1}', "json", "$status", 200),
        (b"n\n7\n", "csv", ".", [{"n": "7"}]),
        (SHOP, "html", "li[] @id", ["1", "2"]),
        (b"<a xmlns:x='u'><x:b>7</x:b></a>", "xml", "b", "7"),
    ],
)
def test_a_path_leads_where_it_leads_in_the_job_file(body: bytes, language: str, path: str, value: Any) -> None:
    assert a_page_of(body, language).select(path) == value


@pytest.mark.parametrize(
    ("body", "path", "says"),
    [
        (b'{"a": 1}', "b", "nothing at b; write b? where it may be absent"),
        (b'{"a": [{}]}', "a.b", "'b' stands behind a list; write [] for each of its elements"),
        (b"<p>", "b", "the response is no JSON but text/html"),
        (b"{}", "a[", "'a[' is wrong at character 2"),
    ],
)
def test_a_path_that_leads_to_nothing_is_an_error(body: bytes, path: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        a_page_of(body, "json").select(path)


def test_what_a_parser_says_of_its_keys() -> None:
    found = response(["a", "b", "c"], {})
    found.retry("busy", after=5)
    found.retry("wait\na bit", key="b")
    found.unchanged("c")
    assert [found.said_of(key) for key in "abc"] == [Again("busy", 5), Again("wait a bit"), (Outcome.UNCHANGED, None)]
    for after in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="give it a number of seconds"):
            found.retry("busy", after=after)
    with pytest.raises(ValueError, match="key 'd' is not one of this request's"):
        found.retry("busy", key="d")


def test_source_has_what_comes_with_the_key() -> None:
    assert dict(response(["a"], {}).source) == {}
    found = response(["a"], {}, source={"caption": "A"})
    assert (found.source["caption"], found.select("$source.caption"), found.select("$source.none?")) == ("A", "A", None)
