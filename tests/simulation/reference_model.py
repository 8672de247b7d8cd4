"""What Redis must know of leases, leader, epoch and state; from that follows what each script must return."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from coordinator.model import ShardId
from coordinator.queue.wire import decode_block
from coordinator.redis.connection import as_text
from tests.simulation.truth import Truth

# Where a script's arguments name the epoch and the worker.
EPOCH_AT = {
    "queue/publish": 0,
    "queue/requeue_due": 0,
    "queue/complete": 0,
    "queue/split": 0,
    "run/check_resolved": 0,
    "run/replan": 0,
    "run/done_add": 0,
    "follow/publish_found": 0,
    "follow/publish_frontier": 0,
}
EPOCH_AT |= {"queue/claim_shard": 1, "run/renew": 2, "queue/claim_block": 2}
WORKER_AT = {"run/renew": 0, "queue/claim_shard": 0, "queue/claim_block": 0, "queue/complete": 1, "queue/split": 1}
WORKER_AT["follow/publish_found"] = 1
COORDINATOR_AT = {"queue/publish": 1, "queue/requeue_due": 1, "run/replan": 1, "follow/publish_frontier": 1}
CALLER_AT = WORKER_AT | COORDINATOR_AT
# A worker numbers its calls of these.
REPEATED = ("queue/complete", "follow/publish_found")
ELECTION_LEASE_MS = 10_000
# After these the counts of the run must hold.
COUNTED = (
    "queue/publish",
    "queue/requeue_due",
    "queue/complete",
    "queue/split",
    "run/check_resolved",
    "run/replan",
    "run/done_add",
    "follow/publish_found",
    "follow/publish_frontier",
)


class ReferenceModel:
    """The state that Redis must have, kept in Python from the calls that were made."""

    def __init__(self, truth: Truth) -> None:
        self._truth = truth
        self.leases: dict[str, int] = {}
        self.leader: str | None = None
        self.leader_until = 0
        self.epoch: str | None = None
        self.state: str | None = None
        self.vanished = 0
        self._delivered: dict[tuple[int, bytes], tuple[str | None, int]] = {}
        self._completed: dict[tuple[str, str | None], int] = {}

    def found(self, epoch: str | None, state: str | None) -> None:
        """Redis now has this epoch and state, after a command that is not a script."""
        if epoch is None:
            self.leader, self.vanished = None, 0
        if epoch != self.epoch or state == "complete":
            self.leases.clear()
        self.epoch, self.state = epoch, state

    def refusal(self, name: str, arguments: Sequence[Any], worker: str | None) -> tuple[str, ...]:
        """The statuses with which the script must refuse this call; none when it must not."""
        if name in EPOCH_AT and arguments[EPOCH_AT[name]] != self.epoch:
            return ("epoch",)
        if name in COORDINATOR_AT and arguments[COORDINATOR_AT[name]] != self.leader:
            return ("deposed",)
        if worker is None or (name == "run/renew" and (arguments[3] == "join" or self.state == "complete")):
            return ()
        if self.leases.get(worker, 0) <= self._truth.now:
            return ("none",) if name == "queue/claim_shard" and self.state == "complete" else ("lost",)
        return ()

    def repeats(self, name: str, arguments: Sequence[Any]) -> bool:
        """Whether this completion was carried out before: then it must change nothing (see Streams.complete)."""
        return name in REPEATED and self._completed.get((name, arguments[1])) == arguments[2]

    def enter(self, name: str, arguments: Sequence[Any], worker: str | None, result: Any, status: str) -> None:
        """Follow a call that was carried out."""
        truth = self._truth
        if name == "run/renew" and self.state != "complete":
            self.leases[str(worker)] = truth.now + int(arguments[1])
            self.state = as_text(result[3])
        elif name == "run/release":
            if self.leases.pop(str(arguments[0]), truth.now + 1) <= truth.now:
                truth.unclean_ends += 1  # it left too late: its blocks were taken over as those of a dead worker
        elif name == "run/election":
            if result:
                self.leader, self.leader_until = str(arguments[0]), truth.now + ELECTION_LEASE_MS
            elif arguments[2] == "leave" and self.leader == arguments[0]:
                self.leader = None
        elif name == "queue/claim_block" and status == "block":
            self._claimed((arguments[1], result[1]), (worker, arguments[3]), result[3])
        elif name in REPEATED:
            self._completed[name, worker] = arguments[2]
        elif name == "run/check_resolved":
            self.state = status
        elif name == "run/replan" and result:
            self.vanished = 0
            truth.plans += 1
            time.sleep(0.002)  # entry ids are ms of the real clock; those of the new stream must differ

    def _claimed(self, entry: tuple[int, bytes], claim: tuple[str | None, int], payload: bytes) -> None:
        """A repeated claim returns the same block; any other claim takes it over from the worker that had it."""
        if self._delivered.setdefault(entry, claim) != claim:
            self._truth.redelivered.update(decode_block(ShardId(entry[0]), payload).keys)
        self._delivered[entry] = claim
