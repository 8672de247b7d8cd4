"""Run a command and measure wall time, CPU and memory of its processes."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

import psutil

from coordinator.errors import ShardcrawlError

POLL_SECONDS = 0.5


class ContenderFailed(ShardcrawlError):
    """A contender ended with an error, took too long, or did not store what it should."""


@dataclass(frozen=True, slots=True)
class Spent:
    """Wall and CPU seconds of a command with all its descendants, and the most memory (MB) that they had together."""

    out: str
    seconds: float
    cpu: float
    memory: float


def run(
    arguments: Sequence[str],
    environ: Mapping[str, str],
    folder: Path,
    *,
    deadline_seconds: float,
    poll_seconds: float = POLL_SECONDS,
    program: Sequence[str] = (sys.executable, "-m"),
) -> Spent:
    """Run `python -m ARGUMENTS`, or another program with them, to its end.

    CPU is the kernel's sum over all descendants that were waited for. Memory is read every `poll_seconds`; each time
    goes through all processes of the machine, which takes CPU too. Raises ContenderFailed when it fails or has not
    ended after `deadline_seconds`.
    """
    what = arguments[0]
    out, err = folder / "out.txt", folder / "err.txt"
    with out.open("w") as stdout, err.open("w") as stderr:
        began = monotonic()
        process = subprocess.Popen(
            [*program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            cwd=folder,
            env=environ,
        )
        root, most = psutil.Process(process.pid), 0
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            if monotonic() - began > deadline_seconds:
                end(root)
                process.returncode = os.wait4(process.pid, 0)[1]
                raise ContenderFailed(f"{what} is not over after {deadline_seconds:.0f} s; it said: {_last_words(err)}")
            most = max(most, memory(root))
            sleep(poll_seconds)
        seconds = monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise ContenderFailed(f"{what} ended with {process.returncode}; it said: {_last_words(err)}")
    return Spent(out.read_text(), seconds, usage.ru_utime + usage.ru_stime, most / 1e6)


def stop_on_sigterm() -> None:
    """Handle SIGTERM like Ctrl-C, so that servers are stopped and the folder is removed."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _last_words(log: Path) -> str:
    return " ".join(log.read_text().split())[-500:] or "nothing"


def memory(root: psutil.Process) -> int:
    """Resident bytes of a process and its descendants."""
    total = 0
    with suppress(psutil.Error):
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.Error):
                total += process.memory_info().rss
    return total


def cpu(roots: Sequence[int]) -> float:
    """CPU seconds so far of these processes and their descendants, including ended ones."""
    total = 0.0
    for pid in roots:
        with suppress(psutil.Error):
            root = psutil.Process(pid)
            total += sum(root.cpu_times()[:4])  # its own, and those of children that were waited for
            for process in root.children(recursive=True):
                with suppress(psutil.Error):
                    total += sum(process.cpu_times()[:4])
    return total


def end(root: psutil.Process) -> None:
    """Send SIGKILL to a process that we started, and to all its descendants."""
    with suppress(psutil.Error):
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.Error):
                process.kill()


def output_folder(text: str) -> Path:
    """The folder of `--output`, made now: an hour of measuring must not end with a folder that is not there.

    Raises argparse.ArgumentTypeError.
    """
    folder = Path(text)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text} cannot be made: {error.strerror}; name another folder") from error
    return folder
