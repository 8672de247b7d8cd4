"""Pure: is a parser too slow for the event loop?"""

from __future__ import annotations

# When 64 lanes end at once, the loop is held up for 64 times this. A call through a child process costs 0.2 ms.
MAX_SECONDS_IN_LOOP = 0.001
# A call in the loop that takes longer is interrupted, and begun anew in a child process; the worker keeps its lease.
MAX_CALL_SECONDS_IN_LOOP = 5.0
# The first window is looked at when its calls have taken this long together, so a slow parser is found after few calls.
FIRST_LOOK_SECONDS = 0.004
WINDOW_CALLS = 64
# The longest calls of a window are ignored: a first call imports and compiles, and in a later one another process may
# have had the core.
IGNORED_CALLS = 2


class SlowParserDetector:
    """Averages the calls of a parser in windows of 64, without the longest two of each window.

    The first window is looked at after each call, so that a slow parser is found early. A later one is looked at when
    it is full, so that a few slow calls in a long run do not move a quick parser.
    """

    def __init__(self) -> None:
        self._is_first_window = True
        self._calls = 0
        self._total_seconds = self._longest = self._second_longest = 0.0

    @property
    def usual_seconds(self) -> float:
        """The average of this window's calls without the longest two; 0 before the third call."""
        return self._total_seconds / (self._calls - IGNORED_CALLS) if self._calls > IGNORED_CALLS else 0.0

    def add_call(self, seconds: float) -> bool:
        """Add a call that took `seconds`; returns whether the calls are too long for the event loop."""
        self._calls += 1
        # The total has all calls but the longest two: of these two and the new call, the shortest is added.
        shortest, self._second_longest, self._longest = sorted((seconds, self._second_longest, self._longest))
        self._total_seconds += shortest
        is_full = self._calls == WINDOW_CALLS
        is_due = is_full or (self._is_first_window and self._total_seconds >= FIRST_LOOK_SECONDS)
        is_slow = is_due and self.usual_seconds > MAX_SECONDS_IN_LOOP
        if is_full and not is_slow:
            self._is_first_window, self._calls = False, 0
            self._total_seconds = self._longest = self._second_longest = 0.0
        return is_slow
