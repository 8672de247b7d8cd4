"""Requests with bodies in whole runs: from fields and keys to rows, and killed between sending and the response."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from redis.asyncio import Redis

from tests.live.shell import Shell
from tests.servers.api import Sent, api, status
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

JOB = """
    [run]
    name = "posts"
    concurrency = 2
    [source]
    path = "keys.txt"
    [request]
    url = "{url}/items"
    json = {{ ids = "{{keys}}", token = "${{TOKEN}}" }}
    keys_per_request = 2
    {more}
"""
TOKEN = "s3cr3t-t0ken"


@pytest.mark.parametrize("idempotent", [False, True])
async def test_a_worker_is_killed_between_the_sending_of_a_post_and_its_response(
    shell: Shell, idempotent: bool
) -> None:
    """Each key is sent exactly once, and those whose outcome nobody knows say so; an idempotent one is sent again."""
    never = asyncio.Event()
    in_doubt: set[str] = set()

    async def respond(sent: Sent) -> bytes:
        if not in_doubt:
            in_doubt.update(sent.json["ids"])
            await never.wait()
        return status(200, b"{}")

    async with api(respond) as server:
        shell.write("keys.txt", [*map(str, range(20))])
        more = f"idempotent = {str(idempotent).lower()}\n[retry]\nattempts = 2"
        path = shell.write("job.toml", JOB.format(url=server.url(), more=more))
        running = await shell.start("run", path, environ={"TOKEN": TOKEN})
        worker = await running.child("worker-1")
        await eventually(lambda: bool(in_doubt), "the first request")
        worker.kill()
        ended = await running.end()
        never.set()
        times = Counter(key for one in server.sent for key in one.json["ids"])
        assert {one.json["token"] for one in server.sent} == {TOKEN}
    pages = await shell.sql("select key, outcome, reason from pages")
    assert len(pages) == 20
    failed = {page["key"]: page["reason"] for page in pages if page["outcome"] == "failed"}
    if idempotent:
        assert not failed
        assert all(times[key] == 2 for key in in_doubt)
        return
    assert set(times.values()) <= {1}, "no key was sent twice"
    assert in_doubt <= set(failed)
    assert all(reason.startswith("outcome unknown: ") for reason in failed.values())
    assert {page["key"] for page in pages if page["outcome"] == "stored"} == set(times) - set(failed)
    assert ended.code == 3
    assert TOKEN not in str(pages) + ended.out + ended.err + str(
        await shell.sql("select row_to_json(r) as r from runs r")
    )


async def test_a_session_that_ends_is_begun_again_and_its_secrets_are_written_down_by_nobody(
    shell: Shell, redis: Redis, environ: dict[str, str]
) -> None:
    """Also `check` and `fetch` know it; the token and the password are in no output, no row and no key of Redis."""
    logins = used = 0

    def respond(sent: Sent) -> bytes:
        nonlocal logins, used
        if sent.path == "/login":
            logins, used = logins + 1, 0
            return status(200, b'{"access_token": "tok3n-%d"}' % logins) if sent.json == {"key": TOKEN} else status(403)
        used += 1
        return status(200 if used <= 7 and sent.headers.get("authorization") == f"Bearer tok3n-{logins}" else 401)

    async with api(respond) as server:
        shell.write("keys.txt", [*map(str, range(20))])
        job = f"""
            [run]
            name = "login"
            concurrency = 1
            [source]
            path = "keys.txt"
            [request]
            url = "{server.url()}/{{key}}"
            [request.login]
            url = "{server.url()}/login"
            json = {{ key = "${{TOKEN}}" }}
            headers = {{ X-Client = "a-${{TOKEN}}" }}
            token = "access_token"
        """
        path = shell.write("job.toml", job)
        environ = {**environ, "TOKEN": TOKEN}
        checked = await shell.run("check", path, environ=environ)
        assert "login" in checked.out
        fetched = await shell.run("fetch", "1", "--job", path, environ=environ)
        assert fetched.code == 0, fetched.err
        assert "X-Client: a-${TOKEN}" in fetched.out
        assert server.sent[0].headers["x-client"] == f"a-{TOKEN}"
        ended = await shell.run("run", path, "--log-level", "debug", environ=environ)
        assert ended.code == 0, ended.err
    outcomes = await shell.sql("select outcome, count(*)::int as n from pages group by 1", environ=environ)
    assert outcomes == [{"outcome": "stored", "n": 20}]
    assert logins == 1 + 3
    rows = await shell.sql("select row_to_json(r)::text as row from runs r", environ=environ)
    written = [checked.out, fetched.out, fetched.err, ended.out, ended.err, str(rows)]
    async for key in redis.scan_iter():
        written += [str(key), str(await redis.dump(key))]
    assert not [text for text in written if TOKEN in text or "tok3n" in text]
