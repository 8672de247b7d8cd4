"""What a crawl says of itself when it ends, as one line of JSON on its standard output."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Report:
    """Keys stored, when the first of their pages came, and when the last was committed, in seconds since 1970."""

    keys: int
    first: float
    last: float

    @property
    def line(self) -> str:
        """As it is written."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str | bytes) -> Report:
        """From what a process wrote."""
        return cls(**json.loads(text))

    @classmethod
    def merged(cls, reports: Iterable[Report]) -> Report:
        """One report of several processes that worked together; some may have got nothing to do."""
        busy = [report for report in reports if report.keys]
        return cls(
            sum(report.keys for report in busy),
            min(report.first for report in busy),
            max(report.last for report in busy),
        )
