"""Is a parser too slow for the event loop? On a busy machine a quick one takes long, too: then its own time counts."""

from __future__ import annotations

import resource
from time import perf_counter, thread_time
from typing import NamedTuple

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
_THREAD: int | None = getattr(resource, "RUSAGE_THREAD", None)  # Linux has it


class Moment(NamedTuple):
    """A moment of this thread: the time, the CPU time that it has had, and how often it has waited by itself."""

    wall: float
    cpu: float
    waits: int | None


def moment() -> Moment:
    """This moment. It takes about 2 µs."""
    waits = None if _THREAD is None else resource.getrusage(_THREAD).ru_nvcsw
    return Moment(perf_counter(), thread_time(), waits)


def own_seconds(began: Moment, ended: Moment) -> float:
    """How long a call took, without the time in which other processes had the core.

    A call that waited, for a file or in a sleep, took as long as the clock says: so long it held up the loop.
    """
    wall = ended.wall - began.wall
    if began.waits is None or began.waits != ended.waits:
        return wall
    return min(wall, ended.cpu - began.cpu)


class SlowParserDetector:
    """Averages the calls of a parser in windows of 64, without the longest two of each window.

    Only a window that `is_close` finds a slow parser. Its calls are measured by their `own_seconds`, and it is looked
    at after each of them, so that a slow parser is found early. The first window is one, and each one that follows a
    window whose calls seem slow by the clock, which is quicker to read; that one is looked at when it is full, so that
    a few slow calls in a long run do not move a quick parser.
    """

    def __init__(self) -> None:
        self.is_close = True
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
        is_due = is_full or (self.is_close and self._total_seconds >= FIRST_LOOK_SECONDS)
        seems_slow = is_due and self.usual_seconds > MAX_SECONDS_IN_LOOP
        if seems_slow and self.is_close:
            return True
        if is_full:
            self.is_close, self._calls = seems_slow, 0
            self._total_seconds = self._longest = self._second_longest = 0.0
        return False
