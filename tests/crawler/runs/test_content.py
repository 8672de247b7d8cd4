from __future__ import annotations

from typing import Any

import pytest

from crawler.runs.content import content_hash
from tests.crawler.examples import a_job

TABLES = [{"name": "facts", "columns": {"n": "bigint"}}]
BEFORE: dict[str, Any] = {"request": {"url": "https://a.example/{key}"}, "tables": TABLES}


@pytest.mark.parametrize(
    "change",
    [
        {"run": {"name": "another", "workers": 3}},
        {"limits": {"*": {"rate": 5}}},
        {"retry": {"attempts": 9}},
        {"request": {"url": "https://a.example/{key}", "timeout": 5, "user_agent": "other"}},
        {"parse": {"timeout": 5}},
        {"source": {"path": "other.txt"}},
        {"publish": {"mode": "manual"}},
    ],
)
def test_what_makes_no_other_content_does_not_change_the_hash(change: dict[str, Any]) -> None:
    assert content_hash(a_job(**BEFORE | change), {}) == content_hash(a_job(**BEFORE), {})


@pytest.mark.parametrize(
    "change",
    [
        {"request": {"url": "https://b.example/{key}"}},
        {"request": {"url": "https://a.example/{key}", "headers": {"Accept-Language": "de"}}},
        {"request": {"url": "https://a.example/{key}", "cookies": {"country": "de"}}},
        {"request": {"url": "https://a.example/{key}", "auth": "bearer:${TOKEN}"}},
        {"request": {"url": "https://a.example/{key}", "cookie_jar": True}},
        {"request": {"url": "https://a.example/{key}", "client_cert": "me.pem"}},
        {
            "request": {
                "url": "https://a.example/{key}",
                "login": {"url": "https://a.example/login", "form": {"a": "b"}},
            }
        },
        {"tables": [{"name": "facts", "columns": {"n": {"type": "bigint", "from": "m"}}}]},
        {"parse": {"format": "html", "rows": "li"}},
        {"follow": [{"from": "a"}]},
    ],
)
def test_what_makes_other_content_changes_the_hash(change: dict[str, Any]) -> None:
    assert content_hash(a_job(**BEFORE | change), {}) != content_hash(a_job(**BEFORE), {})


def test_which_hosts_get_credentials_is_part_of_it() -> None:
    hashes = [
        content_hash(a_job(request={"auth": "bearer:${TOKEN}", "hosts": hosts}, tables=TABLES), {})
        for hosts in (["a.example"], ["a.example", "b.example"])
    ]
    assert len(set(hashes)) == 2


def test_the_parsers_files_are_part_of_it_and_unknown_ones_are_no_hash() -> None:
    job = a_job(**BEFORE | {"parse": {"python": "parse:rows"}})
    assert content_hash(job, {}) is None
    assert content_hash(job, {"parse.py": "1"}) != content_hash(job, {"parse.py": "2"})
