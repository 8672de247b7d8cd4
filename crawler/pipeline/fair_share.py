"""How many requests this worker may have in flight at an upstream: its share of the concurrency, or one.

An upstream that has not responded yet gets one request at a time. So many dead hosts do not hold all lanes, and what
the first request finds is known before others are sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from coordinator.limits.limiter import Limiter
from coordinator.model import Presence

# A corpus can have millions of hosts: when so many are known they are forgotten, and one request goes first again.
MAX_KNOWN_UPSTREAMS = 100_000
# A request that lasts longer is slow. Its lane may be lent: another lane begins in its place, and it ends with the
# request.
SLOW_SECONDS = 1.0
# Lanes that are lent at one time, at most, or as many as there are lanes. Each waits for bytes, which takes kilobytes.
MAX_LENT_LANES = 256
# The share of the other lanes that requests to upstreams which are not quick may hold while quick ones want them.
SLOW_SHARE = 0.2

# An upstream is quick when it has responded and none of its requests is slow, new before its first response. Strings,
# because members of an Enum are slower.
Speed: TypeAlias = Literal["quick", "slow", "new"]


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


def most_lent(lanes: int) -> int:
    """How many lanes may be lent beside so many others."""
    return max(MAX_LENT_LANES, lanes)


class Room:
    """The room of this worker at each upstream. `reached` are upstreams that have responded to it, `slow` those whose
    last request was slow.
    """

    def __init__(self, limiter: Limiter) -> None:
        self.reached: set[str] = set()
        self._dead: set[str] = set()
        self.slow: set[str] = set()
        self._limiter = limiter
        self._fair_share = FairShare()

    def resize(self, presence: Presence) -> bool:
        """Take this worker's share from its last heartbeat; returns whether it is another one."""
        before = self._fair_share
        self._fair_share = before.after_heartbeat(presence.rank, presence.size, presence.turn)
        return self._fair_share != before

    def add(self, upstream: str, *, reached: bool) -> None:
        """Say whether a request reached an upstream that has not responded before."""
        _add(upstream, self.reached if reached else self._dead)

    def set_slow(self, upstream: str, slow: bool) -> None:
        """Say how long the last request to an upstream lasted, or has lasted by now."""
        if slow:
            _add(upstream, self.slow)
        else:
            self.slow.discard(upstream)

    def speed(self, upstream: str) -> Speed:
        """How fast the upstream responds to this worker, as far as is known."""
        if upstream not in self.reached:
            return "new"
        return "slow" if upstream in self.slow else "quick"

    def at(self, upstream: str, *, alone: bool = False) -> int | None:
        """How many requests may be in flight at an upstream; None without a bound.

        While it is `alone` in the worker, it keeps no lane from another one: then all of its room is used at once,
        until it is known to be dead.
        """
        limit = self._limiter.concurrency(upstream)
        room = None if limit is None else self._fair_share.share(limit)
        if upstream in self.reached or (alone and upstream not in self._dead):
            return room
        return 1 if room is None else min(room, 1)


def _add(upstream: str, known: set[str]) -> None:
    if len(known) >= MAX_KNOWN_UPSTREAMS:
        known.clear()
    known.add(upstream)
