"""Pure: this worker's share of an upstream's concurrency."""

from __future__ import annotations

from dataclasses import dataclass


def share_of(limit: int, rank: int, size: int) -> int:
    """How many of `limit` concurrent requests the worker of this rank (from 0) may have.

    The shares of all `size` workers add up to `limit`.
    """
    return limit // size + (1 if rank < limit % size else 0)


@dataclass(frozen=True, slots=True)
class FairShare:
    """This worker's place among all workers of the run at its last two heartbeats, each as (rank, size)."""

    before: tuple[int, int] = (0, 1)
    now: tuple[int, int] = (0, 1)

    def after_heartbeat(self, rank: int, size: int, turn: int) -> FairShare:
        """The places after another heartbeat; ranks rotate with `turn`, so that nobody stays last."""
        return FairShare(self.now, ((rank + turn) % max(size, 1), max(size, 1)))

    def share(self, limit: int) -> int:
        """The smaller of the shares at both places. So a share grows one heartbeat late: by then the worker that gives
        it up has had its heartbeat too."""
        return min(share_of(limit, *self.before), share_of(limit, *self.now))
