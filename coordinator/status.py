"""Snapshots of a run, for `status`, the progress bar and `audit`. They change nothing."""

from __future__ import annotations

from dataclasses import dataclass

from redis.asyncio import Redis

from coordinator.limits.upstream_health import UpstreamHealth, read_upstream_health
from coordinator.model import Outcome, RunCounts, RunState
from coordinator.queue.registry import RunRecord
from coordinator.redis.connection import as_text, translate_redis_errors
from coordinator.redis.keys import RunKeys


@dataclass(frozen=True, slots=True)
class RunSnapshot:
    """A run at one moment.

    `workers` is the number of living workers, `leader` the id of the coordinator that leads. `waits` are the services
    that workers wait for. `upstreams` are those with a pause, an open breaker, an override, or a rate found by "auto".
    """

    name: str
    state: RunState
    counts: RunCounts
    workers: int
    leader: str | None
    waits: tuple[str, ...] = ()
    upstreams: tuple[UpstreamHealth, ...] = ()

    @property
    def pauses(self) -> dict[str, float]:
        """{upstream: seconds left of its pause}."""
        return {health.upstream: health.paused for health in self.upstreams if health.paused > 0}


async def read_counts(client: Redis, record: RunRecord) -> RunCounts:
    """The counts of a run. `total` is the estimate for the source until it is exhausted. Raises RedisUnavailable."""
    keys = RunKeys(record.name)
    with translate_redis_errors():
        fields = await client.hgetall(keys.state)
        deferred = await client.zcard(keys.deferred_due)
    state = {as_text(name): as_text(value) for name, value in fields.items()}
    exhausted = state.get("exhausted") == "1"
    published = int(state.get("published", 0))
    # Each deferral was counted as published once more. The field `deferred` counts deferrals; the set has those of now.
    planned = published - int(state.get("deferred", 0)) + int(state.get("skipped", 0))
    return RunCounts(
        total=planned if exhausted else record.total,
        exhausted=exhausted,
        published=published,
        resolved=int(state.get("resolved", 0)),
        outcomes={outcome: int(state.get(outcome.value, 0)) for outcome in Outcome},
        requests=int(state.get("requests", 0)),
        received=int(state.get("received", 0)),
        deferred=deferred,
    )


async def read_snapshot(client: Redis, record: RunRecord) -> RunSnapshot:
    """The snapshot of a run. Raises RedisUnavailable."""
    keys = RunKeys(record.name)
    counts = await read_counts(client, record)
    with translate_redis_errors():
        seconds, micros = await client.time()
        now_ms = seconds * 1000 + micros // 1000
        workers = await client.zrangebyscore(keys.workers, now_ms, "+inf")
        living = {worker.decode() for worker in workers if isinstance(worker, bytes)}
        causes = await client.hgetall(keys.waits)
        leader = await client.get(keys.leader)
        state = await client.hget(keys.state, "state")
    return RunSnapshot(
        name=record.name,
        state=RunState(as_text(state or "running")),
        counts=counts,
        workers=len(living),
        leader=as_text(leader) if leader else None,
        waits=tuple(sorted({as_text(cause) for worker, cause in causes.items() if as_text(worker) in living})),
        upstreams=await read_upstream_health(client, keys),
    )
