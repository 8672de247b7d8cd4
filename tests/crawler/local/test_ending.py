"""What the summary says where a list or a rule found nothing."""

from __future__ import annotations

import pytest

from crawler.local.ending import found_notices
from crawler.store.rows.found import FoundCounts
from tests.crawler.examples import a_job

LIST, RULE = {"next": "next?"}, [{"from": "a[]"}, {"from": "b[]", "kind": "product"}]
KINDS = {"product": {"parse": {"format": "html"}}}
MISSING_LIST = "[paginate]: no page named a next one; is that right?"
MISSING_RULES = [
    "[[follow]] 1: no page named a key; is that right?",
    "[[follow]] 2: no page named a key of kind product; is that right?",
]


@pytest.mark.parametrize(
    ("job", "found", "broken", "says"),
    [
        ({}, {}, 0, []),
        ({"paginate": LIST}, {"": FoundCounts(5, 0, 0, 0)}, 0, [MISSING_LIST]),
        ({"paginate": LIST}, {"": FoundCounts(5, 3, 0, 0)}, 0, []),
        ({"paginate": LIST}, {}, 0, []),
        (
            {"paginate": LIST, "follow": RULE[:1]},
            {"": FoundCounts(5, 0, 4, 0)},
            0,
            ["[paginate]: no page named a next one that no [[follow]] takes; is that right?"],
        ),
        ({"follow": RULE, "kinds": KINDS}, {"": FoundCounts(5, 0, 0, 0)}, 0, MISSING_RULES),
        ({"follow": RULE, "kinds": KINDS}, {"": FoundCounts(5, 0, 2, 0), "product": FoundCounts(1, 0, 1, 0)}, 0, []),
        (
            {"paginate": LIST},
            {"": FoundCounts(5, 3, 0, 0)},
            1_200,
            ["1,200 lists are incomplete: `shardcrawl retry test --lists` lets them be requested again"],
        ),
        (
            {"source": {"sitemap": "https://h.example/sitemap.xml"}},
            {"sitemap": FoundCounts(3, 0, 0, 2)},
            0,
            ["2 sitemaps could not be read: their `pages.reason` says why (kind sitemap)"],
        ),
    ],
)
def test_what_was_not_found_is_said(
    job: dict[str, object], found: dict[str, FoundCounts], broken: int, says: list[str]
) -> None:
    assert list(found_notices(a_job(**job), found, broken)) == says  # type: ignore[arg-type]
