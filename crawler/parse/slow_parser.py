"""Is a parser too slow for the event loop? On a busy machine a quick one takes long, too: then its own time counts."""

from __future__ import annotations

import resource
from statistics import fmean
from time import perf_counter, thread_time
from typing import NamedTuple

# When 64 lanes end at once, the loop is held up for 64 times this. A call through a child process costs 0.2 ms.
MAX_SECONDS_IN_LOOP = 0.001
# A call in the loop that takes longer is interrupted, and begun anew in a child process; the worker keeps its lease.
MAX_CALL_SECONDS_IN_LOOP = 5.0
WINDOW_CALLS = 64
# The longest calls of a window are ignored: a first call imports and compiles, and in a later one another process may
# have had the core.
IGNORED_CALLS = 2
# When each of the first calls is too long, a window is not waited for: they hold up the loop. Their waits count when
# they are very long, since those of a worker that begins on a busy machine are long, too.
FIRST_CALLS = 5
VERY_LONG_SECONDS = 0.005
_THREAD: int | None = getattr(resource, "RUSAGE_THREAD", None)  # Linux has it


class Moment(NamedTuple):
    """A moment of this thread: the time, the CPU time that it has had, and how often it has waited by itself."""

    wall: float
    cpu: float
    waits: int | None


def thread_moment() -> Moment:
    """This moment. It takes about 2 µs."""
    waits = None if _THREAD is None else resource.getrusage(_THREAD).ru_nvcsw
    return Moment(perf_counter(), thread_time(), waits)


def call_seconds(began: Moment, ended: Moment) -> tuple[float, float]:
    """How long a call held up the loop, without the time in which other processes had the core; and its CPU time.

    A call that waited, for a file or in a sleep, took as long as the clock says.
    """
    wall, cpu = ended.wall - began.wall, ended.cpu - began.cpu
    return (wall if began.waits is None or began.waits != ended.waits else min(wall, cpu)), cpu


class SlowParserDetector:
    """Judges the calls of a parser in windows of 64.

    A window is slow when three quarters of its calls are, or by the average of their CPU time without the longest two:
    on a busy machine many calls wait for another thread that waits for the core, but not so many of them.
    Only a window that `is_close` finds a slow parser: its calls are measured by `call_seconds`. The first window is
    one, and each one that follows a window that seems slow by the clock, which is quicker to read.
    """

    def __init__(self) -> None:
        self.is_close = True
        self._seconds: list[float] = []
        self._cpu: list[float] = []

    @property
    def usual_seconds(self) -> float:
        """What a call of this window usually takes; 0 before the third call."""
        shortest = sorted(self._cpu)[:-IGNORED_CALLS]
        return max(sorted(self._seconds)[len(self._seconds) // 4], fmean(shortest)) if shortest else 0.0

    def add_call(self, seconds: float, cpu: float) -> bool:
        """Add a call, of a plain window by the clock alone; returns whether the calls are too long for the loop."""
        self._seconds.append(seconds)
        self._cpu.append(cpu)
        count = len(self._seconds)
        if count < WINDOW_CALLS:
            if not self.is_close or count < FIRST_CALLS:
                return False
            return min(self._cpu) > MAX_SECONDS_IN_LOOP or min(self._seconds) > VERY_LONG_SECONDS
        is_slow = self.usual_seconds > MAX_SECONDS_IN_LOOP
        if is_slow and self.is_close:
            return True
        self.is_close = is_slow
        self._seconds, self._cpu = [], []
        return False
