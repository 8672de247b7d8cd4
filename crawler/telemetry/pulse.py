"""The pulse of a process: it tells its parent again and again that its event loop runs, and ends when it cannot.

Each beat is one byte, which says for how many seconds it holds. A parent kills a child whose last beat no longer holds.
The kernel does the same where there is no parent any more: it ends a process that used so much of the processor without
a beat. So a call of C that holds Python's lock for ever is ended too, while a process that somebody stopped, or that
gets no processor, is not.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from contextlib import suppress
from select import poll
from time import sleep

from coordinator.tasks import until_tick

BEAT_INTERVAL_SECONDS = 1.0
# How long a beat holds. A worker whose loop stands still for so long has lost its lease long ago.
BEAT_HOLDS_SECONDS = 15
# The kernel ends a process that has used the processor for this share of it: on a busy machine that takes longer.
PROCESSOR_SHARE = 2 / 3
_BEGUN = 0  # instead of seconds


class Pulse:
    """What a process tells its parent over `channel`; without one nothing is told, and the kernel watches nothing."""

    def __init__(self, channel: socket.socket | None = None) -> None:
        self._channel = channel

    def start(self) -> None:
        """Beat as long as the running event loop runs."""
        self.beat()
        asyncio.get_running_loop().call_later(until_tick(BEAT_INTERVAL_SECONDS), self.start)

    def beat(self, seconds: int = BEAT_HOLDS_SECONDS) -> None:
        """Tell that the loop runs; the next beat may be `seconds` (at most 255) away."""
        if self._channel is not None:
            self._send(seconds)
            kill_after(seconds * PROCESSOR_SHARE)

    def begun(self) -> None:
        """Tell that the process is over its start, and at work. This is a beat too."""
        self._send(_BEGUN)
        self.beat()

    def _send(self, byte: int) -> None:
        if self._channel is not None:
            with suppress(OSError):  # the parent is gone, or was stopped and does not read
                self._channel.send(bytes([byte]), socket.MSG_DONTWAIT)


class PulseReader:
    """What a parent knows of the pulse of one child. A child that never beat is not silent: it may be starting."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._seconds_left: int | None = None
        self._was_stopped = False
        self.holds_seconds = BEAT_HOLDS_SECONDS
        self.begun = False

    def tick(self) -> bool:
        """Call it once a second; returns False when the last beat no longer holds.

        Calls are counted, and not the clock: so a parent that was stopped itself blames nobody.
        """
        if not self.read() and self._seconds_left is not None:
            self._seconds_left -= 1
        return self._seconds_left is None or self._seconds_left >= 0

    def read(self) -> bool:
        """Read what has come; returns whether a beat was in it."""
        received = b""
        with suppress(OSError):
            received = self._channel.recv(4096, socket.MSG_DONTWAIT)
        self.begun = self.begun or _BEGUN in received
        if beats := received.replace(bytes([_BEGUN]), b""):
            self.holds_seconds = self._seconds_left = beats[-1]
            self._was_stopped = False
        return bool(beats)

    @property
    def is_silent(self) -> bool:
        """Whether the loop seems to stand still: half of the time for which the last beat holds is over."""
        return self._was_stopped or (self._seconds_left is not None and self._seconds_left < self.holds_seconds / 2)

    def grant(self) -> None:
        """Count from the beginning, for a child that could not beat because somebody stopped it."""
        self._seconds_left, self._was_stopped = self.holds_seconds, True


def kill_after(seconds: float) -> None:
    """Let the kernel end this process when it has used the processor for so long; each call counts from its moment."""
    signal.setitimer(signal.ITIMER_PROF, seconds)


def exit_when_closed(channel: socket.socket, seconds: float, code: int) -> None:
    """Block until the other end is closed, and exit `seconds` later, whatever other threads do.

    Run it in a thread. A call of C that holds Python's lock holds it up too: see `kill_after`.
    """
    hang_up = poll()
    hang_up.register(channel, 0)  # reports nothing but a hang-up
    hang_up.poll()
    sleep(seconds)
    os._exit(code)
