"""Secrets of a job: they reach the upstream that they are for, and nothing that is written down."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from tests.live.shell import Shell
from tests.servers.disturbed import Disturbed

pytestmark = pytest.mark.anyio

TOKEN = "s3cr3t/t0ken"
SENT = "s3cr3t%2Ft0ken"


@pytest.fixture
async def disturbed() -> AsyncIterator[Disturbed]:
    async with Disturbed() as upstream:
        yield upstream


async def test_a_secret_in_the_template_is_sent_and_not_written_down(
    shell: Shell, disturbed: Disturbed, redis: Redis, environ: dict[str, str]
) -> None:
    """Also not when redirects quote it, and when a parser stores the URL of the response."""
    url = disturbed.url
    disturbed.redirects = {
        f"away?key={SENT}": f"{url}/item/there?key={SENT}",
        f"loop?key={SENT}": f"/item/loop?key={SENT}",
    }
    shell.write("keys.txt", [*map(str, range(10)), "away", "loop"])
    shell.write("parse.py", 'def seen(response):\n    return {"seen": [{"url": response.url}]}\n')
    job = f"""
        [run]
        name = "secret"
        workers = 1
        [source]
        path = "keys.txt"
        [request]
        url = "{url}/item/{{key}}?key=${{TOKEN}}"
        [parse]
        python = "parse:seen"
        [[tables]]
        name = "seen"
        columns = {{ url = "text" }}
    """
    environ = {**environ, "TOKEN": TOKEN}
    path = shell.write("job.toml", job)
    checked = json.loads((await shell.run("check", path, "--json", environ=environ)).out)
    assert ["credentials", f"${{TOKEN}} in url: to {url}"] in [[row["what"], row["value"]] for row in checked]
    ended = await shell.run("run", path, "--log-level", "debug", environ=environ)
    assert {path.partition("?")[2] for path in disturbed.paths} == {f"key={SENT}"}
    assert f"/item/there?key={SENT}" in disturbed.paths
    pages = await shell.sql("select key, url, outcome, reason from pages", environ=environ)
    assert {page["url"] for page in pages} == {f"{url}/item/{page['key']}?key=${{TOKEN}}" for page in pages}
    outcomes = {page["key"]: page["outcome"] for page in pages}
    assert outcomes == {**dict.fromkeys((*map(str, range(10)), "away"), "stored"), "loop": "refused"}
    query = "select row_to_json(r)::text as row from runs r union all select row_to_json(s)::text from seen s"
    written = [ended.out, ended.err, str(pages), str(await shell.sql(query, environ=environ))]
    async for key in redis.scan_iter():
        written += [str(key), str(await redis.dump(key))]
    assert not [text for text in written if "s3cr3t" in text]
