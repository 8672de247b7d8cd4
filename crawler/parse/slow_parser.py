"""Pure: is a parser too slow for the event loop?"""

from __future__ import annotations

# When 64 lanes end at once, the loop is held up for 64 times this. A call through a child process costs 0.2 ms.
MAX_SECONDS_IN_LOOP = 0.001
# The first calls are not judged before they took this long together: so much is lost in the loop to a slow parser.
FIRST_LOOK_SECONDS = 0.004
WINDOW_CALLS = 64
# The first call imports and compiles, and now and then another process has the core. Neither says how slow a parser is.
IGNORED_CALLS = 2


class SlowParserDetector:
    """Looks at the calls of a parser, 64 at a time, without the longest two of them.

    The first window is looked at call by call, so that a slow parser is found after a few. Later windows are looked at
    when they are full, so that a coincidence in a long run does not move a quick parser.
    """

    def __init__(self) -> None:
        self._is_first_window = True
        self._calls = 0
        self._total_seconds = self._longest = self._second_longest = 0.0

    @property
    def usual_seconds(self) -> float:
        """The average of this window's calls without the longest two; 0 before the third call."""
        return self._total_seconds / (self._calls - IGNORED_CALLS) if self._calls > IGNORED_CALLS else 0.0

    def slow(self, seconds: float) -> bool:
        """Add a call that took so many seconds; True when the calls are too long for the loop."""
        self._calls += 1
        # The total has every call but the longest two: what falls out of these two is added.
        shortest, self._second_longest, self._longest = sorted((seconds, self._second_longest, self._longest))
        self._total_seconds += shortest
        is_full = self._calls == WINDOW_CALLS
        is_due = is_full or (self._is_first_window and self._total_seconds >= FIRST_LOOK_SECONDS)
        is_slow = is_due and self.usual_seconds > MAX_SECONDS_IN_LOOP
        if is_full and not is_slow:
            self._is_first_window, self._calls = False, 0
            self._total_seconds = self._longest = self._second_longest = 0.0
        return is_slow
