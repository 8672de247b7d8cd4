"""How many workers would be of use to a run."""

from __future__ import annotations

import pytest

from coordinator.model import RunCounts
from coordinator.stages.constraint import Constraint, LimitedBy
from coordinator.stages.figures import NO_FIGURES, StageFigures, WorkerFigures
from coordinator.stages.wanted import wanted_workers

BUSY = WorkerFigures(stages=(StageFigures("fetch", 8, 64), StageFigures("parse", 4, 4), StageFigures("commit", 4, 4)))
IDLE = WorkerFigures(stages=(StageFigures("fetch", 1, 64), StageFigures("loop", 0.4, 4), StageFigures("commit", 4, 4)))
MODEL = WorkerFigures(stages=(StageFigures("fetch", 1, 64), StageFigures("transform embed", 7, 10)))
MANY = RunCounts(published=100_000)


@pytest.mark.parametrize(
    ("counts", "workers", "figures", "limit", "paused", "wanted"),
    [
        (MANY, 4, BUSY, Constraint.PARSE, True, 0),
        (RunCounts(), 4, IDLE, Constraint.SOURCE, False, 0),
        (RunCounts(published=70, resolved=20, deferred=50), 4, IDLE, Constraint.KEYS, False, 0),
        (RunCounts(published=71, resolved=20, deferred=50), 4, IDLE, Constraint.KEYS, False, 1),
        (MANY, 0, NO_FIGURES, Constraint.WORKERS, False, 1),
        (MANY, 4, BUSY, Constraint.PARSE, False, 6),
        (MANY, 4, MODEL, Constraint.TRANSFORM, False, 4),
        (MANY, 7, MODEL, Constraint.FETCH, False, 7),
        (RunCounts(published=1001), 4, BUSY, Constraint.PARSE, False, 3),
        (MANY, 4, BUSY, Constraint.RATE, False, 4),
        (MANY, 4, BUSY, Constraint.POSTGRES, False, 4),
        (MANY, 4, IDLE, Constraint.RATE, False, 1),
        (MANY, 20, IDLE, Constraint.PAUSE, False, 3),
        (MANY, 4, BUSY, None, False, 4),
        (MANY, 4, NO_FIGURES, None, False, 4),
        (MANY, 4, WorkerFigures(stages=(StageFigures("commit", 4, 4),)), Constraint.POSTGRES, False, 1),
    ],
)
def test_how_many(
    counts: RunCounts, workers: int, figures: WorkerFigures, limit: Constraint | None, paused: bool, wanted: int
) -> None:
    limited = None if limit is None else LimitedBy(limit)
    assert wanted_workers(counts, workers, figures, limited, paused=paused) == wanted
