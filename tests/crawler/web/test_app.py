"""What the page asks for, and what it changes, with real services behind it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

import crawler.web
from coordinator.limits.activity import UpstreamActivity, UpstreamRequests
from coordinator.limits.matcher import UpstreamMatcher
from coordinator.limits.upstream_health import read_upstream_health
from coordinator.model import RunState
from coordinator.queue.registry import Runs
from coordinator.queue.sharding import digest
from coordinator.redis.keys import RunKeys
from crawler.cli.display.overview import Overview
from crawler.local.services import Addresses
from crawler.runs import cancel
from crawler.runs.naming import name_lock
from crawler.store.catalogue import open_catalogue
from crawler.web import stores
from crawler.web.actions import ACTIONS
from crawler.web.app import Dashboard
from crawler.web.guard import Access
from crawler.web.keys_view import RECOUNT_SECONDS, KeysView
from crawler.web.stores import Stores
from crawler.web.upstreams_view import upstream_rows
from tests.crawler.web.world import (
    BROKEN,
    DEAD,
    DEFERRED,
    NEW,
    OLD,
    SCRIPT,
    SLOW,
    TOKEN,
    WAITING,
    World,
    a_dashboard,
    a_visitor,
    a_world,
)

pytestmark = pytest.mark.anyio

STATIC = Path(crawler.web.__file__).parent / "static"
ALLOWED = {"Authorization": f"Bearer {TOKEN}"}
# What each action would do if it were allowed.
BODIES: dict[str, dict[str, Any]] = {
    "pause": {"run": NEW},
    "resume": {"run": NEW},
    "limit": {"run": NEW, "upstream": SLOW, "rate": "20/s"},
    "retry": {"run": NEW, "outcome": "failed"},
    "cancel": {"run": NEW},
    "publish": {"run": WAITING, "force": True},
    "rollback": {"corpus": "things"},
}
IMPOSSIBLE: list[tuple[str, dict[str, Any], str]] = [
    ("limit", {"run": NEW, "upstream": SLOW}, "nothing to change"),
    ("limit", {"run": NEW, "upstream": SLOW, "rate": "fast"}, "rate"),
    ("limit", {"run": NEW, "upstream": SLOW, "rate": None, "concurrency": "4"}, "rate"),  # what becomes of a NaN
    ("limit", {"run": NEW, "upstream": SLOW, "rate": "", "concurrency": "4"}, "rate"),
    ("limit", {"run": NEW, "upstream": SLOW, "rate": True}, "rate"),
    ("limit", {"run": NEW, "upstream": SLOW, "concurrency": "-1"}, "concurrency"),
    ("limit", {"run": NEW, "upstream": SLOW, "concurrency": "9" * 5000}, "concurrency"),
    ("limit", {"run": "nobody", "upstream": SLOW, "rate": "1"}, "no run nobody"),
    ("retry", {"run": NEW, "digest": "xyz"}, "fromhex"),
    ("retry", {"run": NEW, "outcome": "stored"}, "outcome is 'stored'"),
    *(
        (verb, {"run": "a\0b", "corpus": "a\0b"}, "0x00")
        for verb in ("pause", "cancel", "retry", "publish", "rollback")
    ),
    ("retry", {"run": NEW, "more": 1}, "more"),
    ("retry", {"run": 7}, "str"),
    ("cancel", {"run": OLD}, "is complete"),
    ("publish", {"run": NEW}, "is not complete"),
    ("explode", {}, "is no action"),
]


@pytest.fixture
async def world(redis: Redis, database: str) -> AsyncIterator[World]:
    async with a_world(redis, database) as made:
        yield made


@pytest.fixture
async def dashboard(world: World, redis_url: str) -> AsyncIterator[Dashboard]:
    async with a_dashboard(redis_url, world.database, Access(token=TOKEN)) as made:
        yield made


@pytest.fixture
async def visitor(dashboard: Dashboard) -> AsyncIterator[httpx.AsyncClient]:
    async with a_visitor(dashboard) as client:
        yield client


async def everything(world: World) -> Any:
    """What an action could change."""
    async with open_catalogue(world.database) as catalogue:
        runs = [(run.name, run.epoch, run.state, run.published_at, run.shortfall) for run in await catalogue.all()]
        pages = await catalogue.connection.fetchval(f"SELECT count(*) FROM {world.run.pages}")
    keys = RunKeys(NEW)
    return runs, pages, await world.redis.hgetall(keys.state), await world.redis.hgetall(keys.limits)


async def test_every_response_is_locked_down(visitor: httpx.AsyncClient) -> None:
    paths = ["/", f"/runs/{NEW}", "/diff", "/static/app.js", "/api/session", "/nowhere", "/api/runs/nobody/keys"]
    for path in paths:
        response = await visitor.get(path)
        assert response.status_code == (404 if "no" in path.split("/")[-2:][0] or path == "/nowhere" else 200), path
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert "unsafe" not in response.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in response.headers["content-security-policy"]
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["x-content-type-options"] == "nosniff"
    refused = await visitor.get("/", headers={"Host": "rebound.example.com"})
    assert refused.status_code == 421
    assert "default-src 'none'" in refused.headers["content-security-policy"]


def test_no_file_of_the_page_makes_markup_of_text_or_names_another_place() -> None:
    text = "".join(file.read_text() for file in STATIC.iterdir())
    for word in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "new Function", "style="):
        assert word not in text, word
    assert not {line for line in text.splitlines() if "://" in line and "www.w3.org" not in line}


async def test_nobody_acts_without_the_token(world: World, redis_url: str) -> None:
    before = await everything(world)
    allowed = Access(token=TOKEN)
    for access, headers, status in (
        (allowed, {}, 401),
        (allowed, {"Authorization": "Bearer a token of these test"}, 401),
        (allowed, ALLOWED | {"Origin": "http://evil.example"}, 403),
        (allowed, ALLOWED | {"Host": "rebound.example.com"}, 421),
        (allowed, ALLOWED | {"Content-Type": "text/plain"}, 415),
        (Access(), ALLOWED, 403),
        (Access(token=TOKEN, only_reads=True), ALLOWED, 403),
    ):
        async with a_dashboard(redis_url, world.database, access) as dashboard, a_visitor(dashboard) as visitor:
            for verb in ACTIONS:
                response = await visitor.post(f"/api/actions/{verb}", json=BODIES[verb], headers=headers)
                assert response.status_code == status, (verb, access, headers, response.text)
                assert (await visitor.get(f"/api/actions/{verb}")).status_code == 405
    assert await everything(world) == before


async def act(visitor: httpx.AsyncClient, verb: str, **wanted: Any) -> tuple[int, str]:
    response = await visitor.post(f"/api/actions/{verb}", json=wanted, headers=ALLOWED)
    return response.status_code, response.json().get("done") or response.json()["error"]


async def test_with_the_token_each_action_does_what_its_command_does(
    world: World, dashboard: Dashboard, visitor: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await visitor.get("/api/session")).json()["actions"].keys() == ACTIONS.keys() == BODIES.keys()
    for verb, state in (("pause", "paused"), ("resume", "running")):
        assert (await act(visitor, verb, run=NEW))[0] == 200
        assert (await dashboard.runs.run(NEW))["state"] == state
    assert (await act(visitor, "limit", **BODIES["limit"]))[0] == 200
    health = {one.upstream: one for one in await read_upstream_health(world.redis, RunKeys(NEW))}
    assert health[SLOW].override is not None
    status, words = await act(visitor, "retry", run=NEW, digest=digest("busy 1").hex(), outcome="failed")
    assert (status, words.partition(";")[0]) == (200, f"1 key goes back into run {NEW}")
    status, words = await act(visitor, "retry", run=NEW, outcome="failed", reason="dns: \u2026 no such host")
    assert (status, words.partition(";")[0]) == (200, f"3 keys go back into run {NEW}")
    status, words = await act(visitor, "publish", run=WAITING)
    assert status == 200
    assert "readers of corpus others see run others-1 now" in words
    assert await act(visitor, "rollback", corpus="things") == (
        409,
        "corpus things has no complete run that was published before things-1",
    )
    monkeypatch.setattr(cancel, "DRAIN_SECONDS", 0.0)
    monkeypatch.setattr(cancel, "QUIET_SECONDS", 0.0)
    assert (await act(visitor, "cancel", run=NEW))[0] == 200
    assert await Runs(world.redis).state(NEW) is None
    async with open_catalogue(world.database) as catalogue:
        run = await catalogue.find(NEW)
    assert run is not None
    assert run.state is RunState.CANCELLED


async def test_what_cannot_be_done_is_said_in_one_line(visitor: httpx.AsyncClient) -> None:
    for verb, body, words in IMPOSSIBLE:
        response = await visitor.post(f"/api/actions/{verb}", json=body, headers=ALLOWED)
        assert (response.status_code, words in response.json()["error"]) == (409, True), response.text


async def test_a_table_that_is_locked_holds_up_a_page_for_a_bounded_time_and_pages_hold_up_no_metrics(
    world: World, visitor: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "READ_SECONDS", 0.5)
    async with open_catalogue(world.database) as catalogue, catalogue.connection.transaction():
        await catalogue.connection.execute("LOCK TABLE pages IN ACCESS EXCLUSIVE MODE")
        await catalogue.connection.execute(f"LOCK TABLE {world.run.pages} IN ACCESS EXCLUSIVE MODE")
        path = f"/api/runs/{NEW}/keys/{digest('item 3').hex()}"
        looks = [asyncio.create_task(visitor.get(path)) for _ in range(stores.MAX_CONNECTIONS)]
        responses = [await look for look in looks]
        assert {one.status_code for one in responses} == {503}
        assert "Postgres takes more than" in responses[0].json()["error"]
        monkeypatch.setattr(stores, "READ_SECONDS", 20.0)
        looks = [asyncio.create_task(visitor.get(path)) for _ in range(stores.MAX_CONNECTIONS)]
        assert (await visitor.get("/readyz")).status_code == 200
        assert not any(look.done() for look in looks)
    assert {(await look).status_code for look in looks} == {200}


async def test_the_list_of_runs_and_one_run(dashboard: Dashboard) -> None:
    news = await dashboard.runs.all()
    runs = {run["name"]: run for run in news["runs"]}
    assert news["runs"][0]["name"] == NEW
    assert runs[NEW]["workers"] == 4
    assert runs[NEW]["outcomes"] == {"stored": 41, "unchanged": 0, "gone": 1, "refused": 1, "failed": 13}
    assert runs[OLD]["current"]
    assert runs[WAITING]["shortfall"].startswith("[publish] max_failed")
    one = await dashboard.runs.run(NEW)
    assert {worker["host"] for worker in one["fleet"]} == {"alpha", "beta"}
    assert one["queue"].deferred == 1
    assert 55 < one["queue"].next_due <= 60
    upstreams = {row["name"]: row for row in one["upstreams"]["shown"]}
    assert upstreams.keys() == {SLOW, BROKEN, DEAD}
    assert upstreams[SLOW]["stops"]
    assert upstreams[SLOW]["trouble"].startswith("paused")
    assert (upstreams[SLOW]["throttled"], upstreams[SLOW]["sent"]) == (1, 45)
    assert upstreams[BROKEN]["trouble"].startswith("breaker open")
    assert upstreams[DEAD]["keys_waiting"] == 12
    assert len(await dashboard.runs.history(NEW)) == 1
    complete = await dashboard.runs.run(OLD)
    assert (complete["state"], complete["workers"], complete["current"]) == ("complete", 0, True)


def test_an_upstream_that_throttles_much_stays_in_its_place_between_its_pauses() -> None:
    activity = {"quick.example": UpstreamActivity(50.0, 0.0), "throttles.example": UpstreamActivity(5.0, 0.0)}
    requests = {"quick.example": UpstreamRequests(900, 1, 0), "throttles.example": UpstreamRequests(100, 13, 0)}
    rows = upstream_rows(UpstreamMatcher({}), (), (), activity, requests)["shown"]
    assert [row["name"] for row in rows] == ["throttles.example", "quick.example"]


async def test_a_run_that_redis_lost_is_shown_as_postgres_has_it(
    dashboard: Dashboard, world: World, visitor: httpx.AsyncClient
) -> None:
    await act(visitor, "pause", run=NEW)
    await world.redis.flushall()
    listed = (await dashboard.runs.all())["runs"][0]
    one = await dashboard.runs.run(NEW)
    assert (listed["lost"], listed["state"]) == (True, "paused")
    assert (one["lost"], one["state"], one["outcomes"]["failed"]) == (True, "paused", 13)
    looking = Overview(world.redis, world.database, NEW)
    assert (await looking.read())[0].snapshot.shown_state == "paused"
    looking.close()
    assert f'shardcrawl_run_state{{run="{NEW}",state="paused"}} 1' in (await visitor.get("/metrics")).text
    assert "is not in Redis now" in (await act(visitor, **BODIES["limit"], verb="limit"))[1]


async def test_a_run_whose_keys_went_back_begins_again_while_somebody_works_on_it_or_opens_it(
    dashboard: Dashboard, world: World, visitor: httpx.AsyncClient
) -> None:
    async def in_use() -> set[bool]:
        listed = (await dashboard.runs.all())["runs"][0]
        one = await dashboard.runs.run(NEW)
        assert (listed["name"], listed["lost"], one["lost"]) == (NEW, True, True)
        return {listed["in_use"], one["in_use"]}

    await act(visitor, "retry", run=NEW, outcome="failed")
    assert await in_use() == {True}
    keys = RunKeys(NEW)
    await world.redis.delete(keys.workers, keys.leader)
    await world.redis.hset(keys.state, "opened", 0)
    assert await in_use() == {False}
    await Runs(world.redis).mark_opened(NEW)  # a command has seen it, and its processes have ended
    assert await in_use() == {True}
    await world.redis.flushall()
    assert await in_use() == {False}
    async with name_lock(world.database, NEW):
        assert await in_use() == {True}
    assert await in_use() == {False}


async def test_actions_are_events_of_the_log_and_a_flood_without_the_token_is_a_line(
    visitor: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await act(visitor, "pause", run=NEW)
    await act(visitor, "publish", run=NEW)
    for _ in range(5):
        await visitor.post("/api/actions/cancel", json={"run": NEW}, headers={"Authorization": "Bearer wrong"})
    found = [
        (record.__dict__["event"], record.__dict__["action"], record.__dict__.get("run"))
        for record in caplog.records
        if "event" in record.__dict__
    ]
    assert found == [
        ("action_done", "pause", NEW),
        ("action_refused", "publish", NEW),
        ("action_refused", "cancel", None),
    ]
    assert "the token is missing or wrong" in caplog.text
    assert TOKEN not in caplog.text


async def test_keys_that_brought_nothing_and_one_key(visitor: httpx.AsyncClient) -> None:
    async def keys(**given: str) -> Any:
        response = await visitor.get(f"/api/runs/{NEW}/keys", params=given)
        return response.json()

    assert len((await keys())["keys"]) == 13
    assert [one["key"] for one in (await keys(outcome="gone"))["keys"]] == ["item 404"]
    assert {one["key"] for one in (await keys(text="No Such"))["keys"]} == {"nowhere 0", "nowhere 1", "nowhere 2"}
    assert len((await keys(text="dns: \u2026 no such host"))["keys"]) == 3
    assert (await keys(text="item 3"))["exact"] == digest("item 3").hex()
    assert (await keys(outcome="stored"))["error"].startswith("outcome is")
    assert "0x00" in (await keys(text="a\0b"))["error"]
    assert "no digest" in (await keys(behind="xyz"))["error"]
    reasons = (await visitor.get(f"/api/runs/{NEW}/reasons")).json()
    assert ("status 503", 9) in [(one["reason"], one["keys"]) for one in reasons["reasons"]]
    assert not reasons["sampled"]
    key = (await visitor.get(f"/api/runs/{NEW}/keys/{digest('item 3').hex()}")).json()
    assert key["page"]["outcome"] == "stored"
    assert SCRIPT in key["page"]["body"]
    assert [table["table"] for table in key["tables"]] == ["titles"]
    assert f"{NEW} 3" in key["tables"][0]["records"][0]
    assert [version["run"] for version in key["versions"]] == [NEW, OLD]
    waits = (await visitor.get(f"/api/runs/{NEW}/keys/{digest(DEFERRED).hex()}")).json()
    assert (waits["page"], waits["deferred"]["attempts"], len(waits["deferred"]["history"])) == (None, 2, 2)


async def test_all_who_ask_share_one_count_of_the_reasons(world: World, redis_url: str) -> None:
    now = 0.0
    stores = Stores(lambda: Addresses(redis_url, world.database))
    view = KeysView(stores, lambda: now)
    first = await view.reasons(NEW)
    async with open_catalogue(world.database) as catalogue:
        await catalogue.connection.execute(f"DELETE FROM {world.run.pages} WHERE reason LIKE 'dns:%'")
    now = RECOUNT_SECONDS - 1
    assert await view.reasons(NEW) == {**first, "age": now}
    now = RECOUNT_SECONDS
    second = await view.reasons(NEW)
    assert (second["age"], len(second["reasons"])) == (0, len(first["reasons"]) - 1)
    assert (await view.reasons(OLD))["reasons"] != second["reasons"]
    await stores.close()


async def test_an_action_has_the_reasons_counted_anew(visitor: httpx.AsyncClient) -> None:
    async def reasons() -> set[str]:
        return {one["reason"] for one in (await visitor.get(f"/api/runs/{NEW}/reasons")).json()["reasons"]}

    before = await reasons()
    body = {"run": NEW, "outcome": "failed", "reason": "status 503"}
    assert (await visitor.post("/api/actions/retry", json=body, headers=ALLOWED)).status_code == 200
    assert before - await reasons() == {"status 503"}


async def test_what_changed_between_two_runs(world: World, visitor: httpx.AsyncClient) -> None:
    refused = await visitor.get("/api/diff", params={"first": OLD, "second": NEW})
    assert (refused.status_code, "is not complete" in refused.json()["error"]) == (404, True)
    found = (await visitor.get("/api/diff", params={"first": OLD, "second": WAITING})).json()
    assert found["keys"]["added"] + found["keys"]["failed"] > 0
    names = await visitor.get("/api/diff/keys", params={"first": OLD, "second": WAITING, "change": "failed"})
    assert len(names.json()) == found["keys"]["failed"]
    of_table = (await visitor.get("/api/diff", params={"first": OLD, "second": WAITING, "table": "titles"})).json()
    assert of_table["keys"]["changed"] > 0
