"""Pure: when a run has waited long enough for upstreams that refuse whatever is requested."""

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
