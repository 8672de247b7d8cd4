from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import pytest
from rich.console import Console

from coordinator.errors import RedisUnavailable
from coordinator.limits.unreachable import UnreachableUpstream
from coordinator.limits.upstream_health import UpstreamHealth
from coordinator.model import Outcome, RunCounts, RunState
from coordinator.stages.constraint import Constraint, Held
from coordinator.stages.figures import WorkerFigures
from coordinator.status import RunSnapshot
from crawler.cli.display.progress import (
    Pace,
    RunScreen,
    byte_words,
    duration_words,
    holdup_words,
    outcome_words,
    say,
    upstream_words,
)
from crawler.cli.options import listener_from
from crawler.local.events import (
    ChildLine,
    DrainBegins,
    Event,
    PoliteDefaultUsed,
    ProgressUnknown,
    RunBegins,
    RunGoesOn,
    RunLost,
    RunProgress,
    ServerWarning,
)
from crawler.local.run import report_progress
from tests.waiting import eventually

RUNNING = RunCounts(
    total=20_000, published=15_000, resolved=5_000, outcomes={Outcome.STORED: 4_990, Outcome.GONE: 10}, requests=5_100
)


def a_snapshot(counts: RunCounts = RUNNING, *, pauses: dict[str, float] | None = None) -> RunSnapshot:
    upstreams = tuple(UpstreamHealth(name, paused=left) for name, left in (pauses or {}).items())
    return RunSnapshot("test", RunState.RUNNING, counts, workers=2, leader="host-1", upstreams=upstreams)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00:00"), (0.4, "0:00:00"), (0.5, "0:00:01"), (59.6, "0:01:00"), (3599, "0:59:59"), (360_000, "100:00:00")],
)
def test_seconds_are_shown_as_a_clock(seconds: float, text: str) -> None:
    assert duration_words(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_250_000, "1.2 MB"), (3.5e9, "3.5 GB"), (7e15, "7000.0 TB")],
)
def test_bytes_are_shown_for_people(count: float, text: str) -> None:
    assert byte_words(count) == text


def test_a_pace_is_counted_over_the_last_ten_seconds() -> None:
    pace = Pace()
    for second in range(100):
        pace.add(float(second), second * 10 if second < 50 else 500 + (second - 50) * 40)
    assert pace.rate == 40.0


def test_a_pace_that_has_seen_nothing_is_zero_and_tells_no_end() -> None:
    pace = Pace()
    assert pace.rate == 0.0
    assert pace.left(RUNNING) == "?"
    pace.add(1.0, 500)
    assert pace.rate == 0.0
    pace.add(1.0, 900)
    assert pace.rate == 0.0


def test_the_rest_takes_what_is_left_at_that_pace() -> None:
    pace = Pace()
    pace.add(0.0, 4_000)
    pace.add(10.0, 5_000)
    assert pace.left(RUNNING) == "0:02:30"
    assert pace.left(RunCounts(total=None, outcomes={Outcome.STORED: 1})) == "?"
    assert pace.left(RunCounts(total=10, outcomes={Outcome.STORED: 11})) == "0:00:00"


def test_a_run_that_stands_still_or_was_begun_again_tells_no_end() -> None:
    pace = Pace()
    pace.add(0.0, 5_000)
    pace.add(10.0, 4_000)
    assert pace.left(RUNNING) == "?"


def test_outcomes_are_named_when_they_occurred() -> None:
    assert outcome_words(RUNNING) == "4,990 stored, 10 gone"
    assert outcome_words(RunCounts(outcomes={Outcome.FAILED: 0})) == "nothing yet"


def test_paused_upstreams_are_named() -> None:
    assert upstream_words(a_snapshot(pauses={"b.example": 1.6, "a.example": 60.0})) == (
        "a.example paused 60 s, b.example paused 2 s"
    )
    many = a_snapshot(pauses={f"{number}.example": 5.0 for number in range(9)})
    assert upstream_words(many).endswith("4.example paused 5 s, 4 more")


class Shown:
    """Reports progress to a RunScreen from looks that follow a script; the last one is repeated."""

    def __init__(self, *looks: RunSnapshot | Exception, terminal: bool, width: int = 200) -> None:
        self._looks = list(looks)
        self.out = io.StringIO()
        self.console = Console(file=self.out, force_terminal=terminal, width=width, color_system=None)

    async def look(self) -> RunSnapshot:
        look = self._looks.pop(0) if len(self._looks) > 1 else self._looks[0]
        if isinstance(look, Exception):
            raise look
        return look

    async def until(self, condition: Callable[[str], bool]) -> str:
        with RunScreen(self.console) as screen:
            task = asyncio.create_task(report_progress(self.look, "test", screen, 0.001))
            try:
                await eventually(lambda: condition(self.out.getvalue()) or task.done(), "the progress is shown")
                assert not task.done(), task.exception()
            finally:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        return self.out.getvalue()


POLITELY = "10/s and 8 requests at once, to be polite; set [limits] or --rate (none: no bound)"


def said(*events: Event) -> str:
    out = io.StringIO()
    with RunScreen(Console(file=out, width=40)) as screen:
        for event in events:
            screen(event)
    return out.getvalue()


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (RunBegins("test", 1200), "run test begins, about 1,200 keys"),
        (RunBegins("test", 1200, "one"), "run test begins, a refresh of one, about 1,200 keys"),
        (RunBegins("test", None), "run test begins"),
        (RunGoesOn("test", 1200), "run test goes on: 1,200 keys are done"),
        (PoliteDefaultUsed("*"), f"no limit is named for each host: {POLITELY}"),
        (PoliteDefaultUsed("[fe80::1]:80"), f"no limit is named for [fe80::1]:80: {POLITELY}"),
        (ServerWarning("Redis keeps [nothing]"), "warning: Redis keeps [nothing]"),
        (RunLost("run test is lost"), "warning: run test is lost; nothing is called done until the run is rebuilt"),
        (ChildLine("12:00:00 worker-1 [red]"), "12:00:00 worker-1 [red]"),
        (DrainBegins(), "finishing what is in flight; Ctrl-C again leaves at once"),
        (ProgressUnknown("test", "Redis does not answer"), "test: Redis does not answer"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_an_event_is_one_line(event: Event, line: str) -> None:
    assert said(event) == f"{line}\n"


@pytest.mark.parametrize(
    ("level", "terminal", "shows"),
    [("info", False, True), ("warning", False, False), ("error", False, False), ("warning", True, True)],
)
def test_from_warning_on_only_what_is_wrong_is_shown_where_no_terminal_is(
    level: str, terminal: bool, shows: bool
) -> None:
    out = io.StringIO()
    with RunScreen(Console(file=out, width=200, force_terminal=terminal, color_system=None)) as screen:
        listener = listener_from({"debug": False, "log_level": level}, screen)
        listener.on_event(RunBegins("test", 9))
        listener.on_event(ServerWarning("Redis keeps nothing"))
        listener.on_event(RunProgress(a_snapshot()))
    assert ("run test begins" in out.getvalue()) == shows
    assert ("5,000" in out.getvalue()) == shows
    assert "warning: Redis keeps nothing" in out.getvalue()


def test_a_run_that_goes_on_after_it_was_lost_has_a_bar_and_a_pace_of_its_own() -> None:
    out = io.StringIO()
    with RunScreen(Console(file=out, force_terminal=True, width=200, color_system=None)) as screen:
        screen(RunProgress(a_snapshot()))
        screen(RunLost("run test is lost"))
        screen(RunGoesOn("test", 7))
        screen(RunProgress(a_snapshot(RunCounts(total=20, outcomes={Outcome.STORED: 7}))))
    assert "7/20" in out.getvalue()
    assert "-" not in out.getvalue().rpartition("7/20")[2].partition("/s")[0], "no pace below zero"


@pytest.mark.anyio
async def test_without_a_terminal_it_prints_plain_lines_and_waits_for_a_redis_that_is_away() -> None:
    away = RedisUnavailable("Redis does not answer: [Errno 111] [/red]; is it running?")
    shown = Shown(a_snapshot(), away, a_snapshot(pauses={"[fe80::1]:80": 3.0}), terminal=False)
    text = await shown.until(lambda text: "paused" in text)
    first, second, third = text.splitlines()[:3]
    assert first.startswith("test: 5,000 of 20,000 keys, 0/s, ETA ?; 4,990 stored, 10 gone")
    assert second == "test: Redis does not answer: [Errno 111] [/red]; is it running?"
    assert third.endswith("[fe80::1]:80 paused 3 s")
    assert "\x1b" not in text


@pytest.mark.anyio
async def test_a_source_of_unknown_length_is_shown_without_a_total() -> None:
    shown = Shown(a_snapshot(RunCounts(outcomes={Outcome.STORED: 7})), terminal=False)
    text = await shown.until(lambda text: "\n" in text)
    assert text.startswith("test: 7 keys, ")


@pytest.mark.anyio
@pytest.mark.parametrize("upstream", ["upstream.example", "[fe80::1]:80", "[/bold]"])
async def test_on_a_terminal_a_bar_tells_keys_outcomes_and_pauses(upstream: str) -> None:
    shown = Shown(a_snapshot(pauses={upstream: 3.0}), terminal=True, width=80)
    text = await shown.until(lambda text: "paused" in text)
    for part in ("5,000/20,000", "4,990 stored, 10 gone", f"{upstream} paused 3 s", "ETA ?"):
        assert part in text


@pytest.mark.anyio
async def test_the_bar_says_that_it_waits_for_redis_and_goes_on() -> None:
    shown = Shown(RedisUnavailable("gone"), terminal=True)
    await shown.until(lambda text: "waiting for Redis" in text)
    shown = Shown(RedisUnavailable("gone"), a_snapshot(), terminal=True)
    await shown.until(lambda text: "5,000/20,000" in text)


REFUSED = UnreachableUpstream("example.org", 3, "connection refused", 8.2)
NO_HOST = UnreachableUpstream("other.example", 1, "no such host", 0.1)


@pytest.mark.parametrize(
    ("unreachable", "upstreams", "waits", "words"),
    [
        ((), (), (), "upstream ok"),
        ((REFUSED,), (), (), "3 keys wait for example.org: connection refused, next attempt in 8 s"),
        ((NO_HOST,), (), (), "1 key waits for other.example: no such host, next attempt now"),
        (
            (REFUSED, NO_HOST, REFUSED, NO_HOST),
            (UpstreamHealth("slow.example", paused=5.0),),
            (),
            f"{REFUSED.summary}; {NO_HOST.summary}; 4 keys wait for 2 more upstreams; slow.example paused 5 s",
        ),
        ((REFUSED,), (UpstreamHealth("example.org", breaker="open", probe_in=8.0),), (), REFUSED.summary),
        ((REFUSED,), (), ("Postgres does not answer",), "waits: Postgres does not answer"),
    ],
)
def test_what_holds_a_run_up_is_named(
    unreachable: tuple[UnreachableUpstream, ...],
    upstreams: tuple[UpstreamHealth, ...],
    waits: tuple[str, ...],
    words: str,
) -> None:
    snapshot = RunSnapshot("test", RunState.RUNNING, RUNNING, 2, "host-1", waits, upstreams, unreachable)
    assert holdup_words(snapshot) == words


def test_while_all_is_well_the_progress_line_says_what_limits_the_run() -> None:
    snapshot = replace(a_snapshot(), figures=WorkerFigures(held=(Held(Constraint.FETCH, "", 1.0),)))
    assert holdup_words(snapshot) == "limited by fetch"
    paused = replace(snapshot, upstreams=(UpstreamHealth("slow.example", paused=5.0),))
    assert holdup_words(paused) == "slow.example paused 5 s"


def test_what_an_upstream_says_cannot_steer_the_terminal() -> None:
    out = io.StringIO()
    say(Console(file=out, force_terminal=True), "parser: \x1b[2J[red]\r\nforged\x9b")
    assert out.getvalue() == "parser:  [2J[red]  forged \n"
