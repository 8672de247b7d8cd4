"""Tells systemd that a command has begun, and again and again that its processes move: `Type=notify`, `WatchdogSec=`.

The protocol is that of sd_notify(3): datagrams to the socket that the environment names. Without one nothing is told.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress


async def notify_systemd(environ: Mapping[str, str], is_well: Callable[[], bool]) -> None:
    """Tell it until cancelled, or for ever where there is nothing to tell; while `is_well` says no, nothing is told.

    `environ` is that of the command. When nothing came for `WatchdogSec=`, systemd starts the service again.
    """
    if address := environ.get("NOTIFY_SOCKET", ""):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            _tell(channel, address, b"READY=1")
            text, own_pid = environ.get("WATCHDOG_USEC", ""), str(os.getpid())
            seconds = int(text) / 1_000_000 if text.isdecimal() else 0.0
            while seconds > 0 and environ.get("WATCHDOG_PID", own_pid) == own_pid:
                if is_well():
                    _tell(channel, address, b"WATCHDOG=1")
                await asyncio.sleep(seconds / 2)
    await asyncio.get_running_loop().create_future()


def _tell(channel: socket.socket, address: str, what: bytes) -> None:
    with suppress(OSError):  # a full or missing socket is no reason to stop the work
        channel.sendto(what, socket.MSG_DONTWAIT, f"\0{address[1:]}" if address.startswith("@") else address)
