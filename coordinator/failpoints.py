"""Failpoints: named steps at which a test can kill or freeze this process, as a power cut would.

FAILPOINT="worker-1:committed" kills the child of that name when it reaches the step for the first time;
FAILPOINT="worker-1:committed:3" the third time; FAILPOINT="worker-1:committed:3:stop" freezes it there until it gets
SIGCONT. A child that is started again has no failpoint. The command itself, which opens the run, has the name
"opening". The steps, in order:

    made       opening: the run is in Postgres, not yet in Redis
    rebuilt    opening: the done set is filled from Postgres, which does not have the new epoch yet
    read       planner: a chunk is read, nothing of it is published
    published  planner: the chunk and its cursor are in Redis
    found      planner: keys that pages have named are read from Postgres, none of them is published
    followed   planner: they are published
    claimed    worker: a block is claimed, nothing of it is fetched
    fetched    worker: a response is there, nothing of it is stored
    copied     worker: pages and records are in an open transaction
    committed  worker: they are committed, Redis does not know
    named      worker: the keys that the pages have named are published, or left in the frontier
    completed  worker: Redis knows
    counted    worker: the run's final counts are in Postgres, and nobody has decided whether it is published
    attached   worker, publish: the run's tables are partitions, and readers do not see it yet
    merged     worker: records of the run before that stay are in an open transaction, which publishes the run
    finished   worker: the run is complete in Postgres, Redis does not know

The commands that change a run have their own names, and these steps:

    cancelled  cancel: Postgres says so, nobody who works on the run knows
    drained    cancel: nobody works on the run, nothing of it is deleted
    erased     cancel: Redis has nothing of the run any more
    unlisted   prune, cancel --drop: the run's row is deleted, its tables are there
    detached   prune, cancel --drop: one of its tables is no partition any more, and is there
    dropped    prune, cancel --drop: its tables are dropped, Redis may have something of it
    filed      export: a file is in its place, and the list of its files does not have it
    listed     export: the list has it
    whole      export: the manifest is there, the list of an unfinished export too

An export has the name "export" in every command.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TypeAlias

Failpoint: TypeAlias = Callable[[str], None]

FAILPOINTS = (
    "made",
    "rebuilt",
    "read",
    "published",
    "found",
    "followed",
    "claimed",
    "fetched",
    "copied",
    "committed",
    "named",
    "completed",
    "counted",
    "attached",
    "merged",
    "finished",
    "cancelled",
    "drained",
    "erased",
    "unlisted",
    "detached",
    "dropped",
    "filed",
    "listed",
    "whole",
)


def no_failpoint(step: str) -> None:
    """Do nothing. Every process has this failpoint unless a test gives it another one."""


def failpoint_at(setting: str | None, process: str) -> Failpoint:
    """The function that the process of this name calls with each step that it reaches.

    `setting` is the value of FAILPOINT. Raises ValueError when it names an unknown step or action.
    """
    name, _, rest = (setting or "").partition(":")
    if name != process:
        return no_failpoint
    step, times, action = (*rest.split(":"), "", "")[:3]
    if step not in FAILPOINTS:
        raise ValueError(f"FAILPOINT: no step {step!r}; known are {', '.join(FAILPOINTS)}")
    if action not in ("", "stop"):
        raise ValueError(f"FAILPOINT: a process can stop at a step, not {action!r}")
    times_left = int(times or 1)
    signal_number = signal.SIGSTOP if action == "stop" else signal.SIGKILL

    def failpoint(reached: str) -> None:
        nonlocal times_left
        if reached == step:
            times_left -= 1
            if times_left == 0:
                os.kill(os.getpid(), signal_number)

    return failpoint
