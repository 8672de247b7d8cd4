"""The data folder: its lock, the folder of its sockets, and the file that names the servers running in it."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from coordinator.errors import DataInUse, ShardcrawlError

MAX_SOCKET_PATH_BYTES = 103  # on macOS; Linux allows 107
LONGEST_SOCKET_NAME = "postgres/.s.PGSQL.5432"
SERVICES_FILE = "services.json"
# How long another process may hold the lock before it counts as a run: `is_locked` holds it for a moment, and `status`
# or `sql` for a second or two when they start the servers for themselves.
LOCK_WAIT_SECONDS = 5.0
LOCK_POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Services:
    """The addresses of the servers, for redis-py and asyncpg; None for a service that is not started here."""

    redis_url: str | None
    database_url: str | None


@dataclass(frozen=True, slots=True)
class RunningServers:
    """What runs in a data folder: addresses, and each server's process id by its name."""

    services: Services
    pids: Mapping[str, int]


@contextmanager
def folder_errors(data: Path) -> Iterator[None]:
    """Turn an OSError into a ShardcrawlError about the data folder."""
    try:
        yield
    except OSError as error:
        raise ShardcrawlError(
            f"cannot use {data}: {error.strerror or error} ({error.filename or data}); "
            "name a folder that you can write to with --data"
        ) from error


async def lock(data: Path) -> int:
    """Make the folder and lock it for this process; the lock ends with the returned descriptor or the process.

    Raises DataInUse when another process holds it, ShardcrawlError when the folder cannot be used.
    """
    descriptor = _open_lock(data)
    try:
        with folder_errors(data):
            polls = int(LOCK_WAIT_SECONDS / LOCK_POLL_SECONDS)
            while not _lock_at_once(descriptor, fcntl.LOCK_EX):
                polls -= 1
                if not polls:
                    holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
                    raise DataInUse(
                        f"another command (pid {holder}) is using {data}; "
                        "wait for it, or name another folder with --data"
                    )
                await asyncio.sleep(LOCK_POLL_SECONDS)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _open_lock(data: Path) -> int:
    with folder_errors(data):
        data.mkdir(parents=True, exist_ok=True)
        return os.open(data / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def is_locked(data: Path) -> bool:
    """Whether a live process holds the folder's lock."""
    try:
        descriptor = os.open(data / "lock", os.O_RDONLY | os.O_CLOEXEC)
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


def write_services_file(data: Path, servers: RunningServers) -> None:
    """Write the file that names the running servers. A reader finds the old file or the new one, never a part of it."""
    text = json.dumps(
        {
            "owner": os.getpid(),
            "pids": dict(servers.pids),
            "redis_url": servers.services.redis_url,
            "database_url": servers.services.database_url,
        },
        indent=1,
    )
    with folder_errors(data):
        fresh = data / f"{SERVICES_FILE}.new"
        fresh.write_text(text + "\n", encoding="utf-8")
        fresh.replace(data / SERVICES_FILE)


def read_services_file(data: Path) -> RunningServers | None:
    """The servers that the file names; None when it is missing or cannot be read."""
    try:
        found = json.loads((data / SERVICES_FILE).read_text(encoding="utf-8"))
        return RunningServers(Services(found["redis_url"], found["database_url"]), dict(found["pids"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remove_services_file(data: Path) -> None:
    """Remove the file, because no server runs in the folder."""
    with suppress(OSError):
        (data / SERVICES_FILE).unlink()


def sockets(data: Path, temporary: Path, uid: int) -> Path:
    """The folder of the sockets: `data/sockets`, or one below `temporary` where a socket cannot have that path.

    A socket's path must not be too long, nor have characters that mean something to the servers or in their addresses.
    Raises ShardcrawlError when neither folder will do.
    """
    inside = data / "sockets"
    digest = hashlib.blake2b(os.fsencode(data), digest_size=8).hexdigest()
    short = temporary / f"shardcrawl-{uid}-{digest}"
    for folder in (inside, short):
        path = str(folder / LONGEST_SOCKET_NAME)
        if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES and path.isprintable() and "," not in path:
            return folder
    raise ShardcrawlError(f"no folder for sockets: {inside} and {short} are too long; set TMPDIR to a shorter folder")


def make_private(folder: Path, mode: int) -> None:
    """Make the folder with this mode, or use it when it is ours already.

    Raises ShardcrawlError when it belongs to another user, or others can write to it.
    """
    with folder_errors(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022
        if not ours:
            raise ShardcrawlError(f"{folder} is not a folder of this user alone; look at it and remove it")
        folder.chmod(mode)
