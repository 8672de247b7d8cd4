"""Pure: is a parser too slow for the event loop?"""

from __future__ import annotations

# Seconds. 64 lanes that end at once hold the loop up for 64 times that; a process of its own costs 0.2 ms a call.
QUICK = 0.001
# Seconds spent in the first calls before they are judged: so much is lost in the loop when a parser is slow.
ENOUGH = 0.004
WINDOW = 64
# The first call imports and compiles, and now and then another process has the core: that tells nothing of a parser.
SPARED = 2


class SlowParserDetector:
    """Looks at window after window of calls, each without its longest two.

    The first window is judged as it goes, so that a slow parser is found after a few calls; the later ones at their
    ends, so that no coincidence in a long run moves a quick one.
    """

    def __init__(self) -> None:
        self._first = True
        self._calls = 0
        self._spent = self._longest = self._second = 0.0

    @property
    def usual(self) -> float:
        """Seconds that a call of this window takes, on average, the longest two left out; 0 before the third."""
        return self._spent / (self._calls - SPARED) if self._calls > SPARED else 0.0

    def slow(self, seconds: float) -> bool:
        """Take the seconds of one more call; True when the calls are too long for the loop."""
        self._calls += 1
        # Only what the longest two push out counts.
        shortest, self._second, self._longest = sorted((seconds, self._second, self._longest))
        self._spent += shortest
        over = self._calls == WINDOW
        slow = (over or (self._first and self._spent >= ENOUGH)) and self.usual > QUICK
        if over and not slow:
            self._first, self._calls = False, 0
            self._spent = self._longest = self._second = 0.0
        return slow
