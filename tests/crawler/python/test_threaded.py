from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import crawler
from coordinator.errors import PostgresRefused
from crawler.job.job import Job
from crawler.local.events import DrainBegins, Event, Listener, RunBegins
from crawler.local.services import Place
from crawler.python import threaded
from crawler.python.threaded import run_in_thread

JOB = crawler.Job.from_dict({"run": {"corpus": "items"}, "source": {"keys": ["https://x.org/1"]}})
PLACE = Place("redis://unused", "postgresql://unused", Path("unused"))


class Scripted:
    """A run that reports one event, and ends when it is cancelled; it cannot drain in time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, has_children: bool) -> None:
        self.drains = 0
        self.cancelled = False
        self._has_children = has_children
        monkeypatch.setattr(threaded, "run_in", self._run)

    def _drain(self) -> None:
        self.drains += 1

    async def _run(self, place: Place, job: Job, listener: Listener, environ: dict[str, str]) -> Any:
        if self._has_children:
            assert listener.on_drain is not None
            listener.on_drain(self._drain)
        listener.on_event(RunBegins("items", 1))
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self.cancelled = True
            raise


def interrupted_at_each_event(event: Event) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("has_children", "drains"), [(True, 1), (False, 0)])
def test_an_interruption_drains_and_where_nothing_drains_it_leaves(
    monkeypatch: pytest.MonkeyPatch, has_children: bool, drains: int
) -> None:
    run = Scripted(monkeypatch, has_children=has_children)
    with pytest.raises(KeyboardInterrupt):
        run_in_thread(PLACE, JOB, Listener(interrupted_at_each_event, 1.0), {})
    assert (run.drains, run.cancelled) == (drains, True)


def test_who_shows_events_and_fails_leaves_no_run_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Scripted(monkeypatch, has_children=True)

    def fail(event: Event) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run_in_thread(PLACE, JOB, Listener(fail, 1.0), {})
    assert (run.drains, run.cancelled) == (0, True)


def test_events_and_errors_come_to_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(place: Place, job: Job, listener: Listener, environ: dict[str, str]) -> Any:
        listener.on_event(DrainBegins())
        raise PostgresRefused("no password")

    monkeypatch.setattr(threaded, "run_in", refused)
    seen: list[Event] = []
    with pytest.raises(PostgresRefused, match="no password"):
        run_in_thread(PLACE, JOB, Listener(seen.append, 1.0), {})
    assert seen == [DrainBegins()]
