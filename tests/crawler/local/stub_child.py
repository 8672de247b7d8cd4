"""A child that goes wrong in the way that its name says: `python -m tests.crawler.local.stub_child FD NAME`."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import sys
import threading
import time

from crawler.telemetry.pulse import Pulse, exit_when_closed


def main() -> None:
    channel, name = socket.socket(fileno=int(sys.argv[1])), sys.argv[2]
    channel.makefile("rb").readline()
    threading.Thread(target=exit_when_closed, args=(channel, 0.1, 130), daemon=True).start()
    pulse = Pulse(channel)
    pulse.beat(1)
    if name == "stands-still":
        sum(itertools.repeat(0))  # in C, which holds the lock of Python: no other thread and no signal handler runs
    if name == "waits-for-ever":
        threading.Event().wait()
    if name == "fails-at-work":
        pulse.begun()
        sys.exit(1)
    if name == "ignores":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.stderr.write("ignores SIGTERM\n")
    if name == "is-stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    while True:
        pulse.beat(1)
        time.sleep(0.2)


if __name__ == "__main__":
    main()
