"""Pure: when a run has waited long enough: for upstreams that refuse whatever is requested, or without any progress."""

from __future__ import annotations

from coordinator.limits.upstream_health import UpstreamHealth
from coordinator.status import RunSnapshot

# Longer than the longest wait between two probes, so that several of them were refused.
PATIENCE_SECONDS = 300.0


class Standstill:
    """Follows the snapshots of a run that only refused probes keep busy."""

    def __init__(self) -> None:
        self._done = -1
        self._since = 0.0

    def add(self, snapshot: RunSnapshot, at: float) -> tuple[UpstreamHealth, ...]:
        """Add a snapshot; `at` is seconds of any clock.

        Returns the upstreams that refuse everything when the run should end: for five minutes no key was done, and
        nothing else was waited for.
        """
        stopped = [health for health in snapshot.upstreams if health.stops_requests]
        unauthorized = tuple(health for health in stopped if health.status is not None)
        done = snapshot.counts.done
        waits = bool(snapshot.waits) or snapshot.steering.paused
        if done != self._done or waits or not unauthorized or len(stopped) > len(unauthorized):
            self._done, self._since = done, at
        return unauthorized if at - self._since >= PATIENCE_SECONDS else ()


class Progress:
    """Follows the snapshots of a run, and sees when no key was done for `seconds`; None: never."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._done = -1
        self._since = 0.0
        self._said = False

    def has_stalled(self, snapshot: RunSnapshot, at: float) -> bool:
        """Add a snapshot; `at` is seconds of any clock. True once, and again when there was progress in between."""
        if snapshot.counts.done != self._done or snapshot.steering.paused:
            self._done, self._since, self._said = snapshot.counts.done, at, False
        if self._seconds is None or self._said or at - self._since < self._seconds:
            return False
        self._said = True
        return True
