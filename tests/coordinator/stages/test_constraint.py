from __future__ import annotations

import pytest

from coordinator.model import Outcome, RunCounts, RunState
from coordinator.stages.constraint import Constraint, Held, LimitedBy, limited_by

MORE = RunCounts(total=100, outcomes={Outcome.STORED: 10})
AT_ITS_END = RunCounts(total=100, exhausted=True, outcomes={Outcome.STORED: 10})
RATE = Held(Constraint.RATE, "example.org", 0.6)


@pytest.mark.parametrize(
    ("counts", "held", "limited"),
    [
        (MORE, [], None),
        (MORE, [RATE], LimitedBy(Constraint.RATE, "example.org")),
        (MORE, [RATE, Held(Constraint.FETCH, "", 0.7)], LimitedBy(Constraint.FETCH)),
        (
            MORE,
            [RATE, Held(Constraint.RATE, "other.example", 0.2), Held(Constraint.FETCH, "", 0.7)],
            LimitedBy(Constraint.RATE, "example.org"),
        ),
        (MORE, [Held(Constraint.TRANSFORM, "features", 0.5)], LimitedBy(Constraint.TRANSFORM, "features")),
        (MORE, [RATE, Held(Constraint.KEYS, "", 0.9)], LimitedBy(Constraint.SOURCE)),
        (AT_ITS_END, [RATE, Held(Constraint.KEYS, "", 90.0)], LimitedBy(Constraint.RATE, "example.org")),
        (AT_ITS_END, [RATE._replace(weight=0.05), Held(Constraint.KEYS, "", 0.9)], LimitedBy(Constraint.KEYS)),
        (
            RunCounts(exhausted=True, deferred=7),
            [Held(Constraint.KEYS, "", 0.9)],
            LimitedBy(Constraint.KEYS, "7 keys are deferred"),
        ),
    ],
)
def test_what_holds_up_the_workers_the_most_limits_the_run(
    counts: RunCounts, held: list[Held], limited: LimitedBy | None
) -> None:
    assert limited_by(RunState.RUNNING, 2, counts, (), held) == limited


def test_who_is_away_comes_before_what_workers_say_and_nothing_limits_a_run_that_is_over() -> None:
    assert limited_by(RunState.RUNNING, 0, MORE, (), [RATE]) == LimitedBy(Constraint.WORKERS)
    away = LimitedBy(Constraint.SERVICE, "Postgres: the disk is full")
    assert limited_by(RunState.RUNNING, 1, MORE, ("Postgres: the disk is full",), [RATE]) == away
    assert limited_by(RunState.COMPLETE, 0, MORE, (), []) is None
    assert limited_by(RunState.RESOLVED, 0, MORE, (), []) is None, "its workers have left, because all is done"


@pytest.mark.parametrize(
    ("limited", "busy", "words"),
    [
        (LimitedBy(Constraint.RATE, "example.org"), "", "the upstream's rate (example.org)"),
        (LimitedBy(Constraint.CONCURRENCY, "a:80"), "", "upstream concurrency (a:80)"),
        (LimitedBy(Constraint.FETCH), "64 of 64 busy", "fetch (64 of 64 busy)"),
        (LimitedBy(Constraint.TRANSFORM, "features"), "2 of 2 busy", "transform features (2 of 2 busy)"),
        (LimitedBy(Constraint.POSTGRES), "", "Postgres"),
        (LimitedBy(Constraint.KEYS), "", "nothing to do"),
    ],
)
def test_what_limits_a_run_is_said_in_words(limited: LimitedBy, busy: str, words: str) -> None:
    assert limited.words(busy) == words


def test_every_constraint_has_words() -> None:
    assert all(LimitedBy(constraint, "x").words() for constraint in Constraint)
