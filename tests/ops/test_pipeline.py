"""The benchmark `pipeline`: its contenders at the smallest scale, and what it holds against its promises."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from ops.bench.contenders import Contender, Course
from ops.bench.pipeline import LIMIT, LOOP, OURS, POOL, PROCESSES, QUEUE, measure, promises
from ops.bench.trials import Figures, Trial
from ops.bench.watch import ContenderFailed
from tests.ops.test_nginx import needs_nginx


@needs_nginx
@pytest.mark.slow
@pytest.mark.anyio
async def test_each_contender_stores_the_row_of_each_key() -> None:
    chosen = [Trial("pipeline", "2", contender, workers=2) for contender in (LOOP, POOL, QUEUE, LIMIT, OURS)]
    lines = await measure(chosen, 1, 0.0, Console(quiet=True))
    assert [(line.contender, line.keys) for line in lines] == [(trial.contender.name, 40) for trial in chosen]
    assert all(line.rate > 0 for line in lines)


@needs_nginx
@pytest.mark.slow
@pytest.mark.anyio
async def test_a_contender_that_leaves_a_key_out_ends_the_benchmark() -> None:
    def without_the_last(course: Course) -> list[str]:
        course.urls.write_text("\n".join(course.urls.read_text().split()[:-1]))
        return LOOP.command(course)

    careless = Contender("careless", LOOP.keys, without_the_last)
    with pytest.raises(ContenderFailed, match="careless did not store the row of each of 40 keys once"):
        await measure([Trial("pipeline", "1", careless)], 1, 0.0, Console(quiet=True))


@pytest.mark.parametrize(
    ("ours", "held"),
    [
        ((180.0, 350.0, 360.0), [True, True]),
        ((190.0, 350.0, 360.0), [False, True]),
        ((180.0, 350.0, 350.0), [True, False]),
    ],
    ids=["kept", "a second process brings too little", "too far below the step alone"],
)
def test_promises_are_about_the_second_process_and_the_step_alone(ours: tuple[float, ...], held: list[bool]) -> None:
    line = Figures("pipeline", "", "", 40, 1.0, [], 1.0, 1.0, 1.0, 1.0)
    lines = [
        replace(line, contender=contender.name, circumstance=str(count), rates=[rates[min(place, 2)]])
        for contender, rates in ((OURS, ours), (LIMIT, (200.0, 388.0, 400.0)))
        for place, count in enumerate(PROCESSES)
    ]
    assert [promise.held for promise in promises(lines)][:2] == held
