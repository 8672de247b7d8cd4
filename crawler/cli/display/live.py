"""`status --watch`: runs live in a terminal, until q or Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import termios
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from coordinator.errors import Unavailable
from crawler.cli.display.overview import Overview, RunView
from crawler.cli.display.progress import duration_words, holdup_words, of_total, printable
from crawler.cli.display.snapshot import snapshot_tables
from crawler.store.reasons import Failure

PICTURE_INTERVAL_SECONDS = 1.0
# A server that vanished without a word says nothing at all.
SILENT_SECONDS = 60.0
LEAVING_KEYS = b"qQ"
# Behind the reason of the last attempt: a line has no room for the others, and the key comes first.
_HISTORY = re.compile(r" after \d+ attempts: .*", re.DOTALL)


async def watch_runs(overview: Overview, console: Console) -> None:
    """Show the runs until a key says to leave, or all of them are over.

    While a service does not respond, the last picture stays, and says so. Raises UsageError for an unknown run.
    """
    views = await overview.read()
    leave = asyncio.Event()
    with _leaving_keys(leave), Live(console=console, screen=True, auto_refresh=False) as live:
        fault = ""
        while not leave.is_set():
            live.update(picture(views, datetime.now().astimezone(), fault), refresh=True)
            if views and all(one.snapshot.state.is_over for one in views):
                break
            with suppress(TimeoutError):
                async with asyncio.timeout(PICTURE_INTERVAL_SECONDS):
                    await leave.wait()
            try:
                async with asyncio.timeout(SILENT_SECONDS):
                    views, fault = await overview.read(), ""
            except Unavailable as error:
                fault = str(error)
            except TimeoutError:
                fault = f"no response within {SILENT_SECONDS:.0f} s"
    console.print(picture(views, datetime.now().astimezone(), fault))


def picture(views: Sequence[RunView], now: datetime, fault: str = "") -> RenderableType:
    """What is shown at a moment: one run whole, several with two lines each. `fault` says why it is not the newest."""
    lines: list[RenderableType] = [_line(f"{now:%H:%M:%S}  q leaves", "dim")]
    if fault:
        lines.append(_line(f"not up to date: {fault}", "yellow"))
    if not views:
        lines.append(_line("no run is under way; `shardcrawl runs` lists the complete ones"))
    for view in views:
        lines += snapshot_tables(view.snapshot) if len(views) == 1 else _short(view)
    failures = sorted((one for view in views for one in view.failures), key=lambda one: one.at, reverse=True)
    if failures:
        lines += [_line("newest failures", "bold"), *map(_failure_line, failures)]
    return Group(*lines)


def _short(view: RunView) -> list[RenderableType]:
    snapshot = view.snapshot
    left = snapshot.seconds_left
    pace = f"{snapshot.figures.rate:,.1f}/s, ETA {duration_words(left) if left is not None else '?'}"
    keys = f"{snapshot.counts.done:,}{of_total(snapshot.counts)} keys"
    first = f"{snapshot.name}  {snapshot.state.value}, {keys}, {pace}, {snapshot.workers:,} workers"
    return [_line(first, "bold"), _line(f"  {holdup_words(snapshot)}")]


def _failure_line(failure: Failure) -> Text:
    why = _HISTORY.sub("", failure.reason or "without a reason")
    return _line(f"{failure.at.astimezone():%H:%M:%S} {failure.outcome.value}: {why}  {failure.key}")


def _line(text: str, style: str = "") -> Text:
    """One line, cut to the width of the terminal. What a key or an upstream says cannot steer the terminal."""
    return Text(printable(text), style, no_wrap=True, overflow="ellipsis")


@contextmanager
def _leaving_keys(leave: asyncio.Event) -> Iterator[None]:
    """Set `leave` when somebody presses q. Ctrl-C is a signal, which interrupts the command."""
    if not sys.stdin.isatty():
        yield
        return
    terminal, loop = sys.stdin.fileno(), asyncio.get_running_loop()

    def read() -> None:
        if (pressed := os.read(terminal, 100)) == b"" or any(key in LEAVING_KEYS for key in pressed):
            leave.set()
            loop.remove_reader(terminal)

    before = termios.tcgetattr(terminal)
    tty.setcbreak(terminal)
    loop.add_reader(terminal, read)
    try:
        yield
    finally:
        loop.remove_reader(terminal)
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
