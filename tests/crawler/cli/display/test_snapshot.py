"""How `status` shows a run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coordinator.limits.overrides import LimitOverride
from coordinator.limits.unreachable import UnreachableUpstream
from coordinator.limits.upstream_health import UpstreamHealth
from coordinator.model import RunState
from coordinator.queue.notices import NullColumn
from coordinator.settings import LimitSettings, Window
from coordinator.stages.constraint import Constraint, Held
from coordinator.stages.figures import StageFigures, WorkerFigures
from coordinator.stages.timing import StageTiming
from coordinator.status import RunSnapshot
from crawler.cli.display.progress import absence_words
from crawler.cli.display.snapshot import print_snapshot, snapshot_json
from tests.crawler.cli.display.test_screen import COUNTS, a_console

SNAPSHOT = RunSnapshot(
    "test",
    RunState.RUNNING,
    COUNTS,
    workers=2,
    leader=None,
    waits=("Postgres does not answer",),
    upstreams=(
        UpstreamHealth("[fe80::1]:80", paused=61.4),
        UpstreamHealth(
            "x.example", override=LimitOverride(LimitSettings((Window(5, 1),)), 0), breaker="open", probe_in=3.0
        ),
    ),
    unreachable=tuple(UnreachableUpstream(f"dead{number:02}", 3, "no such host", 8.04) for number in range(12)),
    null_columns=(NullColumn("facts.n", 1_767_268_800),),
    figures=WorkerFigures(2.5, (StageFigures("fetch", 63.4, 64),), (Held(Constraint.RATE, "example.org", 0.9),)),
    timings={"fetch": StageTiming((4,), 0.208)},
    last_commit=90.0,
)


def test_a_host_that_does_not_respond_is_what_limits_the_run_and_not_its_concurrency() -> None:
    words = []
    for host in ("dead07", "alive"):
        held = WorkerFigures(held=(Held(Constraint.CONCURRENCY, host, 0.9),))
        words.append(replace(SNAPSHOT, waits=(), figures=held).limited_words)
    assert words == ["an upstream that does not respond (dead07)", "upstream concurrency (alive)"]


def test_a_snapshot_is_shown_whole() -> None:
    console, out = a_console()
    print_snapshot(SNAPSHOT, console)
    text = out.getvalue()
    parts = ("running", "5 of 20 done, 10 queued", "4 stored, 1 failed", "1,234, 5.6 kB", "none", "waits for")
    upstreams = (
        "[fe80::1]:80 paused 61 s",
        "x.example breaker open, probe in 3 s, live rate 5/s, live concurrency none",
    )
    unreachable = ("3 keys wait for dead09: no such host, next attempt in 8 s", "2 more, see --json")
    for part in (*parts, *upstreams, *unreachable):
        assert part in text
    whole = " ".join(text.split())
    assert "Postgres does not answer" in whole
    assert "facts.n was filled, and is null in every record of 1,000 pages since 2026-01-01 12:00:00 UTC" in whole
    assert "running, but no coordinator is there: start `shardcrawl coordinate`" in whole
    assert "2.5 keys/s, ETA 0:00:06, last commit 0:01:30 ago" in whole
    assert "fetch 99 % 64 0 4 52 ms" in whole
    assert "limited by" not in whole, "who is away comes first"


def test_what_limits_a_run_is_shown_when_everybody_is_there() -> None:
    console, out = a_console()
    print_snapshot(replace(SNAPSHOT, leader="host-1", waits=()), console)
    assert "limited by the upstream's rate (example.org)" in " ".join(out.getvalue().split())
    print_snapshot(replace(SNAPSHOT, leader="host-1", waits=(), figures=WorkerFigures()), console)
    assert "limited by not known yet" in " ".join(out.getvalue().split())


@pytest.mark.parametrize(
    ("state", "workers", "leader", "words"),
    [
        (RunState.RUNNING, 1, "host-1", ""),
        (RunState.RUNNING, 0, "host-1", "no worker is there: start `shardcrawl work`"),
        (RunState.RESOLVED, 0, "host-1", "no worker is there: start `shardcrawl work`"),
        (RunState.RUNNING, 1, None, "no coordinator is there: start `shardcrawl coordinate`"),
        (RunState.RUNNING, 0, None, "nobody works on it and nobody coordinates it: start `shardcrawl run` again"),
        (RunState.COMPLETE, 0, None, ""),
    ],
)
def test_who_is_not_there_is_said_in_words(state: RunState, workers: int, leader: str | None, words: str) -> None:
    snapshot = RunSnapshot("test", state, COUNTS, workers, leader)
    assert absence_words(snapshot) == words
    assert absence_words(replace(snapshot, begins=True)) == "", "a command that has just opened it starts its processes"


def test_a_snapshot_as_json_names_every_count() -> None:
    assert snapshot_json(SNAPSHOT) == {
        "run": "test",
        "state": "running",
        "total": 20,
        "done": 5,
        "queued": 10,
        "deferred": 0,
        "outcomes": {"stored": 4, "unchanged": 0, "gone": 0, "refused": 0, "failed": 1},
        "requests": 1_234,
        "received_bytes": 5_600,
        "workers": 2,
        "max_workers": None,
        "run_paused": False,
        "coordinator": None,
        "paused": {"[fe80::1]:80": 61.4},
        "upstreams": {
            "[fe80::1]:80": {
                "paused": 61.4,
                "breaker": "closed",
                "probe_in": 0.0,
                "refused_in_a_row": 0,
                "refused_with": None,
                "found_rate": None,
                "live_rate": None,
                "live_concurrency": None,
            },
            "x.example": {
                "paused": 0.0,
                "breaker": "open",
                "probe_in": 3.0,
                "refused_in_a_row": 0,
                "refused_with": None,
                "found_rate": None,
                "live_rate": "5/s",
                "live_concurrency": "none",
            },
        },
        "waits": ["Postgres does not answer"],
        "unreachable": {
            f"dead{number:02}": {"keys": 3, "fault": "no such host", "next_attempt_in": 8.0} for number in range(12)
        },
        "null_columns": {"facts.n": 1_767_268_800},
        "absent": "no coordinator is there: start `shardcrawl coordinate`",
        "rate": 2.5,
        "eta_seconds": 6,
        "last_commit_ago": 90.0,
        "limited_by": {
            "what": "service",
            "name": "Postgres does not answer",
            "words": "a service that does not respond (Postgres does not answer)",
        },
        "stages": {"fetch": {"busy": 63.4, "of": 64, "waiting": 0, "items": 4, "seconds": 0.208}},
    }
