"""What a local upstream was asked: counts, the busiest second, a log."""

from __future__ import annotations

from array import array
from collections import Counter, deque


class Ledger:
    """What was asked; the log takes 9 bytes and the path for each of its at most `log_max` requests."""

    def __init__(self, log_max: int) -> None:
        self._log_max = log_max
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.requests = 0
        self.by_status: Counter[int] = Counter()
        self._first = self._last = 0.0
        self._distinct: set[int] = set()
        self._window: deque[float] = deque()
        self._busiest = 0
        self._times = array("d")
        self._paths = bytearray()

    def enter(self, path: bytes, now: float) -> None:
        """Count one request at a monotonic time; those after the first `log_max` are counted, but not logged."""
        self._first = self._first if self.requests else now
        self._last = now
        self.requests += 1
        self._distinct.add(hash(path))
        slide(self._window, now)
        self._busiest = max(self._busiest, len(self._window))
        if len(self._times) < self._log_max:
            self._times.append(now)
            self._paths += path + b"\n"

    def stats(self) -> dict[str, object]:
        """The counts; times are monotonic seconds, None when nothing was asked."""
        return {
            "requests": self.requests,
            "distinct": len(self._distinct),
            "first": self._first if self.requests else None,
            "last": self._last if self.requests else None,
            "by_status": {str(status): count for status, count in sorted(self.by_status.items())},
            "max_in_1s": self._busiest,
        }

    def log(self) -> list[tuple[float, str]]:
        """Monotonic time and path of every logged request, in order."""
        return list(zip(self._times, self._paths.decode("latin-1").split("\n"), strict=False))


def slide(window: deque[float], now: float) -> int:
    """Enter a time into a window of the last second and return how many it holds now."""
    window.append(now)
    while window[0] <= now - 1.0:
        window.popleft()
    return len(window)
