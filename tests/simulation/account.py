"""The tests' own account of leases, leadership, epoch and state: from it follows what each script must answer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from coordinator.model import ShardId
from coordinator.queue.wire import decode_block
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
}
EPOCH_AT |= {"queue/claim_shard": 1, "run/renew": 2, "queue/claim_block": 2}
WORKER_AT = {"run/renew": 0, "queue/claim_shard": 0, "queue/claim_block": 0, "queue/complete": 1, "queue/split": 1}
PLANNER_AT = {"queue/publish": 1, "queue/requeue_due": 1, "run/replan": 1}
LEADER_LEASE = 10_000
# After these the counts of the run must hold.
COUNTED = (
    "queue/publish",
    "queue/requeue_due",
    "queue/complete",
    "queue/split",
    "run/check_resolved",
    "run/replan",
    "run/done_add",
)


class Account:
    """What Redis must know, if its scripts kept the protocol so far."""

    def __init__(self, truth: Truth) -> None:
        self._truth = truth
        self.leases: dict[str, int] = {}
        self.leader: str | None = None
        self.leader_until = 0
        self.epoch: str | None = None
        self.state: str | None = None
        self.vanished = 0
        self._delivered: dict[tuple[int, bytes], tuple[str | None, int]] = {}
        self._completed: dict[str | None, int] = {}

    def found(self, epoch: str | None, state: str | None) -> None:
        """This run is there now, with this state."""
        if epoch is None:
            self.leader, self.vanished = None, 0
        if epoch != self.epoch or state == "complete":
            self.leases.clear()
        self.epoch, self.state = epoch, state

    def refusal(self, name: str, arguments: Sequence[Any], worker: str | None) -> tuple[str, ...]:
        """The words with which the script must refuse this call; none when it must not."""
        if name in EPOCH_AT and arguments[EPOCH_AT[name]] != self.epoch:
            return ("epoch",)
        if name in PLANNER_AT and arguments[PLANNER_AT[name]] != self.leader:
            return ("deposed",)
        if worker is None or (name == "run/renew" and (arguments[3] == "join" or self.state == "complete")):
            return ()
        if self.leases.get(worker, 0) <= self._truth.now:
            return ("none",) if name == "queue/claim_shard" and self.state == "complete" else ("lost",)
        return ()

    def repeats(self, name: str, arguments: Sequence[Any]) -> bool:
        """Whether Redis carried this completion out before: then it must change nothing (see Streams.complete)."""
        return name == "queue/complete" and self._completed.get(arguments[1]) == arguments[2]

    def enter(self, name: str, arguments: Sequence[Any], worker: str | None, answer: Any, word: str) -> None:
        truth = self._truth
        if name == "run/renew" and self.state != "complete":
            self.leases[str(worker)] = truth.now + int(arguments[1])
        elif name == "run/release":
            if self.leases.pop(str(arguments[0]), truth.now + 1) <= truth.now:
                truth.unclean += 1  # too late to leave: its blocks were taken as a dead worker's
        elif name == "run/election":
            if answer:
                self.leader, self.leader_until = str(arguments[0]), truth.now + LEADER_LEASE
            elif arguments[2] == "leave" and self.leader == arguments[0]:
                self.leader = None
        elif name == "queue/claim_block" and word == "block":
            self._claimed((arguments[1], answer[1]), (worker, arguments[3]), answer[3])
        elif name == "queue/complete":
            self._completed[worker] = arguments[2]
        elif name == "run/check_resolved":
            self.state = word
        elif name == "run/replan" and answer:
            self.vanished = 0
            truth.plans += 1
            time.sleep(0.002)  # entry ids are ms of the real clock, which must have moved when a stream begins anew

    def _claimed(self, entry: tuple[int, bytes], claim: tuple[str | None, int], payload: bytes) -> None:
        """A claim that is repeated brings the same block; any other one takes it from whoever had it."""
        if self._delivered.setdefault(entry, claim) != claim:
            self._truth.back.update(decode_block(ShardId(entry[0]), payload).keys)
        self._delivered[entry] = claim
