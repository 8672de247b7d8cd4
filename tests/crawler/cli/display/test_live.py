"""`status --watch`: what is shown, and the keys that leave."""

from __future__ import annotations

import asyncio
import io
import os
import pty
import termios
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from coordinator.errors import RedisUnavailable
from coordinator.limits.upstream_health import UpstreamHealth
from coordinator.model import Outcome, RunState
from crawler.cli.display.live import picture, watch_runs
from crawler.cli.display.overview import Overview, RunView
from crawler.store.reasons import Failure
from tests.crawler.cli.display.test_screen import NOON, a_console
from tests.crawler.cli.display.test_snapshot import SNAPSHOT

FAILURES = (
    Failure(
        Outcome.FAILED, "https://x.example/\x1b[2J[red]a", "status 500 after 2 attempts: 12:00:00 status 503", NOON
    ),
    Failure(Outcome.REFUSED, "https://x.example/" + "b" * 300, None, NOON + timedelta(seconds=1)),
)
VIEW = RunView(SNAPSHOT, FAILURES)


HOSTILE = replace(
    SNAPSHOT, waits=("Postgres \x1b[2J does not answer",), upstreams=(UpstreamHealth("a/[/x]", paused=1.0),)
)


def shown(*views: RunView, width: int = 200, fault: str = "") -> str:
    console, out = a_console(width)
    console.print(picture(views, NOON, fault))
    return out.getvalue()


def test_one_run_is_shown_whole_with_its_newest_failures_first() -> None:
    text = shown(VIEW)
    assert "5 of 20 done, 10 queued" in text
    assert "x.example breaker open" in text
    assert "[fe80::1]:80 paused" in text, "a host is no markup"
    assert "99 %" in text, "how busy the stages are"
    title, first, second = text.splitlines()[-3:]
    assert title == "newest failures"
    assert "refused: without a reason" in first
    assert "failed: status 500  https://x.example/ [2J[red]a" in second
    assert "\x1b" not in text
    hostile = shown(RunView(HOSTILE))
    assert "a/[/x] paused" in hostile
    assert "\x1b" not in hostile


@pytest.mark.parametrize("width", [20, 40, 80])
def test_several_runs_have_two_lines_each_and_no_line_is_wider_than_the_terminal(width: int) -> None:
    other = replace(SNAPSHOT, name="other", waits=(), upstreams=(), unreachable=(), leader="c")
    text = shown(VIEW, RunView(other), width=width, fault="Redis does not answer")
    lines = [line.rstrip() for line in text.splitlines()]
    assert len(lines) == 2 + 2 * 2 + 1 + len(FAILURES)
    assert max(map(len, lines)) <= width
    assert [line.split()[0] for line in lines[2:6:2]] == ["test", "other"]
    assert lines[1].startswith("not up to date: ")
    if width == 80:
        assert lines[2] == "test  running, 5 of 20 keys, 2.5/s, ETA 0:00:06, 2 workers"
        assert lines[5] == "  limited by the upstream's rate (example.org)"


def test_it_says_when_no_run_is_under_way() -> None:
    assert "no run is under way" in shown()


class Views:
    """Stands in for an Overview: one thing after the other."""

    def __init__(self, *views: list[RunView] | Exception, then: Callable[[], Any] = lambda: None) -> None:
        self._views = list(views)
        self._then = then

    async def read(self) -> list[RunView]:
        found = self._views.pop(0) if len(self._views) > 1 else self._views[0]
        if len(self._views) == 1:
            self._then()
        if isinstance(found, Exception):
            raise found
        return found


async def watched(views: Views) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, height=50, color_system=None)
    async with asyncio.timeout(20):
        await watch_runs(cast("Overview", views), console)
    return out.getvalue()


@pytest.mark.anyio
async def test_it_ends_with_the_run_and_goes_on_while_redis_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crawler.cli.display.live.PICTURE_INTERVAL_SECONDS", 0.01)
    over = RunView(replace(SNAPSHOT, state=RunState.COMPLETE))
    text = await watched(Views([VIEW], RedisUnavailable("Redis does not answer"), TimeoutError(), [over]))
    assert "not up to date: Redis does not answer" in text
    assert "not up to date: no response within 60 s" in text
    assert "complete" in text.rpartition("\x1b[?1049l")[2], "what was last is left on the terminal"


@pytest.mark.anyio
async def test_q_leaves_and_the_terminal_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    try:
        with Path(f"/dev/fd/{theirs}").open() as terminal:
            monkeypatch.setattr("sys.stdin", terminal)
            monkeypatch.setattr("crawler.cli.display.live.PICTURE_INTERVAL_SECONDS", 0.01)
            text = await watched(Views([VIEW], [VIEW], then=lambda: os.write(ours, b"xq")))
        assert termios.tcgetattr(theirs) == before
        assert "newest failures" in text
    finally:
        os.close(ours)
        os.close(theirs)
