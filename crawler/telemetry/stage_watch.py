"""Looks at a worker twice a second: how busy its stages are, and what holds it up.

The stages themselves count nothing for that, so it costs nothing for a key.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp
from pathlib import Path
from time import monotonic, thread_time
from typing import Protocol

from coordinator.stages.constraint import Constraint, Held
from coordinator.stages.figures import StageFigures, WorkerFigures
from coordinator.tasks import until_tick
from crawler.telemetry.timings import Timings

LOOK_INTERVAL_SECONDS = 0.5
# What was seen so long ago counts for a third (1/e) of what is seen now.
AVERAGE_SECONDS = 5.0
# What weighs less is forgotten: so few upstreams are kept, however many there are.
LEAST_WEIGHT = 0.02
# The rate is that of the last seconds; where they had few keys, that of a longer time.
RATE_SECONDS, LONGEST_RATE_SECONDS, FEW_KEYS = 10.0, 120.0, 20
# An event loop that wants the processor for this share of the time is what holds its worker up.
BUSY_LOOP = 0.8
# Linux: nanoseconds for which this thread had the processor, and for which it waited for one.
THREAD_TIMES = Path("/proc/thread-self/schedstat")
# When this share of the lanes has a request in flight, or a response in the parser, these hold the worker up.
BUSY_LANES, PARSING_LANES = 0.9, 0.5


class WorkingStage(Protocol):
    """A transform: `busy_seconds` is the time that its `processes` have worked, all together."""

    name: str
    busy_seconds: float
    rows_waiting: int

    @property
    def processes(self) -> int:
        """How many processes it has."""
        ...

    @property
    def busy(self) -> int:
        """How many of them have a batch."""
        ...


@dataclass(frozen=True, slots=True)
class Look:
    """What a worker does at one moment.

    `fetching` of its `lanes` have a request in flight. `requests` wait for a lane; the longest queue is `held`: by
    what, and at which upstream. `parsing` responses are in the `parsers`, processes beside the loop (0: it parses
    itself). `pages` wait for their commit; with `batch_full`, or `memory_short`, lanes take no request. `feeding` is
    what the intake waits for: "Redis", "keys", or nothing.
    """

    fetching: int = 0
    lanes: int = 1
    requests: int = 0
    held: tuple[Constraint, str] | None = None
    parsing: int = 0
    parsers: int = 0
    pages: int = 0
    batch_full: bool = False
    memory_short: bool = False
    feeding: str = ""
    transforms: Sequence[WorkingStage] = ()


def held_by(look: Look, flushing: str = "", loop: float = 0.0, parse: float = 0.0) -> tuple[Constraint, str] | None:
    """What holds a worker up: the constraint, and the name of an upstream or a transform; None when nothing does.

    `flushing` is the stage of the flush that is under way, "commit" or "complete". `loop` is the share of the time for
    which the event loop wants the processor, `parse` that which the parser takes.
    """
    if loop >= BUSY_LOOP:
        return (Constraint.PARSE if not look.parsers and 2 * parse >= loop else Constraint.PROCESSOR), ""
    if look.batch_full:
        if behind := next((one.name for one in look.transforms if one.rows_waiting), None):
            return Constraint.TRANSFORM, behind
        return ((Constraint.POSTGRES if flushing == "commit" else Constraint.REDIS), "") if flushing else None
    if look.memory_short:
        return Constraint.MEMORY, ""
    if look.fetching >= BUSY_LANES * look.lanes:
        return Constraint.FETCH, ""
    if look.parsing >= PARSING_LANES * look.lanes:
        return Constraint.PARSE, ""
    if look.held is not None or look.requests:
        return look.held
    if behind := next((one.name for one in look.transforms if one.rows_waiting and one.busy >= one.processes), None):
        return Constraint.TRANSFORM, behind
    if look.feeding:
        return (Constraint.REDIS if look.feeding == "Redis" else Constraint.KEYS), ""
    return None


class StageWatch:
    """Watches one worker: `look` looks at it, and `timings` are its own. `clock` counts seconds."""

    def __init__(self, look: Callable[[], Look], timings: Timings, *, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._look = look
        self._timings = timings
        self._averages: dict[str, float] = {}
        self._held: dict[tuple[Constraint, str], float] = {}
        self._totals: dict[str, float] = {}
        self._last_look = Look()
        self._last_at = clock()
        self._counts: deque[tuple[float, int]] = deque([(self._last_at, 0)])

    async def watch(self) -> None:
        """Look again and again until cancelled."""
        while True:
            self.sample(wanted_seconds())
            await asyncio.sleep(until_tick(LOOK_INTERVAL_SECONDS))

    def sample(self, loop_seconds: float) -> None:
        """Look once. `loop_seconds` is for how long the loop has wanted the processor in all."""
        look, now = self._look(), self._clock()
        seconds = now - self._last_at
        if seconds <= 0:
            return
        self._last_look, self._last_at = look, now
        old = exp(-seconds / AVERAGE_SECONDS)
        totals = {"loop": loop_seconds, "parse": self._timings.parse.seconds}
        totals |= {f"transform {one.name}": one.busy_seconds for one in look.transforms}
        shares = {name: max(0.0, total - self._totals.get(name, total)) / seconds for name, total in totals.items()}
        self._totals = totals
        flushing = self._timings.flushing
        held = held_by(look, flushing, shares["loop"], shares["parse"])
        waits = held is not None and held[0] in (Constraint.RATE, Constraint.CONCURRENCY, Constraint.PAUSE)
        shares |= {"wait": float(waits), "fetch": float(look.fetching)}
        shares |= {stage: float(flushing == stage) for stage in ("commit", "complete")}
        for name, share in shares.items():
            self._averages[name] = old * self._averages.get(name, 0.0) + (1 - old) * share
        self._held = {what: old * weight for what, weight in self._held.items() if old * weight >= LEAST_WEIGHT}
        if held is not None:
            self._held[held] = self._held.get(held, 0.0) + 1 - old

    def figures(self) -> WorkerFigures:
        """What the worker did in the last seconds."""
        look = self._last_look
        sizes = [("wait", 1, look.requests), ("fetch", look.lanes, 0), ("parse", max(1, look.parsers), look.parsing)]
        sizes += [(f"transform {one.name}", one.processes, one.rows_waiting) for one in look.transforms]
        sizes += [("commit", 1, look.pages), ("complete", 1, 0), ("loop", 1, 0)]
        stages = tuple(
            StageFigures(name, min(self._averages.get(name, 0.0), size), size, waiting) for name, size, waiting in sizes
        )
        return WorkerFigures(self._rate(), stages, tuple(Held(*what, weight) for what, weight in self._held.items()))

    def _rate(self) -> float:
        """Keys a second lately."""
        now, counts, keys = self._clock(), self._counts, self._timings.keys
        counts.append((now, keys))
        while len(counts) > 2 and now - counts[1][0] >= RATE_SECONDS:
            if keys - counts[1][1] < FEW_KEYS and now - counts[1][0] < LONGEST_RATE_SECONDS:
                break
            counts.popleft()
        since, before = counts[0]
        return (keys - before) / (now - since) if now > since else 0.0


def wanted_seconds() -> float:
    """For how long this thread had the processor, or waited for it; not the latter where the kernel does not say it."""
    try:
        with THREAD_TIMES.open("rb", buffering=0) as file:  # with a buffer it takes three times as long
            ran, waited, _ = file.read(100).split()
    except (OSError, ValueError):
        return thread_time()
    return (int(ran) + int(waited)) / 1_000_000_000
