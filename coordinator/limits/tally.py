"""Results of requests to one upstream since a worker's last report."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Tally:
    """Counts of what the limiter reports; `seconds` is what the requests took in all.

    `throttled_well` of those throttled did not fail, as a 503 does.
    `undecided` of those sent did not decide their keys. Up to the `refused_at`th one that did, `refused` in a row were
    refused, the first of them at `row_at`, the last of them with `status`. The last one that was not came at `good_at`.
    """

    sent: int = 0
    throttled: int = 0
    throttled_well: int = 0
    failed: int = 0
    seconds: float = 0.0
    undecided: int = 0
    refused: int = 0
    refused_at: int = 0
    status: int = 0
    row_at: float = 0.0
    good_at: float = 0.0

    @property
    def decided(self) -> int:
        """Responses that decided their keys."""
        return self.sent - self.undecided

    def add_refusal(self, status: int, at: float) -> None:
        """Add that the last response was refused."""
        if not self.refused or self.refused_at != self.decided - 1:
            self.refused, self.row_at = 0, at
        self.refused += 1
        self.refused_at, self.status = self.decided, status

    def for_breaker(self, now: float) -> tuple[int, ...]:
        """What `breaker.lua` is told of an upstream, with times in microseconds ago."""
        refused_last = self.refused if self.refused_at == self.decided else 0
        good_ago, row_ago = (int((now - at) * 1_000_000) for at in (self.good_at, self.row_at))
        return self.sent, self.failed, self.decided, good_ago, refused_last, row_ago, self.status, self.throttled_well
