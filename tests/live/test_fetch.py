"""`shardcrawl fetch`: one key, sent and parsed as a run would do it, and nothing stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from coordinator.limits.limiter import Limiter
from coordinator.limits.matcher import UpstreamMatcher
from coordinator.redis.keys import RunKeys
from crawler.sample.upstream import Upstream
from crawler.testing import parse_file
from tests.live.examples import job
from tests.live.shell import Shell

pytestmark = pytest.mark.anyio

NO_POSTGRES = "postgresql://nobody@127.0.0.1:1/none"
SECRETS = """
        headers = { Authorization = "Bearer ${TOKEN}", X-Plain = "shown" }
        cookies = { session = "${SESSION}" }
"""
PARSED = """
        [parse]
        python = "parse:items"
        [[tables]]
        name = "items"
        columns = { item_id = "text", n = "bigint", more = "jsonb" }
"""
PARSER = """
def items(response):
    item = response.json()
    return {"items": [{"item_id": item["id"], "n": number_of(item), "more": {"first": item["words"][0]}}]}

def number_of(item):
    return item["n"] if item["id"] != "odd" else item["absent"]
"""


@pytest.fixture
def environ(redis: Redis, redis_url: str) -> dict[str, str]:
    """An empty Redis, and a Postgres that nobody can reach."""
    return {"REDIS_URL": redis_url, "DATABASE_URL": NO_POSTGRES}


async def fetched(shell: Shell, path: Path, key: str, environ: dict[str, str], *, code: int) -> dict[str, Any]:
    ended = await shell.run("fetch", key, "--job", path, "--json", environ=environ, code=code)
    found: dict[str, Any] = json.loads(ended.out)
    return found


async def test_a_request_its_response_and_the_rows_are_shown_without_secrets(
    shell: Shell, upstream: Upstream, environ: dict[str, str]
) -> None:
    shell.write("parse.py", PARSER)
    path = shell.write("job.toml", job(upstream, SECRETS + PARSED, "/item/{key}?token=${TOKEN}"))
    secrets = {"TOKEN": "secret-of-the-test", "SESSION": "session-of-the-test"}
    ended = await shell.run("fetch", "a b", "--job", path, environ={**environ, **secrets})
    assert f"GET {upstream.url}/item/a%20b?token=${{TOKEN}}\n" in ended.out
    for line in ("Authorization: Bearer ${TOKEN}", "Cookie: session=${SESSION}", "X-Plain: shown"):
        assert f"  {line}\n" in ended.out
    for line in ("-> status 200, ", "content-type: application/json", "\noutcome: stored\n", "table items", "a b"):
        assert line in ended.out
    assert "of-the-test" not in ended.out + ended.err
    assert upstream.paths == ["/item/a%20b?token=secret-of-the-test"]


@pytest.mark.parametrize(
    ("path", "outcome", "statuses", "column"),
    [
        ("/item/1", "stored", [200], "body"),
        ("/text/x", "stored", [200], "body"),
        ("/missing/x", "gone", [404], None),
        ("/status/403/x", "refused", [403], None),
        ("/status/301/x", "stored", [301, 200], "body"),
        ("/flaky/2/x", "stored", [503, 503, 200], "body"),
        ("/notjson/x", "failed", [200], None),
    ],
)
async def test_every_kind_of_response_has_the_outcome_of_a_run(
    shell: Shell,
    upstream: Upstream,
    environ: dict[str, str],
    path: str,
    outcome: str,
    statuses: list[int],
    column: str | None,
) -> None:
    text = '[run]\nname = "urls"\n[source]\npath = "urls.txt"\n[retry]\nbackoff = 0.01\n'
    shown = await fetched(
        shell, shell.write("job.toml", text), upstream.url + path, environ, code=int(outcome != "stored")
    )
    assert shown["outcome"] == outcome
    robots, *requests = shown["requests"]
    assert robots["url"] == f"{upstream.url}/robots.txt"
    assert [request["status"] for request in requests] == statuses
    assert [kept["column"] for kept in shown["kept"] if outcome == "stored"] == ([column] if column else [])
    assert all(kept["beginning"] for kept in shown["kept"])
    assert upstream.requests == len(statuses)


async def test_a_disallowed_key_is_not_requested(shell: Shell, environ: dict[str, str]) -> None:
    path = shell.write("job.toml", '[run]\nname = "urls"\n[source]\npath = "urls.txt"\n')
    async with Upstream(disallow="/item") as upstream:
        shown = await fetched(shell, path, f"{upstream.url}/item/1", environ, code=1)
        assert (shown["outcome"], upstream.requests) == ("refused", 0)


async def test_an_error_of_the_parser_shows_the_lines_of_its_files(
    shell: Shell, upstream: Upstream, environ: dict[str, str]
) -> None:
    shell.write("parse.py", PARSER)
    path = shell.write("job.toml", job(upstream, PARSED))
    ended = await shell.run("fetch", "odd", "--job", path, environ=environ, code=1)
    assert "outcome: failed: parse: KeyError: 'absent' (parse.py, line 7)" in ended.out
    assert f'File "{shell.folder}/parse.py", line 4, in items' in ended.out
    assert 'return item["n"] if item["id"] != "odd" else item["absent"]' in ended.out
    assert "hook.py" not in ended.out


async def test_a_saved_response_is_parsed_as_it_was_fetched(
    shell: Shell, upstream: Upstream, environ: dict[str, str], folder: Path
) -> None:
    shell.write("parse.py", PARSER)
    path = shell.write("job.toml", job(upstream, PARSED))
    for key, name in (("17", "17"), ("a/../b", "a-..-b-*"), ("17.json", "17.json-*")):
        ended = await shell.run("fetch", key, "--job", path, "--save", "saved", "--json", environ=environ)
        shown = json.loads(ended.out)
        saved = shell.folder / shown["saved"]
        assert saved.match(f"saved/{name}")
        parsed = parse_file(path, saved)
        assert parsed.outcomes == {key: ("stored", None)}
        assert parsed.tables == shown["tables"]
    await shell.run("fetch", "1", "--job", path, "--save", "/dev/null/x", environ=environ, code=1)


async def test_the_budget_is_that_of_the_run(
    shell: Shell, upstream: Upstream, environ: dict[str, str], redis: Redis
) -> None:
    """It takes a slot of the run's rate, and sends nothing while the run pauses the upstream."""
    path, keys = shell.write("job.toml", job(upstream)), RunKeys("test")
    environ = {**environ, "SHARDCRAWL_RATE": "50"}
    assert (await fetched(shell, path, "1", environ, code=0))["outcome"] == "stored"
    name = upstream.url.removeprefix("http://")
    assert await redis.exists(keys.slots(name))
    await Limiter(redis, keys, UpstreamMatcher({})).pause(name, 600)
    shown = await fetched(shell, path, "1", environ, code=1)
    assert shown["outcome"] is None
    assert f"{name} is paused, and a run would send the next request in " in shown["reason"]
    assert upstream.requests == 1


async def test_an_attempt_that_a_run_would_defer_is_not_waited_for(
    shell: Shell, upstream: Upstream, environ: dict[str, str]
) -> None:
    path = shell.write("job.toml", job(upstream, "[retry]\nbackoff = 3600\nmax_delay = 3600", "/flaky/1/{key}"))
    shown = await fetched(shell, path, "x", environ, code=1)
    assert shown["outcome"] is None
    assert "status 503: the key is deferred, and a run would send the next request in " in shown["reason"]
    assert upstream.requests == 1


async def test_an_embedded_redis_is_enough_and_a_run_of_the_name_begins_after_it(
    shell: Shell, upstream: Upstream
) -> None:
    path = shell.write("job.toml", job(upstream))
    shell.write("keys.txt", ["1", "2"])
    await shell.run("fetch", "1", "--job", path, environ={"DATABASE_URL": NO_POSTGRES})
    assert not (shell.data / "postgres").exists()
    await shell.run("run", path)
    assert await shell.sql("select count(*) as keys from pages_current") == [{"keys": 2}]
    assert upstream.requests == 3


@pytest.mark.parametrize(
    ("text", "key", "code", "message"),
    [
        ('[run]\nname = "urls"\n[source]\npath = "x"\n', "no url", 2, "key 'no url' does not start with http"),
        ('[run]\nname = "urls"\n', "1", 2, "[source] needs one of path"),
        (
            '[run]\nname = "urls"\n[source]\npath = "x"\n[parse]\npython = "absent:f"\n',
            "http://127.0.0.1:1/",
            2,
            "cannot import absent",
        ),
    ],
)
async def test_what_cannot_be_requested_is_a_usage_error(
    shell: Shell, environ: dict[str, str], text: str, key: str, code: int, message: str
) -> None:
    ended = await shell.run("fetch", key, "--job", shell.write("job.toml", text), environ=environ, code=code)
    assert message in ended.err
