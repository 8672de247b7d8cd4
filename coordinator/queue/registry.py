"""The runs in Redis: one is made, found, listed, finished, cancelled, and erased. What a run is, only Postgres says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from redis.asyncio import Redis

from coordinator.errors import RedisDamaged, Unavailable
from coordinator.model import NOT_STEERED, Epoch, Outcome, RunState, Steering
from coordinator.queue.sharding import Layout
from coordinator.redis.connection import as_text, translate_redis_errors
from coordinator.redis.keys import CHANGED_KEPT_SECONDS, FIRST_CURSOR, RUNS, SEEN_AFTER_END_SECONDS, RunKeys

# Redis closes a connection that sends a command with more than 1,048,576 arguments, and does nothing else meanwhile. A
# run of 400 million keys has that number of buckets.
KEYS_PER_UNLINK = 10_000
KEYS_PER_SCAN = 1000
# A straggler may write while its run is erased.
MAX_SCANS = 10


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What every process needs to take part in a run. It is kept in Postgres: Redis only names the run.

    `document` is the job file, with `${NAME}` in the place of secrets, `folder` the absolute path of its folder.
    `fingerprint` and `total` (an estimate, in keys) are those of the source when the run was made. `parser_files` are
    the digests of the parser's files when it was last opened, by name; empty where an older version made it. What made
    the content of its pages has the `content_hash`; from `carried_run`, another run with the same one, pages that have
    not changed are carried over.
    """

    name: str
    run_id: int
    epoch: Epoch
    layout: Layout
    document: Mapping[str, Any]
    folder: str
    fingerprint: str = ""
    total: int | None = None
    parser_files: Mapping[str, str] = field(default_factory=dict)
    content_hash: str | None = None
    carried_run: int | None = None
    steering: Steering = NOT_STEERED


@dataclass(frozen=True, slots=True)
class RunInRedis:
    """What Redis says of a run. `state` is None when it is no state of ours."""

    epoch: str
    state: RunState | None


def as_state(returned: bytes | str) -> RunState:
    """A state that Redis returned. Raises RedisDamaged for one that is not ours."""
    try:
        return RunState(as_text(returned))
    except ValueError:
        raise RedisDamaged(f"Redis calls a run {returned!r:.50}, which is no state of one") from None


class Runs:
    """The list of runs in one Redis. Every method raises RedisUnavailable."""

    def __init__(self, client: Redis) -> None:
        self._client = client

    async def names(self) -> list[str]:
        """The names of all runs, sorted. Another program may have added some."""
        try:
            with translate_redis_errors():
                return sorted(as_text(name) for name in await self._client.smembers(RUNS))
        except RedisDamaged:  # no set: what is there is not ours
            with translate_redis_errors():
                await self._client.unlink(RUNS)
            return []

    async def find(self, name: str) -> RunInRedis | None:
        """The run of that name; None when this Redis does not know it."""
        try:
            with translate_redis_errors():
                epoch, state = await self._client.hmget(RunKeys(name).state, "epoch", "state")
        except RedisDamaged:
            return RunInRedis("", None)
        if epoch is None and state is None:
            return None
        with suppress(ValueError):
            return RunInRedis(as_text(epoch or ""), RunState(as_text(state or "")))
        return RunInRedis(as_text(epoch or ""), None)

    async def has(self, name: str, epoch: str) -> bool:
        """Whether this Redis has the run of that name with this epoch."""
        found = await self.find(name)
        return found is not None and found.epoch == epoch

    async def state(self, name: str) -> RunState | None:
        """The state of a run; None when this Redis does not know it, or has something else there."""
        found = await self.find(name)
        return None if found is None else found.state

    async def make(self, record: RunRecord, *, rebuilt: bool = False) -> None:
        """Write a new run. Everything that an earlier run of that name has in the queue is deleted first.

        `rebuilt` says that it was begun before, so that its counts of requests and bytes are not those of all of it.
        """
        keys, layout = RunKeys(record.name), record.layout
        await self.forget(record.name)
        await self._unlink(chain(keys.all(layout.shards, layout.buckets), _known(record)))
        with translate_redis_errors():
            seconds, _ = await self._client.time()
            async with self._client.pipeline(transaction=True) as pipe:
                pipe.hset(
                    keys.state,
                    mapping={
                        "opened": seconds,
                        "epoch": record.epoch,
                        "state": RunState.RUNNING.value,
                        "cursor": FIRST_CURSOR,
                        "exhausted": "0",
                        **({"rebuilt": "1"} if rebuilt else {}),
                        **(_steering_fields(record.steering) if record.steering != NOT_STEERED else {}),
                    },
                )
                pipe.sadd(RUNS, record.name)
                await pipe.execute()

    async def go_on(self, name: str) -> None:
        """Put the name of a run that goes on back into the list of runs, if it is not there."""
        await self.names()  # so that the list is a set
        with translate_redis_errors():
            await self._client.sadd(RUNS, name)
        await self.mark_opened(name)

    async def mark_opened(self, name: str) -> None:
        """Let others see that a command opens the run now, if this Redis responds and knows it; it raises nothing."""
        with suppress(Unavailable, RedisDamaged):
            if await self.find(name) is not None:
                with translate_redis_errors():
                    seconds, _ = await self._client.time()
                    await self._client.hset(RunKeys(name).state, "opened", seconds)

    async def forget(self, name: str) -> None:
        """Delete whatever this Redis has of a run, whoever wrote it, but its history and its upstreams' limits."""
        keys = RunKeys(name)
        with translate_redis_errors():
            if not await self._client.exists(keys.state):
                return
        await self._delete(keys, but=keys.lasting_prefixes)

    async def erase(self, name: str) -> None:
        """Delete whatever this Redis has of a run on which nobody works, and last its name in the list of runs."""
        for _ in range(MAX_SCANS):
            if not await self._delete(RunKeys(name)):
                break
        with translate_redis_errors():
            await self._client.srem(RUNS, name)

    async def cancel(self, name: str) -> None:
        """Let everybody who works on the run see that it is cancelled."""
        if await self.find(name) is not None:
            with suppress(RedisDamaged), translate_redis_errors():
                await self._client.hset(RunKeys(name).state, "state", RunState.CANCELLED.value)

    async def steer(self, name: str, steering: Steering) -> None:
        """Let everybody who works on the run see how it is steered; nothing when this Redis does not know it."""
        if await self.find(name) is not None:
            with translate_redis_errors():
                keys = RunKeys(name)
                await self._client.hset(keys.state, mapping=_steering_fields(steering))
                await self._client.xadd(keys.changed, {"steering": ""}, maxlen=1, approximate=False)
                await self._client.expire(keys.changed, CHANGED_KEPT_SECONDS)

    async def finish(self, record: RunRecord, counts: Mapping[Outcome, int]) -> None:
        """Mark a run complete with the final counts from Postgres, and delete all that only an unfinished run needs.

        Its state stays for an hour, so that others who work on it can see it. A run that was made anew meanwhile stays
        as it is.
        """
        found = await self.find(record.name)
        if found is None or found.epoch != record.epoch:
            return
        keys, layout = RunKeys(record.name), record.layout
        await self._unlink(chain(keys.done_buckets(range(layout.buckets)), _known(record)))
        with translate_redis_errors():
            async with self._client.pipeline(transaction=True) as pipe:
                for outcome in Outcome:
                    pipe.hset(keys.state, outcome.value, counts.get(outcome, 0))
                pipe.hset(keys.state, "state", RunState.COMPLETE.value)
                pipe.unlink(*keys.queue(layout.shards))
                for key in keys.last_seen:
                    pipe.expire(key, SEEN_AFTER_END_SECONDS)
                pipe.srem(RUNS, record.name)
                await pipe.execute()

    async def _delete(self, keys: RunKeys, but: tuple[str, ...] = ()) -> int:
        """Delete the run's keys, except those that begin so; returns how many there were."""
        cursor = deleted = 0
        with translate_redis_errors():
            while True:
                # A name has none of the characters that a pattern gives a meaning to.
                cursor, found = await self._client.scan(cursor, match=f"{keys.prefix}*", count=KEYS_PER_SCAN)
                if rest := [key for key in found if not as_text(key).startswith(but)]:
                    deleted += await self._client.unlink(*rest)
                if not cursor:
                    return deleted

    async def _unlink(self, keys: Iterable[str]) -> None:
        rest = iter(keys)
        with translate_redis_errors():
            while part := list(islice(rest, KEYS_PER_UNLINK)):
                await self._client.unlink(*part)


def _steering_fields(steering: Steering) -> dict[Any, Any]:
    return {"paused": int(steering.paused), "max_workers": steering.max_workers or ""}


def _known(record: RunRecord) -> Iterable[str]:
    return RunKeys(record.name).all_known(record.layout.buckets) if record.layout.follows else ()
