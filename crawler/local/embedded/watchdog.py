"""Stops servers whose owner was killed: a small process outside of it, `python watchdog.py GRACE_SECONDS`.

Each line of its standard input is JSON, a list of [process id, [[signal, seconds], …]]: what it guards from now on. At
the end of the input the owner is gone. Then it waits while workers may still store what they have in flight, at most
GRACE_SECONDS, and sends the signals to each server that is left. It imports nothing of ours, so that it is small.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress

import psutil

GRACE_SECONDS = 12.0  # a little more than workers take to drain when their parent is gone


class Watchdog:
    """The owner's side: starts the process, tells it what to guard, and dismisses it."""

    def __init__(self, grace_seconds: float) -> None:
        self._process = subprocess.Popen(  # noqa: S603  (arguments of ours, and no shell)
            [sys.executable, "-P", __file__, str(grace_seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )

    def guard(self, servers: Mapping[int, Sequence[tuple[int, float]]]) -> None:
        """Guard these processes, and none that was named before; each with its signals to stop it."""
        assert self._process.stdin is not None
        line = json.dumps(
            [[pid, [[int(number), seconds] for number, seconds in signals]] for pid, signals in servers.items()]
        )
        with suppress(BrokenPipeError):  # somebody has killed it
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()

    def dismiss(self) -> None:
        """End it; the servers are left alone."""
        self._process.kill()
        self._process.communicate()


def main() -> None:
    """Guard until the end of the input, then stop what is left."""
    guarded: list[tuple[psutil.Process, list[tuple[int, float]]]] = []
    for line in sys.stdin:
        guarded = []
        for pid, signals in json.loads(line):
            with suppress(psutil.NoSuchProcess):
                guarded.append((psutil.Process(pid), signals))
    psutil.wait_procs([process for process, _ in guarded], timeout=float(sys.argv[1]))
    for process, signals in guarded:
        _stop(process, signals)


def _stop(process: psutil.Process, signals: Sequence[tuple[int, float]]) -> None:
    for number, seconds in signals:
        try:
            process.send_signal(number)  # not to another process that has the number by now
            process.wait(seconds)
        except psutil.TimeoutExpired:
            continue
        except psutil.NoSuchProcess:
            return


if __name__ == "__main__":
    main()
