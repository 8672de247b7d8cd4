"""The list of runs in Redis: a run is made, found, listed, given a changed job file, and finished."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import orjson
from redis.asyncio import Redis

from coordinator.model import Epoch, Outcome, RunState
from coordinator.queue.sharding import Layout
from coordinator.redis.connection import as_text, translate_redis_errors
from coordinator.redis.keys import FIRST_CURSOR, RUNS, RunKeys

# Redis closes a connection that sends a command with more than 1,048,576 arguments. A run of 400 million keys has that
# number of buckets.
KEYS_PER_UNLINK = 100_000


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What every process needs to take part in a run.

    `document` is the job file, with `${NAME}` in the place of secrets, `folder` the absolute path of its folder.
    `fingerprint` and `total` (an estimate, in keys) are those of the source when the run was made.
    """

    name: str
    run_id: int
    epoch: Epoch
    layout: Layout
    document: Mapping[str, Any]
    folder: str
    fingerprint: str = ""
    total: int | None = None

    def encode(self) -> bytes:
        """The record as JSON."""
        return orjson.dumps(
            {
                "name": self.name,
                "run_id": self.run_id,
                "epoch": self.epoch,
                "shards": self.layout.shards,
                "buckets": self.layout.buckets,
                "document": self.document,
                "folder": self.folder,
                "fingerprint": self.fingerprint,
                "total": self.total,
            }
        )

    @classmethod
    def decode(cls, text: bytes | str) -> RunRecord:
        """The record from JSON."""
        fields = orjson.loads(text)
        layout = Layout(shards=fields.pop("shards"), buckets=fields.pop("buckets"))
        return cls(layout=layout, **fields)


class Runs:
    """The list of runs in one Redis. Every method raises RedisUnavailable."""

    def __init__(self, client: Redis) -> None:
        self._client = client

    async def names(self) -> list[str]:
        """The names of all runs, sorted."""
        with translate_redis_errors():
            return sorted(as_text(name) for name in await self._client.smembers(RUNS))

    async def find(self, name: str) -> RunRecord | None:
        """The run of that name; None when this Redis does not know it."""
        with translate_redis_errors():
            text = await self._client.get(RunKeys(name).spec)
        return None if text is None else RunRecord.decode(text)

    async def state(self, name: str) -> RunState | None:
        """The state of a run; None when this Redis does not know it."""
        with translate_redis_errors():
            state = await self._client.hget(RunKeys(name).state, "state")
        return None if state is None else RunState(as_text(state))

    async def make(self, record: RunRecord) -> None:
        """Write a new run. All keys of an earlier run of that name are deleted first."""
        keys = RunKeys(record.name)
        earlier = await self.find(record.name)
        layout = earlier.layout if earlier else record.layout
        with translate_redis_errors():
            earlier_keys = iter(keys.all(layout.shards, layout.buckets))
            while part := list(islice(earlier_keys, KEYS_PER_UNLINK)):
                await self._client.unlink(*part)
            async with self._client.pipeline(transaction=True) as pipe:
                pipe.hset(
                    keys.state,
                    mapping={
                        "epoch": record.epoch,
                        "state": RunState.RUNNING.value,
                        "cursor": FIRST_CURSOR,
                        "exhausted": "0",
                    },
                )
                pipe.set(keys.spec, record.encode())
                pipe.sadd(RUNS, record.name)
                await pipe.execute()

    async def rewrite(self, record: RunRecord, document: Mapping[str, Any], folder: str) -> RunRecord:
        """Replace the job file of a run that is resumed; returns the changed record."""
        changed = replace(record, document=document, folder=folder)
        with translate_redis_errors():
            await self._client.set(RunKeys(record.name).spec, changed.encode())
        return changed

    async def finish(self, record: RunRecord, counts: Mapping[Outcome, int]) -> None:
        """Mark a run complete with the final counts from Postgres, and delete what only an unfinished run needs."""
        keys = RunKeys(record.name)
        with translate_redis_errors():
            async with self._client.pipeline(transaction=True) as pipe:
                for outcome in Outcome:
                    pipe.hset(keys.state, outcome.value, counts.get(outcome, 0))
                pipe.hset(keys.state, "state", RunState.COMPLETE.value)
                pipe.unlink(*keys.queue(record.layout.shards))
                await pipe.execute()
