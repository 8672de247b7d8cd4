"""Crash points: the steps of the protocol at which a test can end this very process, as a power cut would.

FAILPOINT="worker-1:committed" kills the child of that name when it reaches the step for the first time;
FAILPOINT="worker-1:committed:3" at the third time, and FAILPOINT="worker-1:committed:3:stop" freezes it there, until
somebody thaws it. A child that is started again is left alone. The steps, in order:

    made       opening: the run is in Postgres, not yet in Redis
    rebuilt    opening: the done set is filled from Postgres, which does not have the new epoch yet
    read       planner: a chunk is read, nothing of it is published
    published  planner: the chunk and its cursor are in Redis
    claimed    worker: a block is claimed, nothing of it is fetched
    fetched    worker: a response is there, nothing of it is stored
    copied     worker: pages and records are in an open transaction
    committed  worker: they are committed, Redis does not know
    completed  worker: Redis knows
    finished   worker: the run is complete in Postgres, Redis does not know
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TypeAlias

Failpoint: TypeAlias = Callable[[str], None]

FAILPOINTS = (
    *("made", "rebuilt"),
    *("read", "published"),
    *("claimed", "fetched", "copied", "committed", "completed", "finished"),
)


def no_failpoint(step: str) -> None:
    """What every process does at every step unless a test wants otherwise: nothing."""


def failpoint_at(wanted: str | None, who: str) -> Failpoint:
    """The function that each step of the child `who` calls with its name. Raises ValueError for an unknown step."""
    name, _, rest = (wanted or "").partition(":")
    if name != who:
        return no_failpoint
    step, times, how = (*rest.split(":"), "", "")[:3]
    if step not in FAILPOINTS:
        raise ValueError(f"FAILPOINT: no step {step!r}; known are {', '.join(FAILPOINTS)}")
    if how not in ("", "stop"):
        raise ValueError(f"FAILPOINT: a process can stop at a step, not {how!r}")
    left = int(times or 1)
    number = signal.SIGSTOP if how == "stop" else signal.SIGKILL

    def failpoint(reached: str) -> None:
        nonlocal left
        if reached == step:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), number)

    return failpoint
