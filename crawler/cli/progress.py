"""What a user sees while a run goes on: a bar on a terminal, plain lines now and then elsewhere."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

from coordinator.errors import Unavailable
from coordinator.model import Outcome, RunCounts
from coordinator.status import RunSnapshot

BAR_EVERY = 0.5
LINE_EVERY = 10.0
# Keys a second are taken over this many seconds: long enough not to jump with every commit.
RATE_OVER = 10.0
SHOWN_UPSTREAMS = 5


class Pace:
    """Keys a second over the last few seconds, and how long the rest takes at that pace."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, at: float, done: int) -> None:
        """Note how many keys were done at a moment (seconds)."""
        self._seen.append((at, done))
        while len(self._seen) > 2 and at - self._seen[0][0] > RATE_OVER:
            self._seen.popleft()

    @property
    def rate(self) -> float:
        """Keys a second, 0 when nothing was seen yet."""
        if not self._seen:
            return 0.0
        (first, before), (last, now) = self._seen[0], self._seen[-1]
        return (now - before) / (last - first) if last > first else 0.0

    def left(self, counts: RunCounts) -> str:
        """The time the rest takes, as h:mm:ss; "?" when it cannot be told."""
        if counts.total is None or self.rate <= 0:
            return "?"
        return clock(max(0, counts.total - counts.done) / self.rate)


def say(console: Console, text: str) -> None:
    """One line as it is: not wrapped, and nothing in it is markup."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    whole = int(seconds + 0.5)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def size(count: float) -> str:
    """Bytes for people: 1.2 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def outcome_words(counts: RunCounts) -> str:
    """The outcomes that occurred, as "19,990 stored, 10 gone"."""
    words = [f"{counts.outcomes[outcome]:,} {outcome}" for outcome in Outcome if counts.outcomes.get(outcome)]
    return ", ".join(words) or "nothing yet"


def upstream_words(snapshot: RunSnapshot) -> str:
    """What is the matter at which upstreams, those that stop requests first; "upstream ok" when there is nothing."""
    pressing = sorted(snapshot.upstreams, key=lambda one: (not one.stops_requests, one.upstream))
    words = [f"{one.upstream} {one.summary}" for one in pressing[:SHOWN_UPSTREAMS]]
    if len(pressing) > SHOWN_UPSTREAMS:
        words.append(f"{len(pressing) - SHOWN_UPSTREAMS:,} more")
    return ", ".join(words) or "upstream ok"


def holdup_words(snapshot: RunSnapshot) -> str:
    """What holds the run up: what workers wait for, else the state of the upstreams."""
    return "waits: " + "; ".join(snapshot.waits) if snapshot.waits else upstream_words(snapshot)


async def show(look: Callable[[], Awaitable[RunSnapshot]], console: Console, name: str) -> None:
    """Show the run's progress until cancelled; Redis being away is shown, not raised."""
    if console.is_terminal:
        await _bar(look, console, name)
    else:
        await _lines(look, console, name)


async def _bar(look: Callable[[], Awaitable[RunSnapshot]], console: Console, name: str) -> None:
    pace = Pace()
    columns = (
        SpinnerColumn(),
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[keys]}"),
        TextColumn("{task.fields[pace]}"),
        TextColumn("[dim]{task.fields[outcomes]}[/]"),
        TextColumn("{task.fields[upstream]}", style="yellow", markup=False),
    )
    with Progress(*columns, console=console, transient=True, refresh_per_second=4) as bar:
        task = bar.add_task(name, total=None, keys="", pace="", outcomes="", upstream="")
        while True:
            await _update(bar, task, pace, look)
            await asyncio.sleep(BAR_EVERY)


async def _update(bar: Progress, task: TaskID, pace: Pace, look: Callable[[], Awaitable[RunSnapshot]]) -> None:
    try:
        snapshot = await look()
    except Unavailable:
        bar.update(task, upstream="waiting for Redis")
        return
    counts = snapshot.counts
    pace.add(monotonic(), counts.done)
    total = counts.total
    bar.update(
        task,
        total=total,
        completed=counts.done,
        keys=f"{counts.done:,}/{total:,}" if total is not None else f"{counts.done:,} keys",
        pace=f"{pace.rate:,.0f}/s ETA {pace.left(counts)}",
        outcomes=outcome_words(counts),
        upstream=holdup_words(snapshot),
    )


async def _lines(look: Callable[[], Awaitable[RunSnapshot]], console: Console, name: str) -> None:
    pace = Pace()
    while True:
        try:
            snapshot = await look()
        except Unavailable as error:
            say(console, f"{name}: {error}")
        else:
            counts = snapshot.counts
            pace.add(monotonic(), counts.done)
            of = f" of {counts.total:,}" if counts.total is not None else ""
            say(
                console,
                f"{name}: {counts.done:,}{of} keys, {pace.rate:,.0f}/s, ETA {pace.left(counts)}; "
                f"{outcome_words(counts)}; {holdup_words(snapshot)}",
            )
        await asyncio.sleep(LINE_EVERY)
