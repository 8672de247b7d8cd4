"""Rows without code: a job file with selectors, from `check` to the table."""

from __future__ import annotations

import json

import pytest

from crawler.sample.upstream import Upstream
from tests.live.examples import job
from tests.live.shell import Shell

pytestmark = pytest.mark.anyio

SELECTORS = """
keys_per_request = 50
[parse]
rows = "items"
key = "id"
gone = "missing"
[[tables]]
name = "things"
[tables.columns]
thing = { type = "text", from = "id" }
place = { type = "integer", from = "$index" }
title = { type = "text", from = "title?" }
"""


async def test_a_job_without_code_fills_its_table(shell: Shell, upstream: Upstream) -> None:
    shell.write("keys.txt", [f"k{number}" for number in range(240)] + [f"missing{number}" for number in range(10)])
    path = shell.write("job.toml", job(upstream, SELECTORS, template="/batch?ids={keys}"))
    checked = await shell.run("check", path)
    assert "selectors" in checked.out
    ended = await shell.run("run", path)
    assert "stored     240" in ended.out
    assert "gone        10" in ended.out
    (counts,) = await shell.sql(
        "select count(*) as rows, count(distinct thing) as things, count(title) as titles, max(place) as place "
        "from things_current join pages_current using (run_id, digest) where thing = key"
    )
    assert counts == {"rows": 240, "things": 240, "titles": 240, "place": 49}
    fetched = json.loads((await shell.run("fetch", "k7", "--job", path, "--json")).out)
    (row,) = fetched["tables"]["things"]
    assert (fetched["outcome"], row["thing"], row["place"]) == ("stored", "k7", 0)


async def test_a_wrong_selector_is_one_line_before_anything_is_sent(shell: Shell, upstream: Upstream) -> None:
    shell.write("keys.txt", ["k1"])
    path = shell.write(
        "job.toml", job(upstream, SELECTORS.replace('"items"', '"items["'), template="/batch?ids={keys}")
    )
    for command in ("check", "run"):
        ended = await shell.run(command, path, code=2)
        assert "table things: rows: 'items[' is wrong at character 6" in ended.err
    assert upstream.requests == 0


WAITING = """
[run]
name = "waiting"
max_failed = 1
[source]
path = "keys.txt"
[request]
allow_private = ["127.0.0.0/8"]
[parse]
wait = "$status = 202"
wait_most = "4s"
[[tables]]
name = "things"
columns = { title = "text" }
"""


async def test_keys_wait_until_they_are_ready_or_their_time_is_over(shell: Shell, upstream: Upstream) -> None:
    shell.write(
        "keys.txt",
        [f"{upstream.url}/pending/2/k{number}" for number in range(20)] + [f"{upstream.url}/pending/999/never"],
    )
    path = shell.write("job.toml", WAITING)
    ended = await shell.run("run", path)
    assert "stored      20" in ended.out
    rows = await shell.sql("select outcome, attempts, reason from pages_current order by key like '%never'")
    assert [(row["outcome"], row["attempts"], row["reason"]) for row in rows[:20]] == [("stored", 3, None)] * 20
    assert rows[20]["outcome"] == "failed"
    assert rows[20]["reason"].startswith("not ready after 4 s ([parse] wait_most): ")
    assert len(await shell.sql("select title from things_current")) == 20
    fetched = await shell.run("fetch", f"{upstream.url}/pending/999/never", "--job", path, code=None)
    assert "wait: $status = 202, and a run would request the key again" in fetched.out
