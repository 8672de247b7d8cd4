from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from coordinator.stages.constraint import Constraint
from crawler.telemetry.stage_watch import Look, StageWatch, held_by, wanted_seconds
from crawler.telemetry.timings import Timings

RATE = (Constraint.RATE, "example.org")
BUSY: Any = SimpleNamespace(name="features", busy_seconds=0.0, processes=2, busy=2, rows_waiting=3)
AGEING: Any = SimpleNamespace(name="ageing", busy_seconds=0.0, processes=2, busy=1, rows_waiting=3)
IDLE: Any = SimpleNamespace(name="idle", busy_seconds=0.0, processes=2, busy=0, rows_waiting=0)


@pytest.mark.parametrize(
    ("look", "more", "held"),
    [
        (Look(lanes=64), {}, None),
        (Look(lanes=64, fetching=60), {}, (Constraint.FETCH, "")),
        (Look(lanes=64, fetching=30, requests=9, held=RATE), {}, RATE),
        (Look(lanes=64, fetching=30, requests=9), {}, None),
        (Look(lanes=64, fetching=30, feeding="keys"), {}, (Constraint.KEYS, "")),
        (Look(lanes=64, feeding="keys", transforms=(BUSY,)), {}, (Constraint.TRANSFORM, "features")),
        (Look(lanes=64, feeding="keys", transforms=(AGEING,)), {}, (Constraint.KEYS, "")),
        (Look(lanes=64, feeding="Redis"), {}, (Constraint.REDIS, "")),
        (Look(lanes=64, requests=9, parsing=33, parsers=1, held=RATE), {}, (Constraint.PARSE, "")),
        (Look(lanes=64, fetching=64, memory_short=True), {}, (Constraint.MEMORY, "")),
        (Look(lanes=64, batch_full=True), {"flushing": "commit"}, (Constraint.POSTGRES, "")),
        (Look(lanes=64, batch_full=True), {"flushing": "complete"}, (Constraint.REDIS, "")),
        (Look(lanes=64, batch_full=True, transforms=(IDLE, BUSY)), {}, (Constraint.TRANSFORM, "features")),
        (Look(lanes=64, batch_full=True, transforms=(IDLE,)), {}, None),
        (
            Look(lanes=64, batch_full=True, transforms=(BUSY,)),
            {"flushing": "commit"},
            (Constraint.TRANSFORM, "features"),
        ),
        (Look(lanes=64, batch_full=True), {"flushing": "commit", "loop": 0.95}, (Constraint.PROCESSOR, "")),
        (Look(lanes=64, fetching=64), {"loop": 0.95, "parse": 0.6}, (Constraint.PARSE, "")),
        (Look(lanes=64, fetching=64, parsers=1), {"loop": 0.95, "parse": 0.6}, (Constraint.PROCESSOR, "")),
    ],
)
def test_what_holds_a_worker_up(look: Look, more: dict[str, Any], held: tuple[Constraint, str] | None) -> None:
    assert held_by(look, **more) == held


class Watched:
    """A watch on a clock that the test moves, and what it sees."""

    def __init__(self) -> None:
        self.look = Look(lanes=4)
        self.timings = Timings()
        self.now = 100.0
        self.watch = StageWatch(lambda: self.look, self.timings, clock=lambda: self.now)

    def pass_time(self, seconds: float, loop: float = 0.0) -> None:
        """Look for so long, five times a second; the loop wants the processor for this share."""
        for _ in range(round(seconds * 5)):
            self.now += 0.2
            self.watch.sample(self.now * loop)


def test_busy_stages_and_what_holds_up_are_averages_of_the_last_seconds() -> None:
    watched = Watched()
    watched.look = Look(lanes=4, fetching=2, requests=7, held=RATE, pages=30)
    watched.pass_time(30.0)
    stages = {one.name: one for one in watched.watch.figures().stages}
    assert list(stages) == ["wait", "fetch", "parse", "commit", "complete", "loop"]
    assert stages["fetch"].busy == pytest.approx(2.0, rel=0.02)
    assert (stages["fetch"].size, stages["wait"].waiting, stages["commit"].waiting) == (4, 7, 30)
    ((constraint, name, weight),) = watched.watch.figures().held
    assert (constraint, name) == RATE
    assert weight == pytest.approx(1.0, rel=0.02)
    watched.look = Look(lanes=4, fetching=4)
    watched.pass_time(5.0)
    weights = {one.constraint: one.weight for one in watched.watch.figures().held}
    assert weights[Constraint.FETCH] > weights[Constraint.RATE] > 0.2
    watched.pass_time(60.0)
    assert [one.constraint for one in watched.watch.figures().held] == [Constraint.FETCH], "the rest is forgotten"


def test_of_many_upstreams_in_turn_only_the_last_ones_are_kept() -> None:
    watched = Watched()
    for number in range(1_000):
        watched.look = Look(lanes=4, requests=1, held=(Constraint.PAUSE, f"{number}.example"))
        watched.pass_time(0.2)
    assert len(watched.watch.figures().held) < 50


def test_a_stage_in_processes_is_as_busy_as_they_have_worked() -> None:
    watched = Watched()
    stage: Any = SimpleNamespace(name="features", busy_seconds=0.0, processes=2, busy=2, rows_waiting=5)
    watched.look = Look(lanes=4, transforms=(stage,))
    for _ in range(150):
        stage.busy_seconds += 0.3
        watched.timings.parse.seconds += 0.1
        watched.pass_time(0.2, loop=0.5)
    stages = {one.name: one for one in watched.watch.figures().stages}
    assert stages["transform features"].busy == pytest.approx(1.5, rel=0.02)
    assert (stages["transform features"].size, stages["transform features"].waiting) == (2, 5)
    assert (stages["parse"].busy, stages["loop"].busy) == (pytest.approx(0.5, rel=0.02), pytest.approx(0.5, rel=0.02))


def test_the_rate_is_that_of_the_last_seconds_or_of_a_longer_time_with_few_keys() -> None:
    watched = Watched()

    def rate_after(seconds: int, keys: int) -> float:
        for _ in range(seconds):
            watched.now += 1.0
            watched.timings.keys += keys
            rate = watched.watch.figures().rate
        return rate

    assert rate_after(30, 50) == pytest.approx(50.0)
    assert rate_after(12, 100) == pytest.approx(100.0), "within the last ten seconds"
    assert 0 < rate_after(60, 0) < 20
    assert rate_after(130, 0) == 0.0
    assert rate_after(1, 1) > 0, "one key in two minutes is no zero"


def test_the_processor_time_of_this_thread_grows_with_work() -> None:
    before = wanted_seconds()
    while wanted_seconds() - before < 0.01:
        sum(range(1_000))
