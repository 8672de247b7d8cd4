"""`/metrics` and what else supervisors ask `serve`."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from coordinator.errors import PostgresUnavailable, RedisUnavailable
from coordinator.limits.activity import UpstreamRequests
from coordinator.limits.overrides import LimitOverride
from coordinator.limits.unreachable import UnreachableUpstream, encode_waits
from coordinator.limits.upstream_health import UpstreamHealth
from coordinator.model import Epoch, Outcome, RunCounts, RunState, Steering
from coordinator.settings import LimitSettings, Window
from coordinator.stages.constraint import Constraint, Held
from coordinator.stages.figures import StageFigures, WorkerFigures
from coordinator.stages.timing import BOUNDS, StageTiming
from coordinator.status import RunSnapshot
from crawler.store.catalogue import Catalogue
from crawler.store.postgres import PostgresConnection
from crawler.store.rows.stored_run import StoredRun
from crawler.store.tables import RunTables
from crawler.telemetry.exposition import METRICS, Exposition
from crawler.web.metrics import MOST_UPSTREAMS, FleetLook, Metrics, RunLook, look, render
from tests.coordinator.parts import ONE, TWO, Run, record_of, run_in_progress
from tests.crawler.examples import a_document

ROOT = Path(__file__).parents[3]
DOCUMENT = {"run": {"high_water": 5000}, "limits": {"a.example": {"rate": 50}, "auto.example": {"rate": "auto"}}}
STORED = StoredRun(1, "one", DOCUMENT, Epoch("first"), False, {}, datetime.now(UTC), None)
SNAPSHOT = RunSnapshot(
    "one",
    RunState.RUNNING,
    RunCounts(100, True, 90, 20, {Outcome.STORED: 18, Outcome.FAILED: 2}, requests=25, received=2500, deferred=3),
    workers=2,
    leader="c",
    upstreams=(
        UpstreamHealth("a.example", paused=2.5, override=LimitOverride(LimitSettings((Window(5, 1.0),)))),
        UpstreamHealth("auto.example", breaker="half-open", found_rate=12.5),
    ),
    unreachable=(UnreachableUpstream("dead.example", 4, "no such host", 1.0),),
    figures=WorkerFigures(9.0, (StageFigures("fetch", 1.5, 128, 7),), (Held(Constraint.RATE, "a.example", 1.0),)),
    timings={"transform a": StageTiming((0,) * 12 + (2, 1), 150.0)},
    last_commit=1.25,
)
REQUESTS = {"a.example": UpstreamRequests(20, 3, 1), "auto.example": UpstreamRequests(1, 0, 0)}
LOOK = RunLook("one", SNAPSHOT, REQUESTS, STORED)
WHOLE = FleetLook(True, True, 1000, 2000, [LOOK])
EXPECTED = """
shardcrawl_service_up{service="redis"} 1
shardcrawl_service_up{service="postgres"} 1
shardcrawl_redis_memory_bytes 1000
shardcrawl_redis_memory_most_bytes 2000
shardcrawl_run_state{run="one",state="running"} 1
shardcrawl_keys_total{run="one",outcome="stored"} 18
shardcrawl_keys_total{run="one",outcome="unchanged"} 0
shardcrawl_keys_total{run="one",outcome="gone"} 0
shardcrawl_keys_total{run="one",outcome="refused"} 0
shardcrawl_keys_total{run="one",outcome="failed"} 2
shardcrawl_keys_expected{run="one"} 100
shardcrawl_keys_queued{run="one"} 70
shardcrawl_keys_queued_most{run="one"} 5000
shardcrawl_keys_deferred{run="one"} 3
shardcrawl_source_read{run="one"} 1
shardcrawl_requests_total{run="one"} 25
shardcrawl_received_bytes_total{run="one"} 2500
shardcrawl_last_commit_seconds{run="one"} 1.25
shardcrawl_workers{run="one"} 2
shardcrawl_coordinator_leads{run="one"} 1
shardcrawl_wanted_workers{run="one"} 1
shardcrawl_waits_for_postgres{run="one"} 0
shardcrawl_limited_by{run="one",constraint="rate"} 1
shardcrawl_upstream_requests_total{run="one",upstream="a.example",result="throttled"} 3
shardcrawl_upstream_requests_total{run="one",upstream="a.example",result="failed"} 1
shardcrawl_upstream_requests_total{run="one",upstream="a.example",result="accepted"} 16
shardcrawl_upstream_requests_total{run="one",upstream="auto.example",result="throttled"} 0
shardcrawl_upstream_requests_total{run="one",upstream="auto.example",result="failed"} 0
shardcrawl_upstream_requests_total{run="one",upstream="auto.example",result="accepted"} 1
shardcrawl_upstream_rate_limit{run="one",upstream="a.example"} 5.0
shardcrawl_upstream_rate_limit{run="one",upstream="auto.example"} 12.5
shardcrawl_upstream_paused_seconds{run="one",upstream="a.example"} 2.5
shardcrawl_upstream_breaker_open{run="one",upstream="auto.example"} 1
shardcrawl_upstream_keys_waiting{run="one",upstream="dead.example"} 4
shardcrawl_stage_seconds_bucket{run="one",stage="transform a",le="30.0"} 0
shardcrawl_stage_seconds_bucket{run="one",stage="transform a",le="100.0"} 2
shardcrawl_stage_seconds_bucket{run="one",stage="transform a",le="+Inf"} 3
shardcrawl_stage_seconds_sum{run="one",stage="transform a"} 150.0
shardcrawl_stage_seconds_count{run="one",stage="transform a"} 3
shardcrawl_stage_busy{run="one",stage="fetch"} 1.5
shardcrawl_stage_size{run="one",stage="fetch"} 128
shardcrawl_stage_waiting{run="one",stage="fetch"} 7
"""


def samples(fleet: FleetLook) -> list[str]:
    lines = render(fleet).decode().splitlines()
    return [line for line in lines if not line.startswith("#")]


def of_run(change: RunLook, *names: str) -> list[str]:
    """The samples of these metrics, when the fleet has only this run."""
    found = samples(FleetLook(True, True, runs=[change]))
    return [line.removeprefix("shardcrawl_") for line in found if line.partition("{")[0][11:] in names]


def test_what_a_run_has() -> None:
    found = sorted(samples(WHOLE))
    lowest = [line for line in found if re.search('le="(0|1|3|10)\\.', line)]
    assert len(lowest) == len(BOUNDS) - 2
    assert all(line.endswith(" 0") for line in lowest)
    assert sorted(set(found) - set(lowest)) == sorted(EXPECTED.strip().splitlines())


def test_metrics_kinds_and_labels_are_those_of_the_docs() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(shardcrawl_\w+)` \| (\w+) \|(.*?)\|", page, re.MULTILINE)
    assert {name: kind for name, kind, _ in rows} == {name: one.kind for name, one in METRICS.items()}
    text = render(WHOLE).decode()
    for name, kind, labels in rows:
        assert f"# TYPE {name} {kind}\n" in text, name
        sample = next(line for line in text.splitlines() if re.match(rf"{name}(_bucket)?[{{ ]", line))
        used = set(re.findall(r'(\w+)="', sample)) - {"le"}
        assert used == set(re.findall(r"`(\w+)`", labels)), name


def test_each_metric_is_described_once_before_its_samples() -> None:
    text = render(FleetLook(True, True, runs=[LOOK, replace(LOOK, snapshot=replace(SNAPSHOT, name="two"))])).decode()
    for name in METRICS:
        assert text.count(f"# HELP {name} ") == text.count(f"# TYPE {name} ") <= 1
    lines = [line.removesuffix("_bucket") for line in re.findall(r"^(shardcrawl_\w+)", text, re.MULTILINE)]
    named = list(dict.fromkeys(re.sub("_(sum|count)$", "", line) for line in lines))
    assert [name for name in METRICS if name in named] == named


def test_what_others_named_is_escaped() -> None:
    text = Exposition()
    text.add("shardcrawl_workers", 1, run='a"b\\c\nd')
    assert text.render().decode().splitlines()[-1] == r'shardcrawl_workers{run="a\"b\\c\nd"} 1'


def test_a_run_that_redis_lost_has_nobody() -> None:
    assert samples(FleetLook(True, True, runs=[RunLook("one", None)]))[2:] == [
        'shardcrawl_run_state{run="one",state="running"} 1',
        'shardcrawl_workers{run="one"} 0',
        'shardcrawl_coordinator_leads{run="one"} 0',
    ]


def test_without_postgres_what_only_it_knows_is_left_out() -> None:
    change = replace(LOOK, stored=None)
    assert of_run(change, "keys_queued_most", "upstream_rate_limit") == []
    assert len(samples(FleetLook(True, True, runs=[change]))) == len(samples(FleetLook(True, True, runs=[LOOK]))) - 3


@pytest.mark.parametrize(
    ("change", "names", "expected"),
    [
        ({"steering": Steering(paused=True)}, ("run_state", "wanted_workers"), ("paused", 0)),
        ({"state": RunState.RESOLVED, "steering": Steering(paused=True)}, ("run_state",), ("resolved",)),
        ({"waits": ("Postgres does not answer",)}, ("waits_for_postgres", "limited_by"), (1, "service")),
        ({"leader": None, "workers": 0}, ("coordinator_leads", "limited_by"), (0, "workers")),
        ({"counts": RunCounts(), "last_commit": None}, ("keys_expected", "last_commit_seconds"), ()),
    ],
)
def test_what_a_state_changes(change: dict[str, Any], names: tuple[str, ...], expected: tuple[str | int, ...]) -> None:
    found = of_run(replace(LOOK, snapshot=replace(SNAPSHOT, **change)), *names)
    assert len(found) == len(expected)
    for line, value in zip(found, expected, strict=True):
        assert line.endswith(f" {value}" if isinstance(value, int) else f'="{value}"}} 1'), line


def test_more_upstreams_than_have_series_are_one_together() -> None:
    counted = {f"host-{number}": UpstreamRequests(1, 0, 0) for number in range(MOST_UPSTREAMS - 1)}
    stopped = tuple(UpstreamHealth(name, paused=seconds) for name, seconds in (("host-1", 1.0), ("x", 2.0), ("y", 9.0)))
    broken = (*stopped, UpstreamHealth("z", breaker="open", paused=3.0), UpstreamHealth("calm", found_rate=1.0))
    dead = tuple(UnreachableUpstream(name, 4, "no such host", 1.0) for name in ("x", "v", "w"))
    change = RunLook("one", replace(SNAPSHOT, upstreams=broken, unreachable=dead), counted)
    assert of_run(change, "upstream_paused_seconds", "upstream_breaker_open", "upstream_keys_waiting") == [
        'upstream_paused_seconds{run="one",upstream="host-1"} 1.0',
        'upstream_paused_seconds{run="one",upstream="x"} 2.0',
        'upstream_paused_seconds{run="one",upstream="other"} 9.0',
        'upstream_breaker_open{run="one",upstream="other"} 1',
        'upstream_keys_waiting{run="one",upstream="x"} 4',
        'upstream_keys_waiting{run="one",upstream="other"} 8',
    ]


# -- what is read


@dataclass
class Both:
    """Both services; None where one is away. Counts how often they were read."""

    redis: Redis | None
    connection: PostgresConnection | None
    looks: int = 0

    @property
    def client(self) -> Redis:
        if self.redis is None:
            raise RedisUnavailable("Redis does not answer")
        return self.redis

    @asynccontextmanager
    async def catalogue(self) -> AsyncIterator[Catalogue]:
        self.looks += 1
        if self.connection is None:
            raise PostgresUnavailable("Postgres does not answer")
        yield Catalogue(self.connection)


async def stored_as(catalogue: Catalogue, name: str, epoch: str) -> int:
    return await catalogue.make(name, a_document(), Epoch(epoch), [], corpus=name)


@pytest.mark.anyio
async def test_unfinished_runs_of_both_are_there(redis: Redis, connection: PostgresConnection) -> None:
    both = Both(redis, connection)
    fleet = await look(both)
    assert (fleet.redis, fleet.postgres, fleet.runs) == (True, True, []), "there is no schema yet"
    catalogue = Catalogue(connection)
    await catalogue.prepare()
    for name in ("busy", "over", "ending"):
        await run_in_progress(redis, name)
    await Run.create(redis, record_of("other epoch"))
    for name, epoch in (("busy", "first"), ("ending", "first"), ("other epoch", "second"), ("lost", "first")):
        await stored_as(catalogue, name, epoch)
    over = await stored_as(catalogue, "over", "first")
    await catalogue.complete(RunTables(over), Epoch("first"))
    await redis.hset("shardcrawl:{ending}:state", "state", "complete")
    fleet = await look(both)
    assert (fleet.redis, fleet.postgres, (fleet.memory or 0) > 0) == (True, True, True)
    found = {one.name: one for one in fleet.runs}
    assert {name: one.snapshot is not None for name, one in found.items()} == {
        "busy": True,
        "lost": False,
        "other epoch": False,
    }
    assert found["busy"].requests == {"example.org:8080": UpstreamRequests(1, 0, 1)}
    assert b'shardcrawl_stage_seconds_count{run="busy",stage="fetch"} 1\n' in render(fleet)
    alone = await look(Both(redis, None))
    assert {one.name for one in alone.runs} == {"busy", "over", "other epoch"}
    assert all(one.snapshot is not None for one in alone.runs)
    await redis.delete("shardcrawl:{busy}:state")
    await redis.sadd("shardcrawl:{busy}:state", "x")
    assert {one.name: one.snapshot for one in (await look(both)).runs}["busy"] is None


@pytest.mark.anyio
async def test_a_worker_that_died_has_no_series_when_its_lease_has_ended(
    redis: Redis, connection: PostgresConnection
) -> None:
    await Catalogue(connection).prepare()
    await stored_as(Catalogue(connection), "busy", "first")
    run = await run_in_progress(redis, "busy")
    for worker, stage in ((ONE, "fetch"), (TWO, "transform two")):
        figures = WorkerFigures(9.0, (StageFigures(stage, 1.5, 128, 7),)).encode()
        await run.streams.renew(worker, waits=encode_waits(TWO, []) if worker == TWO else b"", figures=figures)

    async def series() -> str:
        return "\n".join(line for line in samples(await look(Both(redis, connection))) if "stage_busy" in line)

    assert (await series()).count("\n") == 1
    await redis.zadd(run.keys.workers, {TWO: (await redis.time())[0] * 1000 - 1})
    assert "transform two" not in await series()
    assert "fetch" in await series()
    assert TWO not in "\n".join(samples(await look(Both(redis, connection))))


@pytest.mark.anyio
async def test_services_that_are_away_and_ten_who_scrape(redis: Redis, connection: PostgresConnection) -> None:
    now = 0.0
    both = Both(redis, connection)
    metrics = Metrics(both, clock=lambda: now)

    async def respond(path: str) -> tuple[int, bytes]:
        status, _, body = await metrics.respond(path)
        return status, body

    assert await respond("/readyz") == (200, b"ok\n")
    for _ in range(9):
        assert b'service_up{service="redis"} 1\n' in (await respond("/metrics"))[1]
    assert both.looks == 1
    both.redis, now = None, 1.0
    status, text = await respond("/metrics")
    assert (status, [line for line in text.decode().splitlines() if line[0] != "#"]) == (
        200,
        ['shardcrawl_service_up{service="redis"} 0', 'shardcrawl_service_up{service="postgres"} 1'],
    )
    assert await respond("/readyz") == (503, b"Redis away\n")
    both.connection, now = None, 2.0
    assert await respond("/readyz") == (503, b"Redis and Postgres away\n")
    assert await respond("/healthz") == (200, b"ok\n")
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> None:
        raise AssertionError("a request has no body")

    await metrics({"type": "http", "path": "/readyz"}, receive, send)
    assert (sent[0]["status"], dict(sent[0]["headers"])[b"content-length"], sent[1]["body"]) == (
        503,
        b"24",
        b"Redis and Postgres away\n",
    )
