"""A refresh asks only for what has changed, and what it carries over is what the run before has."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from crawler.sample.connection import CannedResponse
from crawler.sample.upstream import Upstream
from tests.live.shell import Shell

pytestmark = pytest.mark.anyio

KEYS = 2_000
EDITED = [f"{number}" for number in range(7, 2_000, 100)]
TABLE = """
    [[tables]]
    name = "items"
    [tables.columns]
    title = "text"
    n = "bigint"
"""
# Of each pair of runs: keys whose rows differ in anything but when, and how, they were asked for.
DIFFERENT = (
    "select b.key from pages_r{} b full join pages_r{} n using (digest) where n.digest is null or b.digest is null or "
    "(b.key, b.url, b.body, b.content, b.encoding, b.etag, b.last_modified, b.body_digest, b.content_digest) "
    "is distinct from "
    "(n.key, n.url, n.body, n.content, n.encoding, n.etag, n.last_modified, n.body_digest, n.content_digest) order by 1"
)
OUTCOMES = "select outcome, count(*) as keys from pages_current group by 1 order by 1"


class Failing(Upstream):
    """A sample upstream that responds to some paths with 503."""

    broken: frozenset[str] = frozenset()

    def respond(self, method: str, target: bytes, condition: str) -> CannedResponse:
        response = super().respond(method, target, condition)
        return CannedResponse(503) if target.decode() in self.broken else response


@pytest.fixture
async def upstream() -> AsyncIterator[Failing]:
    async with Failing(size=300) as upstream:
        yield upstream


def a_job(upstream: Upstream, *, run: str = "", request: str = "", rest: str = "", path: str = "/item/{key}") -> str:
    return f"""
        [run]
        corpus = "items"
        {run}
        [source]
        path = "keys.txt"
        [request]
        url = "{upstream.url}{path}"
        {request}
        [retry]
        attempts = 2
        backoff = 0.01
        {rest}
    """


async def outcomes(shell: Shell) -> dict[str, int]:
    return {row["outcome"]: row["keys"] for row in await shell.sql(OUTCOMES)}


async def counts(shell: Shell) -> dict[str, Any]:
    """What `status` says of the newest run."""
    runs = json.loads((await shell.run("runs", "--json")).out)
    found: dict[str, Any] = json.loads((await shell.run("status", runs[-1]["name"], "--json")).out)
    return found


@pytest.mark.parametrize("with_parser", [pytest.param(False, marks=pytest.mark.slow), True])
async def test_only_what_has_changed_comes_again(shell: Shell, upstream: Upstream, with_parser: bool) -> None:
    shell.write("keys.txt", [str(number) for number in range(KEYS)])
    job = shell.write("job.toml", a_job(upstream, rest=TABLE if with_parser else ""))
    await shell.run("run", job)
    first = await counts(shell)
    assert upstream.requests == KEYS
    upstream.edit(EDITED)
    ended = await shell.run("run", job, "--refresh")
    assert upstream.requests == 2 * KEYS
    assert upstream.ledger.by_status == {200: KEYS + len(EDITED), 304: KEYS - len(EDITED)}
    assert await outcomes(shell) == {"stored": len(EDITED), "unchanged": KEYS - len(EDITED)}
    assert "20 stored, 1980 unchanged" in ended.err
    second = await counts(shell)
    assert second["received_bytes"] <= first["received_bytes"] * 0.02
    assert {row["key"] for row in await shell.sql(DIFFERENT.format(1, 2))} == set(EDITED)
    await shell.run("audit", second["run"])
    if with_parser:
        rows = "select count(*) as rows, count(distinct digest) as keys, min(run_id) as run from items_current"
        assert await shell.sql(rows) == [{"rows": KEYS, "keys": KEYS, "run": 2}]
        same = "select count(*) as same from items_r1 b join items_r2 n using (digest, title, n)"
        assert await shell.sql(same) == [{"same": KEYS - len(EDITED)}]


async def test_what_is_young_enough_costs_no_request(shell: Shell, upstream: Upstream) -> None:
    shell.write("keys.txt", [*map(str, range(300)), "missing"])
    job = shell.write("job.toml", a_job(upstream, run='max_age = "1h"'))
    await shell.run("run", job)
    sent = upstream.requests
    await shell.run("run", job, "--refresh")
    assert upstream.requests == sent
    assert await outcomes(shell) == {"unchanged": 301}
    assert await shell.sql(DIFFERENT.format(1, 2)) == []
    fetched = "select count(*) as keys from pages_r1 b join pages_r2 n using (digest) where b.fetched_at = n.fetched_at"
    assert await shell.sql(f"{fetched} and b.status = n.status and n.attempts = 0") == [{"keys": 301}]


@pytest.mark.slow
async def test_other_selectors_fetch_everything_whole(shell: Shell, upstream: Upstream) -> None:
    shell.write("keys.txt", [*map(str, range(100))])
    await shell.run("run", shell.write("job.toml", a_job(upstream, rest=TABLE)))
    changed = TABLE.replace('title = "text"', 'title = { type = "text", from = "id" }')
    ended = await shell.run("run", shell.write("job.toml", a_job(upstream, rest=changed)), "--refresh")
    assert "everything is fetched whole" in ended.err
    assert upstream.ledger.by_status == {200: 200}
    assert await outcomes(shell) == {"stored": 100}


@pytest.mark.slow
@pytest.mark.parametrize("keeps", [True, False])
async def test_a_key_that_fails_keeps_what_it_had(shell: Shell, upstream: Failing, keeps: bool) -> None:
    shell.write("keys.txt", [*map(str, range(100))])
    run = "max_failed = 1.0\n" + ("" if keeps else 'on_failure = "drop"')
    job = shell.write("job.toml", a_job(upstream, run=run, rest=TABLE))
    await shell.run("run", job)
    upstream.broken = frozenset({"/item/3", "/item/4"})
    await shell.run("run", job, "--refresh")
    assert await outcomes(shell) == {"failed": 2, "unchanged": 98}
    stale = "select key, stale, etag, left(reason, 27) as why from pages_r2 where outcome = 'failed' order by key"
    why = "status 503 after 2 attempts"
    expected = [{"key": key, "stale": True if keeps else None, "etag": None, "why": why} for key in "34"]
    assert await shell.sql(stale) == expected
    rows = "select count(*) as rows, count(distinct digest) as keys from items_r"
    assert await shell.sql(f"{rows}2") == [dict.fromkeys(("rows", "keys"), 100 if keeps else 98)]
    upstream.broken = frozenset({"/item/4"})
    name = json.loads((await shell.run("runs", "--json")).out)[-1]["name"]
    await shell.run("retry", name)
    now = json.loads((await shell.run("status", name, "--json")).out)
    assert (now["state"], now["done"], now["outcomes"]["failed"]) == ("running", 98, 0), "what Redis has is of before"
    assert json.loads((await shell.run("runs", "--json")).out)[-1]["failed"] == 0
    await shell.run("run", job, "--name", name, "--refresh")
    assert await outcomes(shell) == {"failed": 1, "unchanged": 99}
    assert await shell.sql(f"{rows}2") == [dict.fromkeys(("rows", "keys"), 100 if keeps else 99)]
    upstream.broken = frozenset()
    await shell.run("run", job, "--refresh")
    assert await outcomes(shell) == ({"unchanged": 100} if keeps else {"stored": 1, "unchanged": 99})
    assert await shell.sql(f"{rows}3") == [{"rows": 100, "keys": 100}]


@pytest.mark.slow
async def test_several_keys_a_request_are_compared_one_by_one(shell: Shell, upstream: Upstream) -> None:
    """Nobody's validators are those of a response for several keys."""
    shell.write("keys.txt", [*map(str, range(100))])
    rest = TABLE.replace("[[tables]]", '[parse]\nrows = "items"\nkey = "id"\n[[tables]]')
    job = a_job(upstream, request="keys_per_request = 10", rest=rest, path="/batch?ids={keys}")
    path = shell.write("job.toml", job)
    await shell.run("run", path)
    upstream.edit(["5", "77"])
    await shell.run("run", path, "--refresh")
    assert upstream.ledger.by_status == {200: 20}
    assert await outcomes(shell) == {"stored": 2, "unchanged": 98}
    rows = "select count(*) as rows, count(distinct digest) as keys from items_r2"
    assert await shell.sql(rows) == [{"rows": 100, "keys": 100}]


SHOP = """
    [run]
    corpus = "shop"
    max_failed = 1.0
    max_age = "1h"
    [source]
    keys = ["{url}/shop?page=1"]
    [retry]
    attempts = 2
    backoff = 0.01
    [parse]
    format = "html"
    [paginate]
    next = "a.next @href"
    [[follow]]
    from = "li.product a @href"
    kind = "product"
    [kinds.product.parse]
    format = "html"
    [[tables]]
    name = "products"
    kind = "product"
    [tables.columns]
    name = {{ type = "text", from = "h1" }}
"""


@pytest.mark.slow
async def test_a_list_of_which_a_page_fails_loses_neither_pages_nor_products(shell: Shell, upstream: Failing) -> None:
    job = shell.write("job.toml", SHOP.format(url=upstream.url))
    await shell.run("run", job)
    sent = upstream.paths
    lists = [path for path in sent if "page=" in path]
    upstream.broken = frozenset(lists[1:2])
    await shell.run("run", job, "--refresh")
    again = upstream.paths[len(sent) :]
    assert sorted(set(again)) == sorted(lists), "lists are looked through again, products are young enough"
    unchanged = len(sent) - 1
    assert await outcomes(shell) == {"failed": 1, "unchanged": unchanged}
    rows = "select count(*) as rows, count(distinct digest) as keys from products_r"
    assert await shell.sql(f"{rows}1") == await shell.sql(f"{rows}2")
    assert await shell.sql("select key from pages_r1 except select key from pages_r2") == []
    name = json.loads((await shell.run("runs", "--json")).out)[-1]["name"]
    await shell.run("audit", name)
    upstream.broken = frozenset()
    await shell.run("retry", name)
    await shell.run("run", job, "--name", name, "--refresh")
    assert await shell.sql("select key, reason from pages_r2 where reason is not null") == []
    assert await outcomes(shell) == {"unchanged": unchanged + 1}
    assert await shell.sql(f"{rows}1") == await shell.sql(f"{rows}2")
    await shell.run("audit", name)
