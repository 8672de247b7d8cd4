"""Incremental jobs: each run asks for what is new, and `TABLE_current` has all of it right after each run."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

import psutil
import pytest

from tests.live.shell import Shell, kill_tree
from tests.servers.api import Api, Sent, api, status
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

FIRST = "2026-01-01T00:00:00Z"
JOB = """
[run]
corpus = "issues"
since = "FIRST"
max_failed = 1.0
[source]
keys = ["open", "closed"]
[request]
url = "URL/{key}?since={since}"
headers = { X-Since = "{since}" }
allow_private = ["127.0.0.0/8"]
[retry]
attempts = 1
[parse]
rows = "items"
[[tables]]
name = "issues"
unique = ["id"]
mode = "merge"
[tables.columns]
id = "bigint"
title = "text"
"""


@dataclass
class Tracker:
    """An upstream with lists of issues; a list that is None fails. `since` are the texts that it was requested with."""

    lists: dict[str, Mapping[int, str] | None] = field(default_factory=dict)
    since: list[str] = field(default_factory=list)

    def respond(self, sent: Sent) -> bytes:
        url = urlsplit(sent.path)
        (since_text,) = parse_qs(url.query)["since"]
        assert sent.headers["x-since"] == since_text
        self.since.append(since_text)
        found = self.lists.get(url.path[1:], {})
        if found is None:
            return status(500)
        items = [{"id": number, "title": title} for number, title in found.items()]
        return status(200, json.dumps({"items": items}).encode())


@dataclass
class Corpus:
    shell: Shell
    environ: dict[str, str]
    tracker: Tracker
    server: Api

    def write(self, more: str = "") -> None:
        text = JOB.replace("URL", self.server.url()).replace("FIRST", FIRST) + more
        self.shell.write("issues.toml", text)

    async def run(self, **lists: Mapping[int, str] | None) -> list[str]:
        """Run the job to its end while the upstream has these lists; returns the texts that it was requested with."""
        self.tracker.lists, self.tracker.since = lists, []
        await self.shell.run("run", "issues.toml", environ=self.environ)
        return sorted(set(self.tracker.since))

    async def current(self) -> dict[int, str]:
        rows = await self.shell.sql("select id, title from issues_current", environ=self.environ)
        assert len({row["id"] for row in rows}) == len(rows)
        return {row["id"]: row["title"] for row in rows}

    async def began(self) -> list[str]:
        """When each run began, as `{since}` has it."""
        query = (
            "select to_char(created_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') as at from runs order by 1"
        )
        return [row["at"] for row in await self.shell.sql(query, environ=self.environ)]


@pytest.fixture
async def corpus(shell: Shell, environ: dict[str, str]) -> AsyncIterator[Corpus]:
    tracker = Tracker()
    async with api(tracker.respond) as server:
        corpus = Corpus(shell, environ, tracker, server)
        corpus.write()
        yield corpus


async def test_each_run_asks_for_what_is_new_and_the_view_has_everything(corpus: Corpus) -> None:
    assert await corpus.run(open={1: "one", 2: "two"}, closed={3: "three"}) == [FIRST]
    assert await corpus.current() == {1: "one", 2: "two", 3: "three"}
    assert await corpus.run(open={2: "two, edited"}) == [(await corpus.began())[0]]
    assert await corpus.current() == {1: "one", 2: "two, edited", 3: "three"}
    assert await corpus.run(open={4: "four"}, closed={1: "one, closed"}) == [(await corpus.began())[1]]
    everything = {1: "one, closed", 2: "two, edited", 3: "three", 4: "four"}
    assert await corpus.current() == everything
    ended = await corpus.shell.run("runs", "--json", environ=corpus.environ)
    assert len(json.loads(ended.out)) == 3
    corpus.shell.write(
        "renamed.toml", JOB.replace("URL", corpus.server.url()).replace('name = "issues"', 'name = "other"')
    )
    ended = await corpus.shell.run("check", "renamed.toml", environ=corpus.environ, code=2)
    assert "table issues merges, and the job has it no longer" in ended.err
    corpus.write('state = "text"\n')
    ended = await corpus.shell.run("check", "issues.toml", environ=corpus.environ)
    assert "a new run adds column state text to table issues" in ended.out
    assert f"at first {FIRST}" in ended.out
    assert await corpus.run() == [(await corpus.began())[2]]
    assert await corpus.current() == everything
    states = await corpus.shell.sql("select distinct state from issues_current", environ=corpus.environ)
    assert states == [{"state": None}]


@pytest.mark.slow
async def test_a_key_that_failed_is_retried_with_the_same_since_and_nothing_is_doubled(corpus: Corpus) -> None:
    await corpus.run(open={1: "one", 2: "two"}, closed={3: "three"})
    await corpus.run(open={1: "one, edited"}, closed=None)
    assert await corpus.current() == {1: "one, edited", 2: "two", 3: "three"}
    (name,) = [
        row["name"]
        for row in await corpus.shell.sql("select name from runs order by run_id desc limit 1", environ=corpus.environ)
    ]
    await corpus.shell.run("retry", name, environ=corpus.environ)
    began = await corpus.began()
    assert await corpus.run(closed={2: "two, closed", 3: "three, edited"}) == [began[0]]
    assert await corpus.began() == began, "the run has gone on"
    assert await corpus.current() == {1: "one, edited", 2: "two, closed", 3: "three, edited"}


@pytest.mark.parametrize(
    "step",
    [pytest.param("counted", marks=pytest.mark.slow), "merged", pytest.param("finished", marks=pytest.mark.slow)],
)
async def test_a_worker_that_dies_while_a_run_is_merged(corpus: Corpus, step: str) -> None:
    """Nothing is lost, nothing is doubled, and who reads sees the run before until all of the new one is there."""
    await corpus.run(open={1: "one", 2: "two"}, closed={3: "three"})
    corpus.tracker.lists = {"open": {1: "older", 2: "newer"}, "closed": {1: "older"}}
    with_failpoint = {**corpus.environ, "FAILPOINT": f"worker-1:{step}:1:stop"}
    running = await corpus.shell.start("run", "issues.toml", environ=with_failpoint)

    def stopped() -> bool:
        return any(child.status() == psutil.STATUS_STOPPED for child in running.children("worker-1"))

    await eventually(stopped, f"the worker to reach {step}", seconds=30)
    if step != "finished":
        assert await corpus.current() == {1: "one", 2: "two", 3: "three"}
    kill_tree(running.process.pid)
    await running.process.wait()
    await corpus.shell.run("run", "issues.toml", environ=corpus.environ)
    assert await corpus.current() == {1: "older", 2: "newer", 3: "three"}
    runs = await corpus.shell.sql("select published_at is not null as published from runs", corpus.environ)
    # What is published, and only Redis does not know, is not the one that the next command goes on with.
    assert runs == [{"published": True}] * (3 if step == "finished" else 2)
