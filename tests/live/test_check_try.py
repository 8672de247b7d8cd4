"""`shardcrawl check --try N`: the first keys as a run would request them, their rows, and nothing stored."""

from __future__ import annotations

import json
from typing import Any

import pytest
from redis.asyncio import Redis

from coordinator.redis.keys import RunKeys
from crawler.sample.upstream import Upstream
from crawler.store.postgres import connect_postgres
from tests.live.examples import job
from tests.live.shell import Shell

pytestmark = pytest.mark.anyio

SELECTORS = """
[[tables]]
name = "things"
[tables.columns]
thing = { type = "text", from = "id" }
title = "text"
subtitle = { type = "text", from = "subtitle?" }
"""
PARSER = """
def items(response):
    items = response.json()["items"]
    if len(response.keys) > 1 and any(item["id"] == "k1" for item in items):
        raise ValueError("k1 is odd")
    return {"items": [{"_key": item["id"], "item_id": item["id"]} for item in items]}
"""
PARSED = """
keys_per_request = 2
[parse]
python = "parse:items"
[[tables]]
name = "items"
columns = { item_id = "text" }
"""


async def attempted(shell: Shell, path: str, keys: int, environ: dict[str, str], code: int = 0) -> dict[str, Any]:
    ended = await shell.run("check", path, "--try", str(keys), "--json", environ=environ, code=code)
    shown: dict[str, Any] = json.loads(ended.out)
    return shown


async def test_the_first_keys_are_requested_and_their_rows_shown(
    shell: Shell, upstream: Upstream, environ: dict[str, str], database: str, redis: Redis
) -> None:
    shell.write("keys.txt", [f"k{number}" for number in range(100)])
    path = shell.write("job.toml", job(upstream, SELECTORS))
    ended = await shell.run("check", path, "--try", "3", environ={**environ, "COLUMNS": "40", "SHARDCRAWL_RATE": "50"})
    assert upstream.paths == [f"/item/k{number}" for number in range(3)]
    assert f"GET {upstream.url}/item/k0 -> status 200, " in ended.out
    assert "  k2: stored" in ended.out
    table = ended.out.partition("table things: 3 rows")[2]
    assert [line.split()[0] for line in table.splitlines() if line.startswith(" k")] == ["k0", "k1", "k2"]
    assert max(len(line) for line in table.partition("warning")[0].splitlines()) <= 40
    assert "warning: things.subtitle is null in every row (3)" in ended.out
    assert "a run would store 3 of these 3 keys; nothing was stored now" in ended.out
    assert await redis.exists(RunKeys("test").slots(upstream.url.removeprefix("http://"))), "the budget is the run's"
    eye = await connect_postgres(database)
    assert await eye.fetchval("select to_regclass('runs')") is None
    await eye.close()


async def test_keys_of_a_request_on_which_the_parser_fails_are_requested_alone(
    shell: Shell, upstream: Upstream, environ: dict[str, str]
) -> None:
    shell.write("keys.txt", ["k0", "k1", "k2", "k3"])
    shell.write("parse.py", PARSER)
    path = shell.write("job.toml", job(upstream, PARSED, template="/batch?ids={keys}"))
    shown = await attempted(shell, path, 4, environ)
    assert [one["outcome"] for one in shown["keys"]] == ["stored"] * 4
    assert [one["tables"]["items"] for one in shown["keys"]] == [[{"item_id": f"k{number}"}] for number in range(4)]
    assert upstream.requests == 4, "k0 with k1, each of them alone, k2 with k3"
    assert {row["what"] for row in shown["settings"]} > {"run", "source", "redis", "postgres"}


@pytest.mark.parametrize(
    ("template", "extra", "outcomes", "code"),
    [
        ("/missing/{key}", "", ["gone", "gone"], 1),
        ("/item/{key}", SELECTORS.replace("subtitle?", "subtitle"), ["failed", "failed"], 1),
        ("/flaky/9/{key}", "[retry]\nbackoff = 3600\nmax_delay = 3600", [None, None], 1),
        ("/item/{key}", "", ["stored", "stored"], 0),
    ],
)
async def test_the_exit_code_says_whether_anything_would_be_stored(
    shell: Shell,
    upstream: Upstream,
    environ: dict[str, str],
    template: str,
    extra: str,
    outcomes: list[str | None],
    code: int,
) -> None:
    shell.write("keys.txt", ["1", "2", "3"])
    shown = await attempted(shell, shell.write("job.toml", job(upstream, extra, template)), 2, environ, code)
    assert [one["outcome"] for one in shown["keys"]] == outcomes


async def test_keys_that_are_read_once_are_left_to_the_run(
    shell: Shell, upstream: Upstream, environ: dict[str, str]
) -> None:
    path = shell.write("job.toml", job(upstream).replace("keys.txt", "-"))
    ended = await shell.run("check", path, "--try", "1", environ=environ, code=2)
    assert "give one to `shardcrawl fetch`" in ended.err
    assert upstream.requests == 0
