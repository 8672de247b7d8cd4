"""Pure: this worker's share of an upstream's concurrency."""

from __future__ import annotations

from dataclasses import dataclass


def share(limit: int, rank: int, size: int) -> int:
    """How many of `limit` the worker of that rank may use; the shares of all `size` workers add up to `limit`."""
    return limit // size + (1 if rank < limit % size else 0)


@dataclass(frozen=True, slots=True)
class FairShare:
    """This worker's place among the fleet's, now and at the heartbeat before, each as (rank, size)."""

    before: tuple[int, int] = (0, 1)
    now: tuple[int, int] = (0, 1)

    def moved(self, rank: int, size: int, turn: int) -> FairShare:
        """The standing after another heartbeat; ranks rotate with `turn`, so that nobody is last for ever."""
        return FairShare(self.now, ((rank + turn) % max(size, 1), max(size, 1)))

    def share(self, limit: int) -> int:
        """The lesser of both shares: one grows a heartbeat late, when its former owner has heard of it too."""
        return min(share(limit, *self.before), share(limit, *self.now))
