"""A read-only snapshot of a run, for `status`, the progress bar and whoever asks."""

from __future__ import annotations

from dataclasses import dataclass

from redis.asyncio import Redis

from coordinator.connection import translated
from coordinator.keys import RunKeys
from coordinator.limiter import Limiter
from coordinator.model import Counts, RunState
from coordinator.runs import RunRecord
from coordinator.streams import outcomes_of


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run at one moment. `pauses` are seconds left by upstream; `leader` is the planner that leads, if any."""

    name: str
    state: RunState
    counts: Counts
    workers: int
    leader: str | None
    pauses: dict[str, float]


async def counts(client: Redis, record: RunRecord) -> Counts:
    """The run's counts as Redis knows them. `total` is the source's estimate until the source is exhausted."""
    with translated():
        state = await client.hgetall(RunKeys(record.name).state)
    exhausted = state.get(b"exhausted") == b"1"
    published, resolved = int(state.get(b"published", 0)), int(state.get(b"resolved", 0))
    outcomes = outcomes_of(state)
    return Counts(
        total=sum(outcomes.values()) + published - resolved if exhausted else record.total,
        exhausted=exhausted,
        published=published,
        resolved=resolved,
        outcomes=outcomes,
        requests=int(state.get(b"requests", 0)),
        received=int(state.get(b"received", 0)),
    )


async def snapshot(client: Redis, record: RunRecord) -> Snapshot:
    """One run, now. Raises RedisUnavailable."""
    keys = RunKeys(record.name)
    current = await counts(client, record)
    with translated():
        seconds, micros = await client.time()
        now = seconds * 1000 + micros // 1000
        workers = await client.zcount(keys.workers, now, "+inf")
        leader = await client.get(keys.leader)
        state = await client.hget(keys.state, "state")
    return Snapshot(
        name=record.name,
        state=RunState((state or b"running").decode()),
        counts=current,
        workers=workers,
        leader=leader.decode() if leader else None,
        pauses=await Limiter(client, keys).running_pauses(),
    )
