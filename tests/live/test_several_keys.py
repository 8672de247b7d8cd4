"""Several keys a request, as an upstream like MediaWiki responds to them: each key ends as it deserves."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.live.examples import job
from tests.live.shell import Shell
from tests.servers.wiki import Wiki
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

README = (Path(__file__).parents[2] / "README.md").read_text()
TABLE = """
    [parse]
    python = "parse:revisions"
    [[tables]]
    name = "revisions"
    columns = { page_id = "bigint", rev_id = "bigint", user_name = "text", at = "timestamptz" }
"""
TITLES = [
    *(f"Page_{number}" for number in range(60)),
    *(f"deletion discussion {number}" for number in range(60)),
    *(f"Plain {number}" for number in range(60)),
    *("No such page", "no_such_page 2", "Bad[title]", "redirect 1", "Target of Redirect 1", "Special:Nothing"),
]
OTHERS = {
    "No such page": ("gone", "the response says that it does not exist"),
    "no_such_page 2": ("gone", "the response says that it does not exist"),
    "Bad[title]": ("failed", "invalid characters"),
    "Special:Nothing": ("failed", "no record"),
}
OUTCOMES = "select key, outcome, reason, attempts from pages"


def written(shell: Shell, wiki: Wiki, parser: str, keys: list[str], extra: str = "") -> None:
    shell.write("keys.txt", keys)
    shell.write("parse.py", parser)
    request = "keys_per_request = 50\n[run]".partition("\n")[0]
    text = job(wiki, f"{request}\n{extra}\n{TABLE}", template="/w/api.php?action=query&titles={keys}&format=json")
    shell.write("job.toml", text.replace("[source]", "max_failed = 1\n[source]"))


async def test_the_readmes_job_gives_every_title_the_outcome_that_is_its_own(shell: Shell) -> None:
    (parser,) = re.findall(r"```python\n(.+?)```", README, re.DOTALL)
    async with Wiki() as wiki:
        written(shell, wiki, parser, TITLES)
        await shell.run("run", "job.toml")
        assert wiki.requests == -(-len(TITLES) // 50)
    found = {row["key"]: (row["outcome"], row["reason"]) for row in await shell.sql(OUTCOMES)}
    assert found == dict.fromkeys(TITLES, ("stored", None)) | OTHERS
    stored = len(TITLES) - len(OTHERS)
    joined = "select count(distinct digest) as n from revisions_current join pages_current using (run_id, digest)"
    assert await shell.sql(joined) == [{"n": stored}]
    audited = await shell.run("audit", "test")
    assert "stored keys without a record" in audited.out


async def test_an_error_of_the_parser_fails_only_the_keys_that_are_the_reason(shell: Shell) -> None:
    """The other keys of their requests are stored, each after a request of its own."""
    parser = """
def revisions(response):
    pages = response.json()["query"]["pages"]
    rows = [{"_key": page["title"], "page_id": page["pageid"]} for page in pages]
    return {"revisions": rows}
"""
    keys = [f"Plain {number}" for number in range(149)] + ["No such page"]
    async with Wiki() as wiki:
        written(shell, wiki, parser, keys)
        ended = await shell.run("run", "job.toml")
        alone = [titles for path in wiki.paths if "|" not in (titles := unquote(path).partition("titles=")[2])]
        assert wiki.requests == 3 + 50
    assert "the parser failed on a response for 50 keys, which are now requested alone" in ended.err
    assert len(set(alone)) == 50
    found = {row["key"]: row for row in await shell.sql(OUTCOMES)}
    assert {key for key, row in found.items() if row["outcome"] != "stored"} == {"No such page"}
    assert found["No such page"]["outcome"] == "failed"
    assert "KeyError: 'pageid'" in found["No such page"]["reason"]
    assert sorted({row["attempts"] for row in found.values()}) == [1, 2]


async def test_a_name_of_no_key_is_said_and_costs_no_other_key(shell: Shell) -> None:
    parser = """
def revisions(response):
    pages = response.json()["query"]["pages"]
    return {"revisions": [{"_key": page["title"].upper(), "page_id": page["pageid"]} for page in pages]}
"""
    async with Wiki() as wiki:
        written(shell, wiki, parser, ["PLAIN 1", "PLAIN 2", "plain 3"])
        ended = await shell.run("run", "job.toml")
        assert wiki.requests == 1
    assert "the parser named 'PLAIN 3', which is no key of its request" in ended.err
    found = {row["key"]: (row["outcome"], row["reason"]) for row in await shell.sql(OUTCOMES)}
    assert found == {"PLAIN 1": ("stored", None), "PLAIN 2": ("stored", None), "plain 3": ("failed", "no record")}


async def test_a_parser_that_fails_on_everything_does_not_cost_a_request_for_each_key(shell: Shell) -> None:
    async with Wiki() as wiki:
        written(shell, wiki, "def revisions(response): raise RuntimeError('always')\n", [f"P {n}" for n in range(5000)])
        await shell.run("run", "job.toml", "--concurrency", "2")
        assert wiki.requests < 1000
    assert await shell.sql("select outcome, reason, count(*) as keys from pages group by 1, 2") == [
        {"outcome": "failed", "reason": "parse: RuntimeError: always (parse.py, line 1)", "keys": 5000}
    ]


@pytest.mark.slow
async def test_a_key_alone_of_which_workers_die_is_failed_and_the_run_comes_to_its_end(shell: Shell) -> None:
    """No other key fails with it: the second worker that gets it has its parser in a process of its own."""
    parser = """
import os
def revisions(response):
    if len(response.keys) > 1:
        raise ValueError("one by one")
    if response.key == "killer":
        os._exit(9)
    return {"revisions": [{"page_id": 1}]}
"""
    keys = ["killer", *(f"P {number}" for number in range(149))]
    async with Wiki() as wiki:
        written(shell, wiki, parser, keys)
        running = await shell.start("run", "job.toml")
        await eventually(lambda: wiki.requests > 0, "the first request", seconds=60)
        assert (await running.end()).code == 0
    found = {row["key"]: (row["outcome"], row["reason"]) for row in await shell.sql(OUTCOMES)}
    assert found.pop("killer") == ("failed", "parse: its process ended with exit code 9, 2 times")
    assert {outcome for outcome, _ in found.values()} == {"stored"}
    assert len(found) == len(keys) - 1
