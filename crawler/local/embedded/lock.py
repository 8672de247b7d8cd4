"""The lock of a data folder: one process at a time has its servers."""

from __future__ import annotations

import asyncio
import fcntl
import os

from coordinator.errors import DataInUse
from crawler.local.embedded.folder import FILE, WANTED, DataFolder, folder_errors

# How long another process may hold the lock before it counts as a run: `is_locked` holds it for a moment, and `status`
# or `sql` for a second or two when they start the servers for themselves.
LOCK_WAIT_SECONDS = 5.0
LOCK_POLL_SECONDS = 0.02


async def lock(data: DataFolder) -> int:
    """Lock the folder for this process; the lock ends with the returned descriptor or the process.

    While it waits, `is_locked` says so of WANTED, for a command that makes way. Raises DataInUse when another process
    holds it, ShardcrawlError when the folder cannot be used.
    """
    descriptor = data.open_file("lock", os.O_RDWR | os.O_CREAT)
    wanted = data.open_file(WANTED, os.O_RDWR | os.O_CREAT)
    try:
        with folder_errors(data.path):
            _lock_at_once(wanted, fcntl.LOCK_EX)
            polls = int(LOCK_WAIT_SECONDS / LOCK_POLL_SECONDS)
            while not _lock_at_once(descriptor, fcntl.LOCK_EX):
                polls -= 1
                if not polls:
                    holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
                    if holder == str(os.getpid()):
                        raise DataInUse(
                            f"this program uses {data.path} already: read what crawler.read returned to its end, "
                            "or delete it; or wait for the other call"
                        )
                    raise DataInUse(
                        f"another command (pid {holder}) is using {data.path}; "
                        "wait for it, or name another folder with --data"
                    )
                await asyncio.sleep(LOCK_POLL_SECONDS)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    finally:
        os.close(wanted)
    return descriptor


def is_locked(data: DataFolder, name: str = "lock") -> bool:
    """Whether a live process holds the folder's lock, or another one in it."""
    try:
        descriptor = os.open(name, os.O_RDONLY | FILE, dir_fd=data.descriptor)
    except OSError:
        return False
    try:
        return not _lock_at_once(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _lock_at_once(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
