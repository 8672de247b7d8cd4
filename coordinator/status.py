"""A read-only snapshot of a run, for `status`, the progress bar and whoever asks."""

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

    `leader` is the planner that leads, `waits` are what workers wait for; `upstreams` are those of which there is
    something to say.
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
        """Seconds left of each upstream's pause."""
        return {health.upstream: health.paused for health in self.upstreams if health.paused > 0}


async def read_counts(client: Redis, record: RunRecord) -> RunCounts:
    """The run's counts as Redis knows them. `total` is the source's estimate until the source is exhausted."""
    keys = RunKeys(record.name)
    with translate_redis_errors():
        fields = await client.hgetall(keys.state)
        deferred = await client.zcard(keys.deferred_due)
    state = {as_text(name): as_text(value) for name, value in fields.items()}
    exhausted = state.get("exhausted") == "1"
    published = int(state.get("published", 0))
    return RunCounts(
        total=published - int(state.get("deferred", 0)) + int(state.get("skipped", 0)) if exhausted else record.total,
        exhausted=exhausted,
        published=published,
        resolved=int(state.get("resolved", 0)),
        outcomes={outcome: int(state.get(outcome.value, 0)) for outcome in Outcome},
        requests=int(state.get("requests", 0)),
        received=int(state.get("received", 0)),
        deferred=deferred,
    )


async def read_snapshot(client: Redis, record: RunRecord) -> RunSnapshot:
    """One run, now. Raises RedisUnavailable."""
    keys = RunKeys(record.name)
    current = await read_counts(client, record)
    with translate_redis_errors():
        seconds, micros = await client.time()
        now = seconds * 1000 + micros // 1000
        names = await client.zrangebyscore(keys.workers, now, "+inf")
        living = {name.decode() for name in names if isinstance(name, bytes)}
        causes = await client.hgetall(keys.waits)
        leader = await client.get(keys.leader)
        state = await client.hget(keys.state, "state")
    return RunSnapshot(
        name=record.name,
        state=RunState(as_text(state or "running")),
        counts=current,
        workers=len(living),
        leader=as_text(leader) if leader else None,
        waits=tuple(sorted({as_text(cause) for name, cause in causes.items() if as_text(name) in living})),
        upstreams=await read_upstream_health(client, keys),
    )
