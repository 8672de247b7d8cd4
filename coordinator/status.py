"""Snapshots of a run, for `status`, the progress bar and `audit`. They change nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

from redis.asyncio import Redis

from coordinator.errors import RedisDamaged
from coordinator.limits.unreachable import UnreachableUpstream, decode_waits, merged
from coordinator.limits.upstream_health import UpstreamHealth, read_upstream_health
from coordinator.model import NOT_STEERED, Outcome, RunCounts, RunState, Steering
from coordinator.queue.notices import Notices, NullColumn
from coordinator.queue.registry import as_state
from coordinator.queue.streams import WORKER_LEASE_SECONDS
from coordinator.redis.connection import as_number, as_text, translate_redis_errors
from coordinator.redis.keys import RunKeys
from coordinator.stages.constraint import Constraint, LimitedBy, limited_by
from coordinator.stages.figures import NO_FIGURES, WorkerFigures, read_figures
from coordinator.stages.timing import StageTiming, read_timings

# Workers and coordinators of a run that was opened are there after so long, also on a busy machine.
BEGINS_SECONDS = 10


@dataclass(frozen=True, slots=True)
class RunSnapshot:
    """A run at one moment.

    `workers` is the number of living workers, `leader` the id of the coordinator that leads. `waits` are the services
    that workers wait for. `upstreams` are those with a pause, an open breaker, an override, or a rate found by "auto";
    `unreachable` are those that do not respond while keys wait for them, with the most keys first. `null_columns` are
    those of records that turned null. `figures` are what the living workers do, `timings` how long each
    stage took in the whole run, `last_commit` how many seconds ago keys were done. `begins`: a command opens it, or has
    just done so and starts its processes.
    """

    name: str
    state: RunState
    counts: RunCounts
    workers: int
    leader: str | None
    waits: tuple[str, ...] = ()
    upstreams: tuple[UpstreamHealth, ...] = ()
    unreachable: tuple[UnreachableUpstream, ...] = ()
    null_columns: tuple[NullColumn, ...] = ()
    steering: Steering = NOT_STEERED
    figures: WorkerFigures = NO_FIGURES
    timings: Mapping[str, StageTiming] = field(default_factory=dict)
    last_commit: float | None = None
    begins: bool = False

    @property
    def pauses(self) -> dict[str, float]:
        """{upstream: seconds left of its pause}."""
        return {health.upstream: health.paused for health in self.upstreams if health.paused > 0}

    @property
    def shown_state(self) -> str:
        """The state for people: "paused" while it goes on and is paused."""
        return "paused" if self.steering.paused and self.state is RunState.RUNNING else self.state.value

    @property
    def limited_by(self) -> LimitedBy | None:
        """What limits the run now; None while that is unknown, and when the run is over."""
        limited = limited_by(self.state, self.workers, self.counts, self.waits, self.figures.held)
        # Workers ask one that does not respond by single requests: a higher concurrency would not help.
        dead = {LimitedBy(Constraint.CONCURRENCY, one.upstream) for one in self.unreachable}
        return LimitedBy(Constraint.UNREACHABLE, limited.name) if limited is not None and limited in dead else limited

    @property
    def limited_words(self) -> str:
        """The same for people, as "the upstream's rate (example.org)"; empty while it is unknown."""
        limited = self.limited_by
        if limited is None:
            return ""
        busy = next((one.busy_words for one in self.figures.stages if one.name == limited.stage), "")
        return limited.words(busy)

    @property
    def seconds_left(self) -> float | None:
        """How long the rest takes at the rate of the last seconds; None when that is unknown."""
        counts, rate = self.counts, self.figures.rate
        return None if counts.total is None or rate <= 0 else max(0, counts.total - counts.done) / rate


async def read_counts(client: Redis, run: str, total: int | None = None) -> RunCounts:
    """The counts of a run. `total` is the estimate for the source until it is exhausted. Raises RedisUnavailable."""
    keys = RunKeys(run)
    with translate_redis_errors():
        fields = await client.hgetall(keys.state)
        deferred = await client.zcard(keys.deferred_due)
    state = {as_text(name): as_text(value) for name, value in fields.items()}
    exhausted = state.get("exhausted") == "1"
    published = as_number(state.get("published"))
    # Each deferral was counted as published once more. The field `deferred` counts deferrals; the set has those of now.
    planned = published - as_number(state.get("deferred")) + as_number(state.get("skipped"))
    planned += as_number(state.get("pending"))  # found keys that wait in Postgres
    return RunCounts(
        total=planned if exhausted else total,
        exhausted=exhausted,
        published=published,
        resolved=as_number(state.get("resolved")),
        outcomes={outcome: as_number(state.get(outcome.value)) for outcome in Outcome},
        requests=as_number(state.get("requests")),
        received=as_number(state.get("received")),
        deferred=deferred,
        rebuilt=state.get("rebuilt") == "1",
    )


async def read_snapshot(client: Redis, run: str, total: int | None = None) -> RunSnapshot:
    """The snapshot of a run; `total` as in `read_counts`. Raises RedisUnavailable."""
    keys = RunKeys(run)
    counts = await read_counts(client, run, total)
    with translate_redis_errors():
        seconds, micros = await client.time()
        now_ms = seconds * 1000 + micros // 1000
        workers = await client.zrangebyscore(keys.workers, now_ms, "+inf", withscores=True)
        lease_ends: dict[str, float] = {as_text(worker): end_ms for worker, end_ms in cast("list[Any]", workers)}
        encoded_waits = await client.hgetall(keys.waits)
        leader = await client.get(keys.leader)
        state, paused, most, committed_ms, opened = await client.hmget(
            keys.state, "state", "paused", "max_workers", "committed_ms", "opened"
        )
    waits = [
        decode_waits(cast("bytes", packed), WORKER_LEASE_SECONDS - (lease_ends[as_text(worker)] - now_ms) / 1000)
        for worker, packed in encoded_waits.items()
        if as_text(worker) in lease_ends
    ]
    return RunSnapshot(
        name=run,
        state=as_state(state or "running"),
        counts=counts,
        workers=len(lease_ends),
        leader=as_text(leader) if leader else None,
        waits=tuple(sorted({cause for cause, _ in waits if cause})),
        upstreams=await read_upstream_health(client, keys),
        unreachable=merged(one for _, unreachable in waits for one in unreachable),
        null_columns=await Notices(client, keys).turned_null(),
        steering=Steering(paused == b"1", as_number(most) or None),
        figures=await read_figures(client, keys, list(lease_ends)),
        timings=await read_timings(client, keys),
        last_commit=max(0, now_ms - as_number(committed_ms)) / 1000 if committed_ms else None,
        begins=0 <= seconds - as_number(opened) < BEGINS_SECONDS,
    )


@dataclass(frozen=True, slots=True)
class WorkerPresence:
    """A living worker: its id (host, process, random part), of how many shards it has claimed blocks, and its waits."""

    worker: str
    shards: int
    waits_for: str
    unreachable: int

    @property
    def host(self) -> str:
        """The machine on which it runs."""
        return self.worker.rsplit("-", 2)[0]


@dataclass(frozen=True, slots=True)
class QueueDepths:
    """What waits in Redis: blocks that nobody has claimed, deferred keys, and seconds until the first of them is due.

    `frontier` is how many commits of found keys wait in Postgres.
    """

    unclaimed_blocks: int = 0
    deferred: int = 0
    next_due: float | None = None
    frontier: int = 0


async def read_fleet(client: Redis, run: str) -> tuple[tuple[WorkerPresence, ...], QueueDepths]:
    """The living workers of a run, and the depths of its queue. Raises RedisUnavailable, RedisDamaged."""
    keys = RunKeys(run)
    with translate_redis_errors():
        seconds, micros = await client.time()
        now_ms = seconds * 1000 + micros // 1000
        async with client.pipeline(transaction=False) as pipe:
            pipe.zrangebyscore(keys.workers, now_ms, "+inf")
            pipe.hkeys(keys.claims)
            pipe.hgetall(keys.waits)
            pipe.zrange(keys.ready, 0, -1, withscores=True)
            pipe.zcard(keys.deferred_due)
            pipe.zrange(keys.deferred_due, 0, 0, withscores=True)
            pipe.zcard(keys.frontier)
            living, claims, waits, ready, deferred, first_due, frontier = await pipe.execute()
    shards = Counter(as_text(claim).partition(" ")[2] for claim in claims)
    waiting = {as_text(worker): decode_waits(packed, 0.0) for worker, packed in waits.items()}
    workers = []
    for worker in map(as_text, living):
        cause, unreachable = waiting.get(worker, ("", []))
        workers.append(WorkerPresence(worker, shards[worker], cause, len(unreachable)))
    next_due = max(0.0, (first_due[0][1] - now_ms) / 1000) if first_due else None
    blocks = sum(int(blocks) for _, blocks in ready)
    return tuple(sorted(workers, key=lambda one: one.worker)), QueueDepths(blocks, deferred, next_due, frontier)


async def is_in_use(client: Redis, run: str) -> bool:
    """Whether a worker or a coordinator has a lease on this run. Raises RedisUnavailable."""
    with suppress(RedisDamaged):
        snapshot = await read_snapshot(client, run)
        return snapshot.workers > 0 or snapshot.leader is not None
    return False
