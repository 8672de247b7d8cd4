"""`/metrics`, `/healthz` and `/readyz`: how both services and all unfinished runs stand, as docs/metrics.md says.

Nothing is kept but what was read last, for a second: ten who scrape cost no more than one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from math import inf
from time import monotonic
from typing import Any, Protocol

from redis.asyncio import Redis

from coordinator.errors import PostgresRefused, RedisDamaged, RedisRefused, ShardcrawlError, UsageError
from coordinator.limits.activity import OTHER_UPSTREAMS, UpstreamRequests, read_requests
from coordinator.limits.overrides import limit_now
from coordinator.model import NOT_STEERED, Outcome, RunCounts, RunState
from coordinator.queue.registry import Runs
from coordinator.redis.connection import translate_redis_errors
from coordinator.redis.keys import RunKeys
from coordinator.stages.timing import BOUNDS
from coordinator.stages.wanted import wanted_workers
from coordinator.status import RunSnapshot, read_snapshot
from crawler.job.sections.run import RunSettings
from crawler.store.catalogue import Catalogue
from crawler.store.postgres import postgres_errors
from crawler.store.queries import query
from crawler.store.rows.stored_run import StoredRun
from crawler.telemetry.exposition import CONTENT_TYPE, Exposition
from crawler.web.upstreams_view import matcher_of

LOOK_AGAIN_SECONDS = 1.0
# A service that does not respond in this time is away; who scrapes waits for 10 s.
SERVICE_SECONDS = 3.0
# The newest ones, if more are unfinished.
MOST_RUNS = 100
MOST_UPSTREAMS = 1000
PATHS = ("/metrics", "/healthz", "/readyz")


@dataclass(frozen=True, slots=True)
class RunLook:
    """An unfinished run. `snapshot` is None when Redis does not have it, `stored` while Postgres is away."""

    name: str
    snapshot: RunSnapshot | None
    requests: Mapping[str, UpstreamRequests] = field(default_factory=dict)
    stored: StoredRun | None = None


@dataclass(frozen=True, slots=True)
class FleetLook:
    """Whether both services respond, the memory of Redis and its bound in bytes, and all unfinished runs."""

    redis: bool
    postgres: bool
    memory: int | None = None
    most_memory: int | None = None
    runs: Sequence[RunLook] = ()


def render(fleet: FleetLook) -> bytes:
    """Pure: the text of `/metrics`."""
    text = Exposition()
    text.add("shardcrawl_service_up", int(fleet.redis), service="redis")
    text.add("shardcrawl_service_up", int(fleet.postgres), service="postgres")
    text.add("shardcrawl_redis_memory_bytes", fleet.memory)
    text.add("shardcrawl_redis_memory_most_bytes", fleet.most_memory)
    for run in fleet.runs:
        steering = run.stored.steering if run.stored is not None else NOT_STEERED
        snapshot = run.snapshot or RunSnapshot(run.name, RunState.RUNNING, RunCounts(), 0, None, steering=steering)
        _add_presence(text, snapshot)
        if run.snapshot is not None:
            _add_run(text, run, snapshot)
            _add_upstreams(text, run, snapshot)
            _add_stages(text, snapshot)
    return text.render()


def _add_presence(text: Exposition, snapshot: RunSnapshot) -> None:
    run = snapshot.name
    text.add("shardcrawl_run_state", 1, run=run, state=snapshot.shown_state)
    text.add("shardcrawl_workers", snapshot.workers, run=run)
    text.add("shardcrawl_coordinator_leads", int(snapshot.leader is not None), run=run)


def _add_run(text: Exposition, one: RunLook, snapshot: RunSnapshot) -> None:
    run, counts, limited = snapshot.name, snapshot.counts, snapshot.limited_by
    for outcome in Outcome:
        text.add("shardcrawl_keys_total", counts.outcomes.get(outcome, 0), run=run, outcome=outcome.value)
    text.add("shardcrawl_keys_expected", counts.total, run=run)
    text.add("shardcrawl_keys_queued", counts.waiting, run=run)
    if one.stored is not None:
        given = one.stored.document.get("run") or {}
        text.add("shardcrawl_keys_queued_most", given.get("high_water", RunSettings().high_water), run=run)
    text.add("shardcrawl_keys_deferred", counts.deferred, run=run)
    text.add("shardcrawl_source_read", int(counts.exhausted), run=run)
    text.add("shardcrawl_requests_total", counts.requests, run=run)
    text.add("shardcrawl_received_bytes_total", counts.received, run=run)
    text.add("shardcrawl_last_commit_seconds", snapshot.last_commit, run=run)
    paused = snapshot.steering.paused
    wanted = wanted_workers(counts, snapshot.workers, snapshot.figures, limited, paused=paused)
    text.add("shardcrawl_wanted_workers", wanted, run=run)
    waits = any(cause.startswith("Postgres") for cause in snapshot.waits)
    text.add("shardcrawl_waits_for_postgres", int(waits), run=run)
    if limited is not None:
        text.add("shardcrawl_limited_by", 1, run=run, constraint=limited.constraint.value)


def _add_upstreams(text: Exposition, one: RunLook, snapshot: RunSnapshot) -> None:
    run = snapshot.name
    for upstream, sent in one.requests.items():
        for result in ("throttled", "failed", "accepted"):
            value: int = getattr(sent, result)
            text.add("shardcrawl_upstream_requests_total", value, run=run, upstream=upstream, result=result)
    for upstream, rate in _rates(one, snapshot):
        text.add("shardcrawl_upstream_rate_limit", rate, run=run, upstream=upstream)
    stopped = [health for health in snapshot.upstreams if health.stops_requests]
    label = _labels(one.requests, [*(one.upstream for one in stopped), *(one.upstream for one in snapshot.unreachable)])
    paused: dict[str, float] = {}
    waiting: dict[str, int] = {}
    for health in stopped:
        if health.paused > 0:
            paused[label[health.upstream]] = max(health.paused, paused.get(label[health.upstream], 0.0))
    for dead in snapshot.unreachable:
        waiting[label[dead.upstream]] = waiting.get(label[dead.upstream], 0) + dead.keys
    for upstream, seconds in paused.items():
        text.add("shardcrawl_upstream_paused_seconds", seconds, run=run, upstream=upstream)
    for upstream in sorted({label[health.upstream] for health in stopped if health.breaker != "closed"}):
        text.add("shardcrawl_upstream_breaker_open", 1, run=run, upstream=upstream)
    for upstream, keys in waiting.items():
        text.add("shardcrawl_upstream_keys_waiting", keys, run=run, upstream=upstream)


def _rates(one: RunLook, snapshot: RunSnapshot) -> Iterable[tuple[str, float | None]]:
    """The rate of each upstream that has series of its own."""
    if one.stored is None:
        return
    with suppress(UsageError):  # a later version knows other limits
        matcher = matcher_of(one.stored)
        overrides = {health.upstream: health.override for health in snapshot.upstreams if health.override is not None}
        found = {health.upstream: health.found_rate for health in snapshot.upstreams}
        for upstream in one.requests.keys() - {OTHER_UPSTREAMS}:
            limit = limit_now(upstream, overrides, matcher)
            yield upstream, found.get(upstream) if limit.auto else limit.rate


def _labels(counted: Iterable[str], upstreams: Iterable[str]) -> Mapping[str, str]:
    """{upstream: the label of its series}: its own as long as there are not too many."""
    own = set(counted)
    labels = {}
    for upstream in upstreams:
        if upstream not in own and len(own) >= MOST_UPSTREAMS:
            labels[upstream] = OTHER_UPSTREAMS
        else:
            own.add(upstream)
            labels[upstream] = upstream
    return labels


def _add_stages(text: Exposition, snapshot: RunSnapshot) -> None:
    run = snapshot.name
    for stage, timing in snapshot.timings.items():
        text.add_histogram("shardcrawl_stage_seconds", BOUNDS, timing.counts, timing.seconds, run=run, stage=stage)
    for one in snapshot.figures.stages:
        text.add("shardcrawl_stage_busy", one.busy, run=run, stage=one.name)
        text.add("shardcrawl_stage_size", one.size, run=run, stage=one.name)
        text.add("shardcrawl_stage_waiting", one.waiting, run=run, stage=one.name)


class BothServices(Protocol):
    """Where the numbers are read: both raise Unavailable."""

    @property
    def client(self) -> Redis:
        """A client of Redis."""

    def catalogue(self) -> AbstractAsyncContextManager[Catalogue]:
        """The runs in Postgres."""


async def look(services: BothServices) -> FleetLook:
    """Read how everything stands; what cannot be read is away."""
    stored: Sequence[StoredRun] | None = None
    postgres = redis = True
    try:
        async with asyncio.timeout(SERVICE_SECONDS), services.catalogue() as catalogue:
            with postgres_errors():
                rows = await catalogue.connection.fetch(
                    query("unfinished-runs", columns=query("run-columns")), MOST_RUNS
                )
            stored = [StoredRun.from_row(row) for row in rows]
    except PostgresRefused:
        pass  # it responds
    except (ShardcrawlError, TimeoutError):
        postgres = False
    try:
        async with asyncio.timeout(SERVICE_SECONDS):
            return await _look_at_redis(services.client, stored, postgres)
    except (ShardcrawlError, TimeoutError):
        redis = False
    return FleetLook(redis, postgres)


async def _look_at_redis(client: Redis, stored: Sequence[StoredRun] | None, postgres: bool) -> FleetLook:
    memory: Mapping[str, Any] = {}
    with suppress(RedisRefused), translate_redis_errors():  # its user may not call INFO
        memory = await client.info("memory")
    by_name = {run.name: run for run in stored or ()}
    names = (await Runs(client).names())[:MOST_RUNS] if stored is None else by_name
    looks = [await _look_at_run(client, name, by_name.get(name)) for name in names]
    runs = [one for one in looks if one.snapshot is None or not one.snapshot.state.is_over]
    return FleetLook(True, postgres, memory.get("used_memory"), memory.get("maxmemory") or None, runs)


async def _look_at_run(client: Redis, name: str, stored: StoredRun | None) -> RunLook:
    """A run that Redis lost, or has with another epoch, is there without a snapshot: somebody must open it again."""
    found = await Runs(client).find(name)
    if found is None or found.state is None or (stored is not None and found.epoch != stored.epoch):
        return RunLook(name, None, stored=stored)
    total = stored.record.total if stored is not None and stored.record is not None else None
    try:
        snapshot = await read_snapshot(client, name, total)
        return RunLook(name, snapshot, await read_requests(client, RunKeys(name)), stored)
    except RedisDamaged:
        return RunLook(name, None, stored=stored)


class Metrics:
    """The ASGI application for PATHS. `clock` counts seconds."""

    def __init__(self, services: BothServices, *, clock: Callable[[], float] = monotonic) -> None:
        self._services = services
        self._clock = clock
        self._lock = asyncio.Lock()
        self._read_at = -inf
        self._fleet = FleetLook(False, False)
        self._text = b""

    async def __call__(
        self,
        scope: Mapping[str, Any],
        _receive: Callable[[], Awaitable[Any]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        """Respond to one request."""
        status, kind, body = await self.respond(scope["path"])
        headers = [(b"content-type", kind.encode()), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def respond(self, path: str) -> tuple[int, str, bytes]:
        """Status, content type and body for one of PATHS."""
        if path == "/healthz":
            return 200, "text/plain", b"ok\n"
        async with self._lock:
            if self._clock() - self._read_at >= LOOK_AGAIN_SECONDS:
                self._fleet = await look(self._services)
                self._text, self._read_at = render(self._fleet), self._clock()
        if path == "/metrics":
            return 200, CONTENT_TYPE, self._text
        away = [name for name, up in (("Redis", self._fleet.redis), ("Postgres", self._fleet.postgres)) if not up]
        if away:
            return 503, "text/plain", f"{' and '.join(away)} away\n".encode()
        return 200, "text/plain", b"ok\n"
