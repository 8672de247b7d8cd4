"""The requests that the sample upstream got: counts, the busiest second, a log."""

from __future__ import annotations

from array import array
from collections import Counter, deque


class Ledger:
    """Counts requests, and logs the first `log_max` of them; each takes 9 bytes and its path."""

    def __init__(self, log_max: int) -> None:
        self._log_max = log_max
        self.clear()

    def clear(self) -> None:
        """Remove all counts and the log."""
        self.requests = 0
        self.by_status: Counter[int] = Counter()
        self._first = self._last = 0.0
        self._distinct: set[int] = set()
        self._window: deque[float] = deque()
        self._busiest = 0
        self._times = array("d")
        self._paths = bytearray()

    def add(self, path: bytes, now: float) -> None:
        """Count one request at a monotonic time, and log it if there is room."""
        self._first = self._first if self.requests else now
        self._last = now
        self.requests += 1
        self._distinct.add(hash(path))
        count_in_last_second(self._window, now)
        self._busiest = max(self._busiest, len(self._window))
        if len(self._times) < self._log_max:
            self._times.append(now)
            self._paths += path + b"\n"

    def stats(self) -> dict[str, object]:
        """Return the counts; the times are monotonic seconds, None before the first request."""
        return {
            "requests": self.requests,
            "distinct": len(self._distinct),
            "first": self._first if self.requests else None,
            "last": self._last if self.requests else None,
            "by_status": {str(status): count for status, count in sorted(self.by_status.items())},
            "max_in_1s": self._busiest,
        }

    def log(self) -> list[tuple[float, str]]:
        """Return (monotonic time, path) of every logged request, in order."""
        return list(zip(self._times, self._paths.decode("latin-1").split("\n"), strict=False))


def count_in_last_second(window: deque[float], now: float) -> int:
    """Add a time to a window, drop those older than a second, and return how many are left."""
    window.append(now)
    while window[0] <= now - 1.0:
        window.popleft()
    return len(window)
