"""Pure: how many workers would be of use to a run."""

from __future__ import annotations

from math import ceil

from coordinator.model import RunCounts
from coordinator.stages.constraint import Constraint, LimitedBy
from coordinator.stages.figures import StageFigures, WorkerFigures

# As busy as workers should be: the rest is for what is not even.
TARGET_UTILISATION = 0.7
KEYS_PER_WORKER = 500
# More workers make a run faster that one of these limits.
_HELPED = (Constraint.FETCH, Constraint.PARSE, Constraint.TRANSFORM, Constraint.PROCESSOR)


def wanted_workers(
    counts: RunCounts, workers: int, figures: WorkerFigures, limited: LimitedBy | None, *, paused: bool
) -> int:
    """How many workers would be of use now: 0 when there is nothing that any could do.

    Only where the workers themselves are the limit it is more than there are. While it is unknown how busy they are, it
    is as many as there are.
    """
    if paused or counts.queued <= counts.deferred:
        return 0
    if not workers:
        return 1
    wanted = workers
    if figures.stages:
        busiest = max((one.utilisation for one in figures.stages if _is_of_workers(one)), default=0.0)
        wanted = ceil(round(workers * busiest / TARGET_UTILISATION, 6))
    bound = ceil(counts.queued / KEYS_PER_WORKER)
    if limited is None or limited.constraint not in _HELPED:
        bound = min(bound, workers)
    return max(1, min(wanted, bound))


def _is_of_workers(stage: StageFigures) -> bool:
    return stage.name in ("fetch", "parse", "loop") or stage.name.startswith("transform ")
