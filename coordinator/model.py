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
class Attempts:
    """How often a key was tried: `failed` tries count against its attempts, `throttled` ones (429) hardly.

    `history` has a line for each try, or for several in a row that ended alike.
    """

    failed: int = 0
    throttled: int = 0
    history: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Tries so far."""
        return self.failed + self.throttled


NO_ATTEMPTS = Attempts()


@dataclass(frozen=True, slots=True)
class Block:
    """Up to 500 keys, sorted by digest; immutable once it has an entry id.

    The planner's blocks are of one shard; those of keys that come back from the delayed set may be of several.
    `refusals` maps an index into `keys` to the reason why that key must not be fetched, `attempts` to its tries so far.
    """

    shard: ShardId
    keys: tuple[str, ...]
    refusals: dict[int, str] = field(default_factory=dict)
    attempts: dict[int, Attempts] = field(default_factory=dict)


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
class RunCounts:
    """A run's progress as Redis knows it: keys by outcome, requests sent and body bytes received.

    `deferred` of the published keys wait to be tried again.
    """

    total: int | None = None
    exhausted: bool = False
    published: int = 0
    resolved: int = 0
    outcomes: dict[Outcome, int] = field(default_factory=dict)
    requests: int = 0
    received: int = 0
    deferred: int = 0

    @property
    def done(self) -> int:
        """Keys that have an outcome."""
        return sum(self.outcomes.values())

    @property
    def queued(self) -> int:
        """Published keys whose block is not finished, and deferred ones."""
        return self.published - self.resolved
