"""`shardcrawl diff` on two real runs of one corpus."""

from __future__ import annotations

import csv
import json

import asyncpg
import pytest

from crawler.sample.upstream import Upstream
from tests.live.shell import CommandResult, Shell

pytestmark = pytest.mark.anyio

PARSER = """
def items(response):
    return {"things": [{"id": response.json()["id"]}]}
"""
NO_CHANGE = dict.fromkeys(["added", "changed", "unchanged", "stale", "gone", "removed", "failed", "absent"], 0)


def job(upstream: Upstream, name: str) -> str:
    return f"""
        [run]
        corpus = "afd"
        name = "{name}"
        [source]
        path = "{name}.txt"
        [request]
        url = "{upstream.url}/{{key:path}}"
        allow_private = ["127.0.0.0/8"]
        [parse]
        python = "parse:items"
        [[tables]]
        name = "things"
        columns = {{ id = "text" }}
    """


@pytest.mark.slow
async def test_two_runs_of_a_corpus_are_compared(shell: Shell, upstream: Upstream, environ: dict[str, str]) -> None:
    async def diff(*arguments: str, code: int = 0) -> CommandResult:
        return await shell.run("diff", *arguments, environ=environ, code=code)

    shell.write("parse.py", PARSER)
    kept = [f"item/{number}" for number in range(100)]
    corpora = {
        "first": [*kept, "item/removed", "missing/1", "item/then"],
        "second": [*kept, 'item/a "new", one', "missing/1", "notjson/1", "item/then"],
    }
    connection = await asyncpg.connect(environ["DATABASE_URL"])
    for name, keys in corpora.items():
        shell.write(f"{name}.txt", keys)
        await shell.run("run", shell.write("job.toml", job(upstream, name)), environ=environ, code=None)
    edited = [f"item/{number}" for number in range(20)]
    await connection.execute("UPDATE pages_r1 SET body_digest = '', content_digest = NULL WHERE key = ANY($1)", edited)
    await connection.execute("UPDATE pages_r2 SET outcome = 'gone' WHERE key = 'item/then'")

    expected = {
        **NO_CHANGE,
        "added": 1,
        "changed": 20,
        "unchanged": 80,
        "gone": 1,
        "removed": 1,
        "failed": 1,
        "absent": 1,
    }
    found = json.loads((await diff("first", "second", "--json")).out)
    assert found == {
        "old": "first",
        "new": "second",
        "comparable": True,
        "table": None,
        "changes": expected,
        "rows": {"things": {"then": 102, "now": 102}},
    }
    assert json.loads((await diff("afd", "--json")).out) == found
    shown = await diff("first", "second")
    assert "keys from run first to run second:" in shown.out
    assert ["changed", "20"] in [line.split() for line in shown.out.splitlines()]
    assert ["things", "102", "102"] in [line.split() for line in shown.out.splitlines()]
    assert shown.err == ""

    keys = [("changed", key) for key in edited] + [("added", 'item/a "new", one'), ("removed", "item/removed")]
    every = sorted([*keys, ("gone", "item/then"), ("failed", "notjson/1")])
    header, *rows = csv.reader((await diff("first", "second", "--keys")).out.splitlines())
    assert header == ["change", "key"]
    assert sorted(map(tuple, rows)) == every
    as_json = json.loads((await diff("first", "second", "--keys", "--json")).out)
    assert sorted((row["change"], row["key"]) for row in as_json) == every

    of_table = json.loads((await diff("afd", "--table", "things", "--json")).out)
    assert of_table["changes"] == {"added": 1, "changed": 0, "unchanged": 101, "removed": 1}
    rows = list(csv.reader((await diff("afd", "--table", "things", "--keys")).out.splitlines()))
    assert sorted(rows[1:]) == [["added", 'item/a "new", one'], ["removed", "item/removed"]]

    await connection.execute("UPDATE runs SET content_hash = 'other' WHERE name = 'second'")
    other = await diff("first", "second", "--json")
    assert "note: runs first and second were not made by the same settings and parser" in other.err
    assert json.loads(other.out)["comparable"] is False
    assert "error: no run nobody; known runs: first, second" in (await diff("first", "nobody", code=2)).err
    assert "has no table nothing; its tables are: things" in (await diff("afd", "--table", "nothing", code=2)).err
    await connection.close()
