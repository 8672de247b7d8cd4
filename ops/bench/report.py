"""The result of a crawl, which it prints at its end as one line of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Report:
    """Keys stored, and when the first page came and the last one was committed, in seconds since 1970."""

    keys: int
    first: float
    last: float

    @property
    def line(self) -> str:
        """The report as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str | bytes) -> Report:
        """Parse the output of a process."""
        return cls(**json.loads(text))

    @classmethod
    def merged(cls, reports: Iterable[Report]) -> Report:
        """One report for several processes that worked together. Those that stored nothing are left out."""
        busy = [report for report in reports if report.keys]
        return cls(
            sum(report.keys for report in busy),
            min(report.first for report in busy),
            max(report.last for report in busy),
        )
