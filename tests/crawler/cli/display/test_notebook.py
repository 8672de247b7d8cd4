from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from coordinator.model import Outcome, RunCounts, RunState
from coordinator.status import RunSnapshot
from crawler.cli.display.notebook import NotebookScreen, screen_here
from crawler.local.events import ProgressUnknown, RunBegins, RunProgress


class Cell:
    """The output of a cell: what each display shows now."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def display(self, data: dict[str, str], **options: Any) -> SimpleNamespace:
        assert options == {"raw": True, "display_id": True}
        self.shown.append(data["text/plain"])
        return SimpleNamespace(update=lambda data, raw: self.shown.__setitem__(-1, data["text/plain"]))


def test_the_progress_is_one_line_that_changes(capsys: pytest.CaptureFixture[str]) -> None:
    cell = Cell()
    with NotebookScreen(cell.display) as screen:
        screen(RunBegins("items", 20))
        for done in (5, 10):
            counts = RunCounts(total=20, published=20, resolved=done, outcomes={Outcome.STORED: done})
            screen(RunProgress(RunSnapshot("items", RunState.RUNNING, counts, workers=1, leader="x")))
        assert len(cell.shown) == 1
        assert cell.shown[0].startswith("items: 10 of 20 keys, ")
        screen(ProgressUnknown("items", "Redis does not respond"))
        assert cell.shown == ["items: Redis does not respond"]
    assert cell.shown == [""], "it says nothing that is no longer true"
    assert capsys.readouterr().out == "run items begins, about 20 keys\n"


def test_a_notebook_is_seen_by_its_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    ipython, display = ModuleType("IPython"), ModuleType("IPython.display")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=None)  # type: ignore[attr-defined]
    display.display = Cell().display  # type: ignore[attr-defined]
    assert type(screen_here()).__name__ == "RunScreen"
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    assert isinstance(screen_here(), NotebookScreen)
    ipython.get_ipython = lambda: SimpleNamespace()  # type: ignore[attr-defined]
    assert not isinstance(screen_here(), NotebookScreen), "IPython on a terminal has the bar"
