"""Which columns of a job's tables were filled, and are null in every record now: perhaps the responses have changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from crawler.job.tables import TableSettings
from crawler.model import Page

WINDOW_PAGES = 1000


class _Window:
    """1,000 pages with records of one table. `null` are the columns that were null in all records of these so far."""

    def __init__(self, columns: int, now: float) -> None:
        self.filled: set[int] = set()  # before this window
        self.all = frozenset(range(columns))
        self.begin(now)

    def begin(self, now: float) -> None:
        self.pages, self.since, self.null = 0, now, set(self.all)


class NullColumnWatch:
    """Looks at the records of one worker, and at a column only until it is filled once in each window.

    `turned` has the columns that turned null, as table.column, with the beginning of that window in seconds since 1970.
    """

    def __init__(self, tables: Sequence[TableSettings], *, clock: Callable[[], float] = time.time) -> None:
        self.turned: dict[str, float] = {}
        self._clock = clock
        self._names = [[f"{table.name}.{column}" for column, _ in table.columns] for table in tables]
        self._windows = [_Window(len(names), clock()) for names in self._names]

    def add(self, pages: Sequence[Page]) -> Sequence[str]:
        """Look at the records of these pages; returns the columns that have turned null now."""
        found: list[str] = []
        for page in pages:
            last = -1
            for number, row in page.records:
                window = self._windows[number]
                if number != last:  # the records of a table stand together
                    last = number
                    if window.pages == WINDOW_PAGES:
                        found += self._close(number, window)
                    window.pages += 1
                if window.null:
                    window.null -= {index for index in window.null if row[index] is not None}
        return found

    def _close(self, number: int, window: _Window) -> Sequence[str]:
        turned = [self._names[number][index] for index in sorted(window.null & window.filled)]
        self.turned |= {name: window.since for name in turned if name not in self.turned}
        window.filled = (window.filled | window.all) - window.null
        window.begin(self._clock())
        return turned
