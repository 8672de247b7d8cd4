"""The terms of the glossary as types: outcomes, attempts, blocks, claims, and the counts of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, NewType

ShardId = NewType("ShardId", int)
WorkerId = NewType("WorkerId", str)
EntryId = NewType("EntryId", str)
Epoch = NewType("Epoch", str)

# The number of a batch of found keys is a bigint in Postgres.
BATCH_BITS = 62


class Outcome(StrEnum):
    """How a key ended. Every published key gets exactly one outcome."""

    STORED = "stored"
    UNCHANGED = "unchanged"
    GONE = "gone"
    REFUSED = "refused"
    FAILED = "failed"


class RunState(StrEnum):
    """The state of a run. `resolved`: every key has its outcome, and the final counts are being taken.

    `cancelled`: whoever works on it drains, then Redis forgets it.
    """

    RUNNING = "running"
    RESOLVED = "resolved"
    COMPLETE = "complete"
    CANCELLED = "cancelled"

    @property
    def is_over(self) -> bool:
        """Whether nobody is to work on the run any more."""
        return self in (RunState.COMPLETE, RunState.CANCELLED)


@dataclass(frozen=True, slots=True)
class Attempts:
    """The attempts on a key so far: how many `failed`, how many were `throttled` (429 or the like).

    The job's limit of attempts counts the failed ones; throttled ones have a far higher limit of their own. `history`
    has a line for each attempt, or for several in a row with the same result.
    """

    failed: int = 0
    throttled: int = 0
    history: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """All attempts so far."""
        return self.failed + self.throttled


NO_ATTEMPTS = Attempts()


_NOTHING: dict[str, Any] = {}  # a mapping that can be pickled; nobody writes into it


class KeyContext(NamedTuple):
    """What travels with a key: the `fields` that its source carries; and if a page named it, where it was found.

    `kind` says which sections of the job hold for it, and `depth` how many links led to it from a key of the source.
    `origin` is the digest of the page that named it, empty for a key of the source. A page of a list behind the first
    has a `page_no` above 1 and the list's own key in `list_key`; `params` are what it changes in the request of that
    key, and without them the key is the URL to request. `seen` is the digest of the body of the page before it.
    A tuple, because one is made for each key that a page named.
    """

    kind: str = ""
    depth: int = 0
    page_no: int = 1
    origin: bytes = b""
    fields: Mapping[str, str] = _NOTHING
    list_key: str = ""
    params: Mapping[str, Any] = _NOTHING
    seen: bytes = b""


NO_CONTEXT = KeyContext()


class FoundKey(NamedTuple):
    """A key that a page named. `rule` is the number of the `[[follow]]` that bounds how many it may find, -1 for none.

    `refusal` is why it must not be fetched, empty when it may be. A tuple: a page can name thousands.
    """

    digest: bytes
    key: str
    context: KeyContext
    rule: int = -1
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class FoundBatch:
    """Keys of one depth that the pages of one commit named: `size` of them are in Postgres under the number `batch`.

    `keys` are empty when they were committed before, and it is not known whether they were published; then `example` is
    the digest of one of them.
    """

    batch: int
    depth: int
    size: int
    keys: tuple[FoundKey, ...] = ()
    example: bytes = b""

    @property
    def pointer(self) -> str:
        """Its member of the frontier."""
        return f"{self.batch} {self.depth} {self.size}"

    @classmethod
    def parse(cls, pointer: str) -> FoundBatch:
        """The batch of a pointer. Raises ValueError when it is none of ours."""
        batch, depth, size = map(int, pointer.split())
        found = cls(batch, depth, size)
        if found.pointer != pointer or min(batch, depth, size) < 0 or max(batch >> BATCH_BITS, depth >> 31, size >> 31):
            raise ValueError(pointer)
        return found


@dataclass(frozen=True, slots=True)
class Block:
    """Up to 500 keys, sorted by digest. It does not change once it has an entry id.

    All keys of a planner's block are of one shard; a block of deferred or found keys may have keys of several.
    `refusals`, `attempts` and `contexts` map an index into `keys` to the reason why that key must not be fetched, to
    its attempts so far, and to its context.
    """

    shard: ShardId
    keys: tuple[str, ...]
    refusals: dict[int, str] = field(default_factory=dict)
    attempts: dict[int, Attempts] = field(default_factory=dict)
    contexts: dict[int, KeyContext] = field(default_factory=dict)

    def context(self, index: int) -> KeyContext:
        """What travels with the key at this index."""
        return self.contexts.get(index, NO_CONTEXT) if self.contexts else NO_CONTEXT


@dataclass(frozen=True, slots=True)
class Claim:
    """One delivery of a block to one worker."""

    shard: ShardId
    entry: EntryId
    deliveries: int
    block: Block

    @property
    def brings_found(self) -> bool:
        """Whether nobody has had this block before, and all of its keys are of a depth that pages have named."""
        contexts, keys = self.block.contexts, self.block.keys
        return self.deliveries == 1 and len(contexts) == len(keys) and all(one.depth for one in contexts.values())


@dataclass(frozen=True, slots=True)
class Presence:
    """What a heartbeat returns to a worker: its `rank` (from 0) among `size` living workers, and the run's state.

    `moves` counts the changes of the queue: it never goes back unless Redis was rolled back. `turn` grows by one every
    10 seconds of Redis TIME: fair shares rotate with it, so that no worker has the last rank for ever.
    `surplus`: the run has more workers than it may have, and this is one of those that leave.
    """

    rank: int
    size: int
    state: RunState
    moves: int = 0
    turn: int = field(default=0, compare=False)
    surplus: bool = False


@dataclass(frozen=True, slots=True)
class Steering:
    """How a run is steered: whether it is `paused`, and how many workers it may have; None without a bound."""

    paused: bool = False
    max_workers: int | None = None


NOT_STEERED = Steering()


def outcomes_json(outcomes: Mapping[Outcome, int]) -> Mapping[str, int]:
    """Keys by outcome as plain values, with 0 for an outcome that did not occur."""
    return {outcome.value: outcomes.get(outcome, 0) for outcome in Outcome}


@dataclass(frozen=True, slots=True)
class RunCounts:
    """A run's progress as Redis knows it: keys by outcome, requests sent, and `received` bytes of bodies.

    `total` is the number of keys in the source, as far as it is known. `published` counts a deferred key once more;
    `deferred` is the number of keys that are in the deferred set now. When the run was `rebuilt`, requests and bytes
    are counted since then.
    """

    total: int | None = None
    exhausted: bool = False
    published: int = 0
    resolved: int = 0
    outcomes: dict[Outcome, int] = field(default_factory=dict)
    requests: int = 0
    received: int = 0
    deferred: int = 0
    rebuilt: bool = False

    @property
    def done(self) -> int:
        """Keys that have an outcome."""
        return sum(self.outcomes.values())

    @property
    def queued(self) -> int:
        """Keys in blocks that are not finished (some can have their outcome already), and deferred keys."""
        return self.published - self.resolved

    @property
    def waiting(self) -> int:
        """Queued keys that have no outcome yet, so that with `done` they are never more than `total`."""
        return self.queued if self.total is None else max(0, min(self.queued, self.total - self.done))
