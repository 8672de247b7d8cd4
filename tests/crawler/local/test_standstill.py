"""A command ends when nothing but keys of upstreams that refuse everything has been left for five minutes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coordinator.limits.upstream_health import UpstreamHealth
from coordinator.model import Outcome, RunCounts, RunState
from coordinator.status import RunSnapshot
from crawler.local.standstill import PATIENCE_SECONDS, Standstill

REFUSING = UpstreamHealth("x.example", breaker="open", refused=100, status=401)
SNAPSHOT = RunSnapshot("test", RunState.RUNNING, RunCounts(), workers=1, leader="a", upstreams=(REFUSING,))


def with_done(keys: int) -> RunSnapshot:
    return replace(SNAPSHOT, counts=RunCounts(outcomes={Outcome.STORED: keys}))


def test_it_ends_after_the_patience_in_which_nothing_was_done() -> None:
    standstill = Standstill()
    assert [standstill.add(SNAPSHOT, at) for at in (10.0, 309.0, 310.0)] == [(), (), (REFUSING,)]
    assert PATIENCE_SECONDS == 300


@pytest.mark.parametrize(
    "other",
    [
        with_done(1),
        replace(SNAPSHOT, waits=("Postgres does not respond",)),
        replace(SNAPSHOT, upstreams=()),
        replace(SNAPSHOT, upstreams=(REFUSING, UpstreamHealth("y.example", paused=3600.0))),
        replace(SNAPSHOT, upstreams=(REFUSING, UpstreamHealth("y.example", breaker="open"))),
    ],
)
def test_whatever_else_goes_on_begins_the_time_anew(other: RunSnapshot) -> None:
    standstill = Standstill()
    ends = [standstill.add(snapshot, at) for snapshot, at in ((SNAPSHOT, 0.0), (other, 299.0), (SNAPSHOT, 301.0))]
    assert ends == [(), (), ()]


def test_an_upstream_with_another_rate_is_nothing_to_wait_for() -> None:
    standstill = Standstill()
    snapshot = replace(SNAPSHOT, upstreams=(REFUSING, UpstreamHealth("y.example", found_rate=9.0)))
    assert [standstill.add(snapshot, at) for at in (0.0, 300.0)] == [(), (REFUSING,)]
