"""`[[follow]]`, `[paginate]` and `[kinds]`: what is taken, and the one line that refuses what is not."""

from __future__ import annotations

from typing import Any

import pytest

from crawler.job.job import read_job

from .examples import a_document, a_job
from .test_job import fault

PRODUCT = {"kinds": {"product": {"parse": {"format": "html"}}}, "follow": [{"from": "a @href", "kind": "product"}]}
A_TABLE = {"name": "a", "columns": {"b": "text"}}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        # [[follow]]
        ({"follow": {"from": "a"}}, "job: follow are written as [[follow]], once for each"),
        ({"follow": [{"form": "a"}]}, "job: [[follow]] has no key 'form'; did you mean from?"),
        ({"follow": [{"from": "a", "depth": 0}]}, "job: [[follow]] depth is 0; it must be from 1 to 1000000"),
        ({"follow": [{"from": "a", "most": "9"}]}, "job: [[follow]] most is '9'; it must be a whole number"),
        (
            {"follow": [{}]},
            "job: [[follow]] 1: say where the keys are, by from; without it a parser calls response.follow",
        ),
        (
            {"follow": [{"from": "a", "hosts": "shop.example"}]},
            'job: [[follow]] 1: hosts is \'shop.example\'; write "same", "any" or a list of hosts',
        ),
        ({"follow": [{"from": "a", "kind": "product"}]}, "job: [[follow]] 1: kind is 'product'; [kinds] has none"),
        (
            {**PRODUCT, "follow": [*PRODUCT["follow"], {"from": "b", "kind": "prodcut"}]},
            "job: [[follow]] 2: kind is 'prodcut'; did you mean 'product'?",
        ),
        ({**PRODUCT, "follow": [{"from": "a", "of": "x"}]}, "job: [[follow]] 1: of is 'x'; [kinds] has product"),
        # [paginate]
        ({"paginate": {}}, "job: [paginate]: say where the next page is, by next or set"),
        ({"paginate": {"more": "a"}}, "job: [paginate]: say where the next page is, by next or set"),
        (
            {"paginate": {"next": "a", "set": {"b": "c"}}},
            "job: [paginate]: next and set both say where the next page is; leave one out",
        ),
        ({"paginate": {"nxt": "a"}}, "job: [paginate] has no key 'nxt'; did you mean next?"),
        ({"paginate": {"next": "a", "most": 0}}, "job: [paginate] most is 0; it must be from 1 to 1000000000"),
        # [kinds]
        ({"kinds": {"Product": {}}}, "job: [kinds.Product]: a kind's name has lower-case letters, digits, _ and -"),
        ({"kinds": []}, "job: [job] kinds is []; it must be a table"),
        ({"kinds": {"product": {"pars": {}}}}, "job: [kinds.product] has no key 'pars'; did you mean parse?"),
        (
            {"kinds": {"product": {"parse": {"fromat": "html"}}}},
            "job: [kinds.product.parse] has no key 'fromat'; did you mean format?",
        ),
        (
            {"kinds": {"product": {"request": {"ur": "x"}}}},
            "job: [kinds.product.request] has no key 'ur'; did you mean url?",
        ),
        (
            {"kinds": {"product": {"request": {"timeout": 5}}}},
            "job: [kinds.product.request] timeout: stands in [request], for all kinds",
        ),
        (
            {**PRODUCT, "kinds": {"product": {"request": {"url": "https://a.example/{s}"}}}},
            "job: [kinds.product.request] url names {s}, which no key has; write {key}, or {{s}} for the text itself",
        ),
        (
            {**PRODUCT, "kinds": {"product": {"parse": {"wait_most": "9d"}}}},
            'job: [kinds.product.parse] wait_most is \'9d\'; write a time like "10min", at most "24h"',
        ),
        (
            {**PRODUCT, "kinds": {"product": {"paginate": {}}}},
            "job: [kinds.product.paginate]: say where the next page is, by next or set",
        ),
        (
            {"kinds": PRODUCT["kinds"]},
            "job: [kinds.product]: no key is of this kind; write kind = 'product' in a [[follow]]",
        ),
        ({"tables": [{**A_TABLE, "kind": "product"}]}, "job: table a: kind is 'product'; [kinds] has none"),
        (
            {**PRODUCT, "tables": [{**A_TABLE, "kind": "produkt"}]},
            "job: table a: kind is 'produkt'; did you mean 'product'?",
        ),
    ],
)
def test_what_is_wrong_is_one_line(sections: dict[str, Any], message: str) -> None:
    assert fault(a_document(**sections)) == message


def test_a_parser_may_follow_keys_of_any_kind() -> None:
    """So neither a rule without `from` nor a kind without a rule is wrong."""
    job = a_job(parse={"python": "a:b"}, kinds=PRODUCT["kinds"], follow=[{"most": 5}])
    assert (job.follows, job.most_found, job.by_level) == (True, {0: 5}, False)


def test_a_job_without_rules_and_lists_follows_nothing() -> None:
    assert not a_job().follows
    assert a_job(paginate={"next": "a"}).follows
    kinds = {"product": {"paginate": {"next": "a"}}}
    assert a_job(**{**PRODUCT, "kinds": kinds}).kinds["product"].paginate is not None


def test_each_kind_has_its_sections_and_shares_the_rest() -> None:
    request = {"timeout": 7.5, "user_agent": "me", "url": "https://a.example/{key}", "keys_per_request": 5}
    tables = [{"name": "a", "columns": {"b": "text"}}, {"name": "c", "kind": "product", "columns": {"d": "text"}}]
    parse = {"rows": "x", "key": "b"}
    job = a_job(**PRODUCT, request=request, parse=parse, tables=tables)
    product = job.kinds["product"]
    assert (product.request.timeout, product.request.user_agent) == (7.5, "me")
    assert (product.request.url, product.request.keys_per_request) == (None, 1)
    assert (product.parse.rows, product.parse.format) == (None, "html")
    assert [table.name for table in job.own_tables] == ["a"]
    assert [table.name for table in product.own_tables] == ["c"]
    assert [one.kind for one in job.every_kind] == ["", "product"]


def test_links_from_an_api_with_credentials_need_no_hosts_and_have_none() -> None:
    """The credentials go to the host of the url; a kind whose keys are URLs gets none of them."""
    request = {"url": "https://a.example/{key}", "auth": "bearer:${T}", "headers": {"X-Key": "${K}", "X-Plain": "p"}}
    product = a_job(**PRODUCT, request=request).kinds["product"].request
    assert (product.auth, product.headers) == (None, {"X-Plain": "p"})
    request = {"auth": "bearer:${T}", "hosts": ["a.example"]}
    kinds = {"product": {"request": {"url": "https://a.example/{key}"}}}
    product = a_job(**{**PRODUCT, "kinds": kinds}, request=request).kinds["product"].request
    assert (product.auth, product.hosts) == ("bearer:${T}", ())


def test_a_list_of_keys_is_found_as_written() -> None:
    document = a_document(follow=[{"from": "ids", "hosts": ["a.example"], "allow": ["*"], "depth": 2}])
    (rule,) = read_job(document).follow
    assert (rule.source, rule.hosts, rule.allow, rule.depth, rule.of) == ("ids", ("a.example",), ("*",), 2, "")
