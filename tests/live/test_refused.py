"""An upstream that refuses whatever is requested: its token has expired, or it does not want the crawl."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator

import pytest

from crawler.job.document import load_job_file
from crawler.job.job import read_job
from crawler.local import standstill
from crawler.local.events import Event, Listener, NothingElseLeft
from crawler.local.run import run_at
from crawler.local.services import Addresses
from crawler.sample.connection import CannedResponse
from crawler.sample.upstream import Upstream
from tests.live.shell import Shell
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

KEYS = 300
STORED = "select count(*) as keys, count(*) filter (where body->>'id' = key) as stored from pages"
QUIET = {"SHARDCRAWL_LOG_LEVEL": "error"}
# Refused in a row, and what two workers may have refused before they know: what they had not reported, and their lanes.
MOST_REFUSED = 100 + 2 * (10 + 16)


class Guarded(Upstream):
    """The sample upstream, with a token that is good for `requests_left` requests; after that every one gets 401."""

    def __init__(self, requests_left: int) -> None:
        super().__init__(size=300)
        self.requests_left = requests_left
        self.refused = 0

    def respond(self, method: str, target: bytes, condition: str) -> CannedResponse:
        if target.startswith(b"/item/"):
            self.requests_left -= 1
            if self.requests_left < 0:
                self.refused += 1
                return CannedResponse(401, b'{"message": "Bad credentials"}')
        return super().respond(method, target, condition)

    def renew_token(self) -> None:
        self.requests_left = 1_000_000


@pytest.fixture
async def guarded() -> AsyncIterator[Guarded]:
    async with Guarded(100) as upstream:
        yield upstream


def job_text(upstream: Upstream, retry: str = "") -> str:
    return f"""
        [run]
        name = "guarded"
        workers = 2
        concurrency = 16
        [source]
        path = "keys.txt"
        [request]
        url = "{upstream.url}/item/{{key}}"
        allow_private = ["127.0.0.0/8"]
        [retry]
        {retry}
        [limits."*"]
        rate = "none"
    """


async def until_paused(shell: Shell, upstream: Guarded) -> None:
    """Wait until `status` says that the upstream is paused by its refusals."""
    host = upstream.url.removeprefix("http://")

    async def is_paused() -> bool:
        ended = await shell.run("status", "guarded", "--json", environ=QUIET, code=None)
        return not ended.code and json.loads(ended.out)["upstreams"].get(host, {}).get("refused_with") == 401

    await eventually(lambda: upstream.refused > 0, "a refusal", seconds=60)
    await eventually(is_paused, "the pause in `status`", seconds=60)


async def test_a_token_that_expires_pauses_the_run_and_loses_no_key(shell: Shell, guarded: Guarded) -> None:
    """With a worker killed meanwhile. What was refused before the pause counts against max_failed, and goes back."""
    host = guarded.url.removeprefix("http://")
    shell.write("keys.txt", [str(number) for number in range(KEYS)])
    path = shell.write("job.toml", job_text(guarded))
    running = await shell.start("run", path, "--workers", "2")
    await until_paused(shell, guarded)
    ended = await shell.run("status", "guarded", environ=QUIET)
    assert f"{host} paused: its last " in ended.out
    assert "responses were 401" in ended.out
    stored = "select count(*) >= 50 as enough from pages_r1 where status = 401"

    async def enough_stored() -> bool:
        return await shell.sql(stored) == [{"enough": True}]

    await eventually(enough_stored, "refusals that a worker's death does not take back")
    refused_then = guarded.refused
    assert 100 <= refused_then <= MOST_REFUSED
    (await running.child("worker-1")).kill()
    await eventually(lambda: guarded.refused > refused_then, "a probe", seconds=60)
    guarded.renew_token()
    end = await running.end()
    assert end.code == 3, end.err
    assert f"{host} is paused: its last " in end.err, "the log says so"
    assert f"{host} lets requests through again" in end.err
    (counts,) = await shell.sql("select count(*) as keys, count(*) filter (where status = 401) as refused from pages")
    assert counts["keys"] == KEYS
    assert 50 <= counts["refused"] <= refused_then, "neither what was under way nor probes are among them"
    assert f"refused {counts['refused']}: {counts['refused']} x status 401" in end.out
    assert "what was denied goes back with: shardcrawl retry" in end.out
    assert "guarded --status 401" in end.out
    again = await shell.run("run", path, "--json", code=3)
    assert json.loads(again.out)["denied"] == counts["refused"]
    status = json.loads((await shell.run("status", "guarded", "--json", environ=QUIET)).out)
    assert status["reasons"] == [{"outcome": "refused", "reason": "status 401", "keys": counts["refused"]}]
    assert "has no key that ended so" in (await shell.run("retry", "guarded", "--status", "403")).out
    assert f"{counts['refused']} refused keys go back into run guarded" in (await shell.run("retry", "guarded")).out
    await shell.run("run", path)
    assert await shell.sql(STORED) == [{"keys": KEYS, "stored": KEYS}]
    await shell.run("audit", "guarded")


async def test_a_list_that_may_be_refused_from_end_to_end_is_done_without_a_pause(
    shell: Shell, guarded: Guarded
) -> None:
    shell.write("keys.txt", [str(number) for number in range(KEYS)])
    end = await shell.run("run", shell.write("job.toml", job_text(guarded, "refused_in_a_row = 0")), code=3)
    assert "refused 200: 200 x status 401" in end.out
    assert guarded.refused == 200


@pytest.mark.slow
async def test_an_interrupted_run_says_what_to_do_about_the_refusals(shell: Shell, guarded: Guarded) -> None:
    host = guarded.url.removeprefix("http://")
    shell.write("keys.txt", [str(number) for number in range(KEYS)])
    path = shell.write("job.toml", job_text(guarded, "refused_in_a_row = 20"))
    running = await shell.start("run", path, "--workers", "2")
    await until_paused(shell, guarded)
    running.interrupt()
    end = await running.end()
    assert end.code == 130
    assert f"{host} refuses every request (its last " in end.out
    assert "go on with: shardcrawl run" in end.out
    assert "guarded --status 401" in end.out
    guarded.renew_token()
    await shell.run("run", path, code=3)
    await shell.run("retry", "guarded", "--outcome", "refused", "--reason", "STATUS 401")
    await shell.run("run", path)
    assert await shell.sql(STORED) == [{"keys": KEYS, "stored": KEYS}]


async def test_a_command_ends_when_nothing_else_is_left_for_long(
    shell: Shell, guarded: Guarded, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standstill, "PATIENCE_SECONDS", 2.0)
    shell.write("keys.txt", [str(number) for number in range(KEYS)])
    path = shell.write("job.toml", job_text(guarded))
    job = read_job(load_job_file(path), str(shell.folder))
    events: list[Event] = []
    addresses = Addresses(environ["REDIS_URL"], environ["DATABASE_URL"])
    try:
        end = await run_at(addresses, job, Listener(events.append, 0.1), {**os.environ, **environ})
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().remove_signal_handler(number)
    assert end.gave_up
    assert end.stored is None
    assert [health.status for health in end.unauthorized] == [401]
    assert len([event for event in events if isinstance(event, NothingElseLeft)]) == 1
    assert 50 <= end.denied <= MOST_REFUSED
    assert end.counts.done == 100 + end.denied
