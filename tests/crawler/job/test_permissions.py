"""What a machine lets the jobs of others do."""

from __future__ import annotations

import pytest

from coordinator.errors import UsageError
from crawler.job.permissions import Permissions
from tests.crawler.examples import a_job


@pytest.mark.parametrize(
    ("proxy", "wanted"),
    [
        ("http://127.0.0.1:3128", "127.0.0.1"),
        ("socks5://[::1]:1080", "::1"),
        ("https://me:${PASSWORD}@10.0.0.1:3128/", "10.0.0.1"),
        ("http://localhost:3128", "0.0.0.0/0"),
        ("http://127.1:3128", "0.0.0.0/0"),
    ],
)
def test_a_proxy_is_a_way_into_a_network_that_must_be_allowed(proxy: str, wanted: str) -> None:
    """A job with a proxy at a loopback address reached it on a machine that allowed public addresses only."""
    job = a_job(request={"proxy": proxy})
    with pytest.raises(UsageError, match=f"with --allow-private {wanted}$"):
        Permissions(secrets=("*",)).check(job)
    Permissions(secrets=("*",), networks=("0.0.0.0/0", "::/0")).check(job)


def test_a_proxy_that_the_machine_itself_names_is_its_own() -> None:
    Permissions(secrets=("PROXY",)).check(a_job(request={"proxy": "${PROXY}"}))


def test_what_kinds_want_must_be_allowed_too() -> None:
    kinds = {"product": {"parse": {"python": "parse:product"}, "request": {"url": "https://h.example/${TOKEN}/{key}"}}}
    job = a_job(kinds=kinds, follow=[{"kind": "product"}])
    with pytest.raises(UsageError, match="with --allow-parser parse:product --allow-env TOKEN$"):
        Permissions().check(job)
    Permissions(parsers=("parse:*",), secrets=("TOKEN",)).check(job)
