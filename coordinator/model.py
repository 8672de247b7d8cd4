"""The words of the house as types: outcomes, blocks, claims and what a run's counts say."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType

ShardId = NewType("ShardId", int)
WorkerId = NewType("WorkerId", str)
EntryId = NewType("EntryId", str)
Epoch = NewType("Epoch", str)


class Outcome(StrEnum):
    """How a key ended; every published key ends in exactly one."""

    STORED = "stored"
    UNCHANGED = "unchanged"
    GONE = "gone"
    REFUSED = "refused"
    FAILED = "failed"


class RunState(StrEnum):
    """Where a run stands: `resolved` means every key has its outcome and the final counts are being taken."""

    RUNNING = "running"
    RESOLVED = "resolved"
    COMPLETE = "complete"


@dataclass(frozen=True, slots=True)
class Block:
    """Up to 500 keys of one shard, sorted by digest; immutable once it has an entry id.

    `refusals` maps an index into `keys` to the reason why that key must not be fetched.
    """

    shard: ShardId
    keys: tuple[str, ...]
    refusals: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Claim:
    """One delivery of a block to one worker."""

    shard: ShardId
    entry: EntryId
    deliveries: int
    block: Block


@dataclass(frozen=True, slots=True)
class Presence:
    """A worker's place in the fleet at its last heartbeat: `rank` of `size` living workers, and the run's state.

    `moves` counts what changed the queue; it only ever grows, unless Redis was rolled back. `turn` grows by one every
    10 seconds of Redis TIME: ranks rotate with it, so that nobody is last for ever.
    """

    rank: int
    size: int
    state: RunState
    moves: int = 0
    turn: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Counts:
    """A run's progress as Redis knows it: keys by outcome, requests sent and body bytes received."""

    total: int | None = None
    exhausted: bool = False
    published: int = 0
    resolved: int = 0
    outcomes: dict[Outcome, int] = field(default_factory=dict)
    requests: int = 0
    received: int = 0

    @property
    def done(self) -> int:
        """Keys that have an outcome."""
        return sum(self.outcomes.values())

    @property
    def queued(self) -> int:
        """Published keys whose block is not finished."""
        return self.published - self.resolved
