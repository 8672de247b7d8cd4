"""What one worker knows of an upstream's limits: its next slots, its pause and its breaker, on the limiter's clock."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reservation:
    """When requests may leave, in seconds of the limiter's clock, and when to ask for more; 0: at any time."""

    slots: tuple[float, ...]
    again_at: float


@dataclass(slots=True)
class UpstreamState:
    """Pause, breaker and found rate of one upstream, as this process knows them. Times are on its clock."""

    paused_until: float = 0.0
    rising_until: float = 0.0
    breaker_closed: bool = True
    breaker_open_until: float = 0.0
    unauthorized: bool = False
    found_rate: float | None = None

    def pause(self, until: float, rise_seconds: float) -> None:
        """Prolong the pause, and the rise after it.

        Never shortens them: when Redis told of this pause, one that was set here may not have reached it yet.
        """
        self.paused_until = max(self.paused_until, until)
        self.rising_until = max(self.rising_until, until + rise_seconds)

    def set_breaker(self, word: bytes, probe_at: float, status: int) -> None:
        """Take the breaker as `changes_since` says it."""
        self.breaker_closed = not word
        self.unauthorized = status > 0
        self.breaker_open_until = probe_at if word == b"open" else 0.0
