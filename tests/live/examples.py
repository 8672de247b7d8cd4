"""A job and queries that several live and fault tests use."""

from __future__ import annotations

from crawler.sample.upstream import Upstream

# Kinds of Redis keys about upstreams. Each expires by itself, so they may outlive a complete run.
UPSTREAM_KEYS = ("slots", "health", "upstreams", "requests", "limits", "changes", "active", "robots")

# One row: how many pages there are, of how many digests, and how many of them have the body of their own key.
COUNT_PAGES = (
    "select count(*) as keys, count(distinct digest) as digests, count(*) filter (where outcome = 'stored') as stored, "
    "count(*) filter (where body->>'id' = split_part(key, '/item/', 2)) as right_id from pages"
)


def each_key_once(keys: int) -> list[dict[str, int]]:
    """The result of COUNT_PAGES when each of so many keys has exactly one page, stored, with its own body."""
    return [{"keys": keys, "digests": keys, "stored": keys, "right_id": keys}]


def job(upstream: Upstream, extra: str = "", template: str = "/item/{key}", name: str = "test") -> str:
    """A job file over keys.txt with more lines for [request], and for what follows it."""
    return f"""
        [run]
        name = "{name}"
        [source]
        path = "keys.txt"
        [request]
        url = "{upstream.url}{template}"
        allow_private = ["127.0.0.0/8"]
        {extra}
    """
