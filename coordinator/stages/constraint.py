"""Pure: what limits a run, from what held up its workers over the last seconds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from coordinator.model import RunCounts, RunState


class Constraint(StrEnum):
    """What can limit a run. A worker says all but the last four, which follow from the state of the run."""

    RATE = "rate"
    CONCURRENCY = "concurrency"
    PAUSE = "pause"
    FETCH = "fetch"
    MEMORY = "memory"
    PARSE = "parse"
    TRANSFORM = "transform"
    POSTGRES = "postgres"
    REDIS = "redis"
    PROCESSOR = "processor"
    KEYS = "keys"
    SOURCE = "source"
    SERVICE = "service"
    WORKERS = "workers"
    UNREACHABLE = "unreachable"


# When the source is at its end, what held up one worker for less than this share of its time says nothing.
WORTH_NAMING = 0.1
# The stage whose figures show how busy that is which limits the run.
STAGE_OF = {
    Constraint.FETCH: "fetch",
    Constraint.PARSE: "parse",
    Constraint.POSTGRES: "commit",
    Constraint.REDIS: "complete",
    Constraint.PROCESSOR: "loop",
}
_WORDS = {
    Constraint.RATE: "the upstream's rate",
    Constraint.CONCURRENCY: "upstream concurrency",
    Constraint.PAUSE: "a pause of the upstream",
    Constraint.FETCH: "fetch",
    Constraint.MEMORY: "[run] memory, which large bodies take",
    Constraint.PARSE: "parse",
    Constraint.TRANSFORM: "transform",
    Constraint.POSTGRES: "Postgres",
    Constraint.REDIS: "Redis",
    Constraint.PROCESSOR: "the workers' processors",
    Constraint.KEYS: "nothing to do",
    Constraint.SOURCE: "the source",
    Constraint.SERVICE: "a service that does not respond",
    Constraint.WORKERS: "a lack of workers",
    Constraint.UNREACHABLE: "an upstream that does not respond",
}


class Held(NamedTuple):
    """What held up a worker, and the share of the last seconds (or the sum of several workers' shares).

    `name` is that of the upstream, or of the transform.
    """

    constraint: Constraint
    name: str
    weight: float


@dataclass(frozen=True, slots=True)
class LimitedBy:
    """What limits a run now. `name` is that of the upstream or the transform, or says more about it."""

    constraint: Constraint
    name: str = ""

    @property
    def stage(self) -> str:
        """The name of the stage that is meant; empty when it is none."""
        if self.constraint is Constraint.TRANSFORM:
            return f"transform {self.name}"
        return STAGE_OF.get(self.constraint, "")

    def words(self, busy: str = "") -> str:
        """The same for people; `busy` says how busy the stage is."""
        if self.constraint is Constraint.TRANSFORM:
            what, more = self.stage, busy
        else:
            what, more = _WORDS[self.constraint], self.name or busy
        return f"{what} ({more})" if more else what


def limited_by(
    state: RunState, workers: int, counts: RunCounts, waits: Sequence[str], held: Iterable[Held]
) -> LimitedBy | None:
    """What limits a run now; None while that is unknown, and when every key is done.

    That workers have no keys says something while the source has more; later only when nothing holds up any worker.
    """
    if state is not RunState.RUNNING:
        return None
    if not workers:
        return LimitedBy(Constraint.WORKERS)
    if waits:
        return LimitedBy(Constraint.SERVICE, waits[0])
    by_constraint: dict[Constraint, float] = {}
    by_name: dict[LimitedBy, float] = {}
    for constraint, name, weight in held:
        by_constraint[constraint] = by_constraint.get(constraint, 0.0) + weight
        one = LimitedBy(constraint, name)
        by_name[one] = by_name.get(one, 0.0) + weight
    without = sum(weight for constraint, weight in by_constraint.items() if constraint is not Constraint.KEYS)
    if counts.exhausted and without >= WORTH_NAMING:
        by_constraint.pop(Constraint.KEYS, None)
    if not by_constraint:
        return None
    most = max(by_constraint, key=lambda constraint: by_constraint[constraint])
    if most is Constraint.KEYS:
        return _without_keys(counts)
    return max((one for one in by_name if one.constraint is most), key=lambda one: by_name[one])


def _without_keys(counts: RunCounts) -> LimitedBy:
    if not counts.exhausted:
        return LimitedBy(Constraint.SOURCE)
    return LimitedBy(Constraint.KEYS, f"{counts.deferred:,} keys are deferred" if counts.deferred else "")
