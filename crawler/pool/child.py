"""The child process: `python -m crawler.pool.child FD` turns tasks from a socket into results, one after another."""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
import threading
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, BinaryIO

from coordinator.errors import ShardcrawlError
from crawler.pool.protocol import LENGTH, OUT_OF_MEMORY, ChildSetup, frame, unpickled
from crawler.telemetry import logs
from crawler.telemetry.pulse import exit_when_closed, kill_after

# How long a task may go on after the worker has closed its end of the socket.
ORPHAN_SECONDS = 1.0
# How libraries are told how many threads to start. By default one a core, and several processes would fight for these.
THREAD_COUNTS = (
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"),
    *("NUMEXPR_NUM_THREADS", "RAYON_NUM_THREADS", "POLARS_MAX_THREADS"),
)


def main() -> None:
    """Serve until the worker closes its end or dies. Signals that ask for a drain are ignored: the worker drains."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    for name in THREAD_COUNTS:
        os.environ.setdefault(name, "1")  # before the user's module imports any of them
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)
    # A process that the user's code forks would keep the socket open, and nobody would see that this one has ended.
    os.register_at_fork(after_in_child=lambda: os.close(channel.detach()))
    threading.Thread(target=exit_when_closed, args=(channel, ORPHAN_SECONDS, 0), daemon=True).start()
    try:
        _serve(channel.makefile("rb"), channel)
    except (BrokenPipeError, ConnectionResetError):
        return
    except MemoryError:
        sys.exit(OUT_OF_MEMORY)


def _serve(incoming: BinaryIO, channel: socket.socket) -> None:
    setup: ChildSetup = _receive(incoming)
    logs.configure(setup.name, setup.log_level, setup.line_format, in_thread=True)
    logs.name_run(setup.run)
    try:
        handle = resolve_name(setup.handler)(setup.value)
    except ShardcrawlError as error:
        channel.sendall(frame(str(error)))
        return
    if setup.memory is not None:
        _bound_memory(setup.memory)
    channel.sendall(frame(None))
    while (task := _receive(incoming)) is not None:
        kill_after(setup.seconds + ORPHAN_SECONDS)  # a worker that lives is sooner
        channel.sendall(frame(handle(task)))


def _bound_memory(more: int) -> None:
    """Let this process take so many bytes more than it has; where there is no /proc, as many as it likes."""
    try:
        pages = int(Path("/proc/self/statm").read_bytes().split()[0])
    except OSError:
        return
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    bound = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (bound if most == resource.RLIM_INFINITY else min(bound, most), most))


def _receive(incoming: BinaryIO) -> Any:
    """The next frame's value, None when the other end is closed."""
    head = incoming.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    content = incoming.read(length)
    return unpickled(content) if len(content) == length else None


if __name__ == "__main__":
    main()
