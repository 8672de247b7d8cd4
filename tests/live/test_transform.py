"""A refresh of a job with a transform: what is unchanged is not transformed again, and its rows are there."""

from __future__ import annotations

import json

import pytest

from crawler.sample.upstream import Upstream
from tests.live.shell import Shell

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

KEYS = 60
EDITED = ["7", "11"]
JOB = """
    [run]
    corpus = "items"
    [source]
    path = "keys.txt"
    [request]
    url = "URL/item/{key}"
    HEADERS
    [parse]
    python = "parse:items"
    [transform]
    python = "features:batch"
    [[tables]]
    name = "things"
    columns = { id = "text", n = "bigint", part = "integer" }
"""
PARSER = """
def items(response):
    page = response.json()
    return {"things": [{"id": page["id"], "n": page["n"]}]}
"""
# Each key is written down, so that the test sees which went through.
FEATURES = """
from pathlib import Path

def batch(records):
    with (Path(__file__).parent / "seen.txt").open("a") as file:
        file.writelines(f"{record['_key']}\\n" for record in records)
    return [{**record, "part": part} for record in records for part in range(2)]
"""
ROWS = "select count(*)::int as rows, count(distinct (id, part))::int as each from things_current join pages_current "
OUTCOMES = "select outcome, count(*)::int as keys from pages_current group by 1 order by 1"


# With a condition of the job's own, each response comes whole, and its records are compared.
@pytest.mark.parametrize("headers", ["", 'headers = { If-None-Match = "none" }'], ids=["304", "the same records"])
async def test_only_what_has_changed_goes_through_again(shell: Shell, headers: str) -> None:
    async with Upstream(size=300) as upstream:
        shell.write("keys.txt", [f"{number}" for number in range(KEYS)])
        shell.write("parse.py", PARSER)
        shell.write("features.py", FEATURES)
        job = shell.write("job.toml", JOB.replace("URL", upstream.url).replace("HEADERS", headers))
        seen = shell.write("seen.txt", "")
        await shell.run("run", job)
        assert sorted(seen.read_text().split()) == sorted(str(number) for number in range(KEYS))
        upstream.edit(EDITED)
        seen.write_text("")
        await shell.run("run", job, "--refresh")
    assert sorted(seen.read_text().split()) == sorted(EDITED)
    assert await shell.sql(OUTCOMES) == [
        {"outcome": "stored", "keys": len(EDITED)},
        {"outcome": "unchanged", "keys": KEYS - len(EDITED)},
    ]
    assert await shell.sql(f"{ROWS} using (run_id, digest)") == [{"rows": 2 * KEYS, "each": 2 * KEYS}]
    runs = json.loads((await shell.run("runs", "--json")).out)
    await shell.run("audit", runs[-1]["name"])
