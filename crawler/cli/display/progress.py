"""What a user sees while a command works: a progress bar on a terminal, else a plain line now and then."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from time import monotonic
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.text import Text

from coordinator.model import Outcome, RunCounts, RunState
from coordinator.settings import ANY_UPSTREAM, POLITE
from coordinator.status import RunSnapshot
from crawler.local.events import (
    ChildLine,
    DrainBegins,
    Event,
    NothingElseLeft,
    PoliteDefaultUsed,
    ProgressUnknown,
    RunBegins,
    RunGoesOn,
    RunLost,
    RunProgress,
    ServerWarning,
)
from crawler.telemetry import logs

logger = logging.getLogger(__name__)

BAR_INTERVAL_SECONDS = 0.5
LINE_INTERVAL_SECONDS = 10.0
BAR_CHARACTERS = 10
# The time over which the shown rate is averaged: so long that it does not jump with every commit.
RATE_WINDOW_SECONDS = 10.0
SHOWN_UPSTREAMS = 5
# What a log level above info leaves out where no terminal shows it.
ALL_IS_WELL = (PoliteDefaultUsed, RunBegins, RunGoesOn, RunProgress, DrainBegins)
SHOWN_UNREACHABLE = 2


class Pace:
    """Keys a second over the last few seconds, and how long the rest takes at that pace."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, at: float, done: int) -> None:
        """Add a sample: how many keys were done at a moment (seconds of any clock)."""
        self._samples.append((at, done))
        while len(self._samples) > 2 and at - self._samples[0][0] > RATE_WINDOW_SECONDS:
            self._samples.popleft()

    @property
    def rate(self) -> float:
        """Keys a second, 0 without two samples."""
        if not self._samples:
            return 0.0
        (first, before), (last, now) = self._samples[0], self._samples[-1]
        return (now - before) / (last - first) if last > first else 0.0

    def left(self, counts: RunCounts) -> str:
        """The time that the rest takes, as h:mm:ss; "?" when that is unknown."""
        if counts.total is None or self.rate <= 0:
            return "?"
        return duration_words(max(0, counts.total - counts.done) / self.rate)


def say(console: Console, text: str) -> None:
    """Print one line as it is: not wrapped, without reading markup in it, and so that it cannot steer the terminal."""
    console.print(printable(text), markup=False, highlight=False, soft_wrap=True)


def printable(text: str) -> str:
    """The text without characters that would move the cursor of a terminal, or do more."""
    return "".join(char if char.isprintable() else " " for char in text)


def duration_words(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    whole = int(seconds + 0.5)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def seconds_words(seconds: float) -> str:
    """A short time for people: 52 ms; from a minute on as h:mm:ss."""
    if seconds >= 59.95:
        return duration_words(seconds)
    if seconds >= 0.9995:
        return f"{seconds:.1f} s"
    return f"{1000 * seconds:.3g} ms"


def byte_words(count: float) -> str:
    """A number of bytes for people: 1.2 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def of_total(counts: RunCounts) -> str:
    """The end of a phrase like "10 of 500": " of 500", or nothing when the total is unknown."""
    return f" of {counts.total:,}" if counts.total is not None else ""


def outcome_words(counts: RunCounts) -> str:
    """The outcomes that occurred, as "19,990 stored, 10 gone"; "nothing yet" without any."""
    words = [f"{counts.outcomes[outcome]:,} {outcome}" for outcome in Outcome if counts.outcomes.get(outcome)]
    return ", ".join(words) or "nothing yet"


def upstream_words(snapshot: RunSnapshot) -> str:
    """The upstreams whose health is unusual, and how, those that stop requests first; "upstream ok" without any."""
    unusual = sorted(snapshot.upstreams, key=lambda health: (not health.stops_requests, health.upstream))
    words = [f"{health.upstream} {health.summary}" for health in unusual[:SHOWN_UPSTREAMS]]
    if len(unusual) > SHOWN_UPSTREAMS:
        words.append(f"{len(unusual) - SHOWN_UPSTREAMS:,} more")
    return ", ".join(words) or "upstream ok"


def absence_words(snapshot: RunSnapshot) -> str:
    """Who is not there of those whom an unfinished run needs, and how to start them; empty when they all are."""
    if snapshot.state.is_over or snapshot.begins or (snapshot.workers and snapshot.leader is not None):
        return ""
    if snapshot.workers:
        return "no coordinator is there: start `shardcrawl coordinate`"
    if snapshot.leader is not None:
        return "no worker is there: start `shardcrawl work`"
    return "nobody works on it and nobody coordinates it: start `shardcrawl run` again"


def holdup_words(snapshot: RunSnapshot) -> str:
    """What slows the run: what workers wait for, else the health of the upstreams; if that is good, what limits it."""
    if snapshot.steering.paused:
        return f"paused: go on with shardcrawl resume {snapshot.name}"
    if snapshot.waits:
        return "waits: " + "; ".join(snapshot.waits)
    if snapshot.state is RunState.RUNNING and snapshot.leader is not None and (absence := absence_words(snapshot)):
        return absence
    words = [one.summary for one in snapshot.unreachable[:SHOWN_UNREACHABLE]]
    if rest := snapshot.unreachable[SHOWN_UNREACHABLE:]:
        more = f"{len(rest):,} more upstream{'s' * (len(rest) > 1)}"
        words.append(f"{sum(one.keys for one in rest):,} keys wait for {more}")
    named = {one.upstream for one in snapshot.unreachable}
    others = tuple(one for one in snapshot.upstreams if one.paused > 0 or one.upstream not in named)
    if others or not words:
        limited = "" if others else snapshot.limited_words
        words.append(f"limited by {limited}" if limited else upstream_words(replace(snapshot, upstreams=others)))
    return "; ".join(words)


class _Bar(Progress):
    """A bar, and below it what slows the run: beside the counts 80 columns have no room for the name of an upstream."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield from (Text(task.fields["upstream"], "yellow", overflow="ellipsis", no_wrap=True) for task in self.tasks)


class RunScreen:
    """Shows events on a console, and a run's progress: as a bar on a terminal, elsewhere as a line for each event.

    A context manager: the bar ends with it.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._logs_json = logs.line_format() == logs.JSON
        self._shows_bar = console.is_terminal and not self._logs_json
        self._bar: Progress | None = None
        self._pace = Pace()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_bar()

    @property
    def progress_seconds(self) -> float:
        """How often this console shows a run's progress, in seconds."""
        return BAR_INTERVAL_SECONDS if self._shows_bar else LINE_INTERVAL_SECONDS

    def say(self, text: str) -> None:
        """Print one line, above the bar if there is one."""
        if self._logs_json:
            logger.info("%s", text, extra={"event": "progress"})
        else:
            say(self._console, text)

    def warn(self, text: str) -> None:
        """Print a line that says what is wrong."""
        if self._logs_json:
            logger.warning("%s", text)
        else:
            say(self._console, f"warning: {text}")

    def only_what_is_wrong(self, event: Event) -> None:
        """Show an event, unless it says that all is well and nobody looks at a terminal."""
        if self._shows_bar or not isinstance(event, ALL_IS_WELL):
            self(event)

    def __call__(self, event: Event) -> None:
        """Show an event."""
        match event:
            case PoliteDefaultUsed(upstream):
                whose = "each host" if upstream == ANY_UPSTREAM else upstream
                most = f"{POLITE.rate_text} and {POLITE.concurrency} requests at once"
                self.say(
                    f"no limit is named for {whose}: {most}, to be polite; set [limits] or --rate (none: no bound)"
                )
            case RunBegins(run, total, base):
                self._restart_progress()
                refresh = f", a refresh of {base}" if base else ""
                self.say(f"run {run} begins{refresh}" + (f", about {total:,} keys" if total is not None else ""))
            case RunGoesOn(run, done):
                self._restart_progress()
                self.say(f"run {run} goes on: {done:,} keys are done")
            case RunLost(message):
                self.warn(f"{message}; nothing is called done until the run is rebuilt")
            case ServerWarning(message):
                self.warn(message)
            case ChildLine(text):
                (logs.pass_on if self._logs_json else self.say)(text)
            case DrainBegins():
                self.say("finishing what is in flight; Ctrl-C again leaves at once")
            case NothingElseLeft(upstreams):
                names = ", ".join(health.upstream for health in upstreams)
                self.say(f"nothing is left but keys of {names}, which still refuses every request: ending here")
            case RunProgress(snapshot):
                self._show_progress(snapshot)
            case ProgressUnknown(run, message):
                self._show_unknown(run, message)

    def _show_progress(self, snapshot: RunSnapshot) -> None:
        counts = snapshot.counts
        self._pace.add(monotonic(), counts.done)
        rate, left = f"{self._pace.rate:,.0f}/s", f"ETA {self._pace.left(counts)}"
        if not self._shows_bar:
            self._show_line(
                f"{snapshot.name}: {counts.done:,}{of_total(counts)} keys, {rate}, {left}; "
                f"{outcome_words(counts)}; {holdup_words(snapshot)}"
            )
            return
        bar = self._begin_bar(snapshot.name)
        bar.update(
            bar.task_ids[0],
            total=counts.total,
            completed=counts.done,
            keys=f"{counts.done:,}/{counts.total:,}" if counts.total is not None else f"{counts.done:,} keys",
            pace=f"{rate} {left}",
            outcomes=outcome_words(counts),
            upstream=holdup_words(snapshot),
        )

    def _show_unknown(self, run: str, message: str) -> None:
        if self._shows_bar:
            bar = self._begin_bar(run)
            bar.update(bar.task_ids[0], upstream="waiting for Redis")
        else:
            self._show_line(f"{run}: {message}")

    def _show_line(self, text: str) -> None:
        """Show where the run stands where there is no bar."""
        self.say(text)

    def _begin_bar(self, run: str) -> Progress:
        if self._bar is None:
            columns = (
                SpinnerColumn(),
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=BAR_CHARACTERS),
                TextColumn("{task.fields[keys]}"),
                TextColumn("{task.fields[pace]}"),
                TextColumn("[dim]{task.fields[outcomes]}[/]"),
            )
            self._bar = _Bar(*columns, console=self._console, transient=True, refresh_per_second=4)
            self._bar.add_task(run, total=None, keys="", pace="", outcomes="", upstream="")
            self._bar.start()
        return self._bar

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _restart_progress(self) -> None:
        self._end_bar()
        self._pace = Pace()
