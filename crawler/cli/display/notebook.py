"""What a user sees in a notebook: lines, and the progress as one line that changes."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

from rich.console import Console

from crawler.cli.display.progress import BAR_INTERVAL_SECONDS, RunScreen


class NotebookScreen(RunScreen):
    """Shows events in the output of a notebook's cell, through its `display`, which returns a handle."""

    progress_seconds = 2 * BAR_INTERVAL_SECONDS

    def __init__(self, display: Callable[..., Any]) -> None:
        super().__init__(Console(file=sys.stdout, force_jupyter=False, force_terminal=False))
        self._display = display
        self._line: Any = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave no line that says where the run stood a second ago."""
        if self._line is not None:
            self._show_line("")

    def _show_line(self, text: str) -> None:
        shown = {"text/plain": text}
        if self._line is None:
            self._line = self._display(shown, raw=True, display_id=True)
        else:
            self._line.update(shown, raw=True)


def screen_here() -> RunScreen:
    """The screen for where this process runs: a notebook, which has IPython with a kernel, or else standard error."""
    ipython = sys.modules.get("IPython")
    if ipython is not None and hasattr(ipython.get_ipython(), "kernel"):
        return NotebookScreen(importlib.import_module("IPython.display").display)
    return RunScreen(Console(stderr=True, force_jupyter=False))
