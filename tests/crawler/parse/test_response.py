"""Which key of a request an upstream means by a name, with responses like those of a real MediaWiki."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from coordinator.model import Outcome
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
    assert found.outcome_of("Albert_Einstein") == (Outcome.GONE, "the response says that it does not exist")
    assert found.outcome_of("Foo|Bar") == (Outcome.FAILED, "invalid")
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
