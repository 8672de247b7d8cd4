"""The data folder: who may use it, where its sockets are, and the record of what runs in it."""

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

SOCKET_PATH_BYTES = 103  # what macOS takes; Linux takes 107
LONGEST_SOCKET = "postgres/.s.PGSQL.5432"


@dataclass(frozen=True, slots=True)
class Services:
    """Where the servers answer, for redis-py and asyncpg; None for a service that was not asked for."""

    redis_url: str | None
    database_url: str | None


@dataclass(frozen=True, slots=True)
class Record:
    """What runs in a data folder: the urls, and each server's process id by its name."""

    services: Services
    pids: Mapping[str, int]


@contextmanager
def usable(data: Path) -> Iterator[None]:
    """Turn a refusal of the file system into one line about the data folder."""
    try:
        yield
    except OSError as error:
        raise ShardcrawlError(
            f"cannot use {data}: {error.strerror or error} ({error.filename or data}); "
            "name a folder that you can write to with --data"
        ) from error


async def lock(data: Path, *, looks: int = 250) -> int:
    """Make the folder and lock it for this process; the lock ends with the returned descriptor or the process.

    Raises DataInUse when another process holds it, ShardcrawlError when the folder cannot be used.
    """
    descriptor = _open_lock(data)
    try:
        with usable(data):
            # A reader in `held` has the lock for an instant, and `status` or `sql`, which start the servers for
            # themselves when nobody has, for a second or two: hence five seconds of tries.
            while not _locked(descriptor, fcntl.LOCK_EX):
                if not (looks := looks - 1):
                    holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
                    raise DataInUse(
                        f"another run (pid {holder}) is using {data}; wait for it, or name another folder with --data"
                    )
                await asyncio.sleep(0.02)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _open_lock(data: Path) -> int:
    with usable(data):
        data.mkdir(parents=True, exist_ok=True)
        return os.open(data / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def held(data: Path) -> bool:
    """Whether a live process holds the folder's lock."""
    try:
        descriptor = os.open(data / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _locked(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _locked(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_record(data: Path, record: Record) -> None:
    """Replace the folder's record, whole or not at all."""
    text = json.dumps(
        {
            "owner": os.getpid(),
            "pids": dict(record.pids),
            "redis_url": record.services.redis_url,
            "database_url": record.services.database_url,
        },
        indent=1,
    )
    with usable(data):
        fresh = data / "services.json.new"
        fresh.write_text(text + "\n", encoding="utf-8")
        fresh.replace(data / "services.json")


def read_record(data: Path) -> Record | None:
    """The folder's record, None when there is none that can be read."""
    try:
        found = json.loads((data / "services.json").read_text(encoding="utf-8"))
        return Record(Services(found["redis_url"], found["database_url"]), dict(found["pids"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remove_record(data: Path) -> None:
    """Forget what runs in the folder."""
    with suppress(OSError):
        (data / "services.json").unlink()


def sockets(data: Path, temporary: Path, uid: int) -> Path:
    """The folder of the sockets: `data/sockets`, or one below `temporary` where that path cannot carry a socket.

    It cannot when a socket's path would be too long, or holds what the servers or the urls read as punctuation.
    """
    inside = data / "sockets"
    digest = hashlib.blake2b(os.fsencode(data), digest_size=8).hexdigest()
    short = temporary / f"shardcrawl-{uid}-{digest}"
    for folder in (inside, short):
        path = str(folder / LONGEST_SOCKET)
        if len(os.fsencode(path)) <= SOCKET_PATH_BYTES and path.isprintable() and "," not in path:
            return folder
    raise ShardcrawlError(f"no folder for sockets: {inside} and {short} are too long; set TMPDIR to a shorter folder")


def make_private(folder: Path, mode: int) -> None:
    """Make the folder with this mode, or take it over when it is ours already; refuse anybody else's."""
    with usable(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022
        if not ours:
            raise ShardcrawlError(f"{folder} is not a folder of this user alone; look at it and remove it")
        folder.chmod(mode)
