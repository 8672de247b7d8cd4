"""The data folder: whether it is ours, the folder of its sockets, and the file that names its servers.

What is in it decides what our servers do, so it must be ours: our user's, not writable for others, without links. It is
opened once, and everything in it is reached through that descriptor, so that nobody can put another in its place.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from coordinator.errors import ShardcrawlError
from crawler.local.embedded.account import owners_of_server_folders

MAX_SOCKET_PATH_BYTES = 103  # on macOS; Linux allows 107
LONGEST_SOCKET_NAME = "postgres/.s.PGSQL.5432"
SERVICES_FILE = "services.json"
SERVER_FOLDERS = ("redis", "postgres")
NEW_CLUSTER = "postgres.new-"
WANTED = "wanted"
OUR_ENTRIES = (
    *("lock", WANTED, SERVICES_FILE, f"{SERVICES_FILE}.new", "redis.log", "postgres.log", "sockets", "demo", "keys"),
)
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


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


@dataclass(frozen=True, slots=True)
class DataFolder:
    """An open data folder that is ours. `path` is its name for messages and for what is not opened through it."""

    path: Path
    descriptor: int

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.descriptor)

    def open_file(self, name: str, flags: int) -> int:
        """Open a file in it that only we can read; the descriptor is the caller's. Raises ShardcrawlError."""
        with folder_errors(self.path):
            descriptor = os.open(name, flags | FILE, 0o600, dir_fd=self.descriptor)
            os.fchmod(descriptor, 0o600)
            return descriptor

    def open_folder(self, name: str, *, make: bool = True) -> int:
        """Open a folder in it, which is made for us alone if it is missing. Raises ShardcrawlError."""
        with folder_errors(self.path):
            if make:
                with suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=self.descriptor)
            return os.open(name, _FOLDER, dir_fd=self.descriptor)

    def has(self, name: str) -> bool:
        """Whether there is an entry of this name."""
        with suppress(FileNotFoundError):
            return bool(os.stat(name, dir_fd=self.descriptor, follow_symlinks=False))
        return False

    def remove_folders(self, prefix: str) -> None:
        """Remove the folders whose names begin so, and everything in them."""
        for name in os.listdir(self.descriptor):  # noqa: PTH208  (Path takes no descriptor)
            if name.startswith(prefix):
                shutil.rmtree(name, ignore_errors=True, dir_fd=self.descriptor)


def full_path(data: Path) -> Path:
    """The absolute path of a data folder. Its own name is not followed if it is a link."""
    absolute = Path(os.path.abspath(data))  # noqa: PTH100  (resolve() would follow the link)
    return absolute.parent.resolve() / absolute.name


def open_folder(data: Path) -> DataFolder:
    """Open the data folder, made for us alone if it is missing. Raises ShardcrawlError, also when it is not ours."""
    path = full_path(data)
    with folder_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
    folder = find_folder(path)
    if folder is None:
        raise ShardcrawlError(f"cannot use {path}: it was removed; try again, or name another folder with --data")
    names = os.listdir(folder.descriptor)  # noqa: PTH208  (Path takes no descriptor)
    if all(name in (*OUR_ENTRIES, *SERVER_FOLDERS) for name in names):  # else it may be the user's home
        os.fchmod(folder.descriptor, os.fstat(folder.descriptor).st_mode & 0o700)
    return folder


def find_folder(data: Path) -> DataFolder | None:
    """Open the data folder; None when there is none. Raises ShardcrawlError when it is not ours."""
    path = full_path(data)
    _refuse_foreign(path, path, None, (os.geteuid(),))
    with folder_errors(path):
        try:
            folder = DataFolder(path, os.open(path, _FOLDER))
        except FileNotFoundError:
            return None
        try:
            # Again, because it may be another one than a moment ago.
            _refuse_foreign(path, ".", folder.descriptor, (os.geteuid(),))
            for name in os.listdir(folder.descriptor):  # noqa: PTH208  (Path takes no descriptor)
                if name in SERVER_FOLDERS or name.startswith(NEW_CLUSTER):
                    _refuse_foreign(path / name, name, folder.descriptor, owners_of_server_folders(), closed=True)
                elif name in OUR_ENTRIES:
                    _refuse_foreign(path / name, name, folder.descriptor, (os.geteuid(),))
        except BaseException:
            folder.close()
            raise
    return folder


def _refuse_foreign(
    path: Path, name: str | Path, within: int | None, owners: Collection[int], *, closed: bool = False
) -> None:
    """Raise ShardcrawlError unless the entry is missing or ours; a `closed` folder nobody else may even enter."""
    try:
        found = os.stat(name, dir_fd=within, follow_symlinks=False)
    except OSError:  # who opens it will say why
        return
    is_folder = stat.S_ISDIR(found.st_mode)
    if stat.S_ISLNK(found.st_mode) or (not is_folder and found.st_nlink > 1):
        wrong = "is a link"
    elif found.st_uid not in owners:
        wrong = f"belongs to user {found.st_uid}, and this is user {os.geteuid()}"
    elif found.st_mode & 0o022 or (closed and found.st_mode & 0o077):
        wrong = f"is open to other users (if none changed it: chmod -R go-rwx {shlex.quote(str(path))})"
    else:
        return
    raise ShardcrawlError(
        f"cannot use {path}: it {wrong}; a data folder of somebody else can run code as you, "
        "name a folder of your own with --data"
    )


def entry_path(descriptor: int, path: Path) -> str:
    """A name under which a child that inherits the descriptor reaches what it is open on; `path` where Linux is not."""
    inherited = Path(f"/proc/self/fd/{descriptor}")
    return str(inherited if inherited.exists() else path)


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


def write_services_file(data: DataFolder, servers: RunningServers) -> None:
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
    fresh = f"{SERVICES_FILE}.new"
    with os.fdopen(data.open_file(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "w") as file:
        file.write(text + "\n")
    with folder_errors(data.path):
        os.rename(fresh, SERVICES_FILE, src_dir_fd=data.descriptor, dst_dir_fd=data.descriptor)


def read_services_file(data: DataFolder) -> RunningServers | None:
    """The servers that the file names; None when it is missing or cannot be read."""
    try:
        with os.fdopen(os.open(SERVICES_FILE, os.O_RDONLY | FILE, dir_fd=data.descriptor)) as file:
            found = json.load(file)
        return RunningServers(Services(found["redis_url"], found["database_url"]), dict(found["pids"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remove_services_file(data: DataFolder) -> None:
    """Remove the file, because no server runs in the folder."""
    with suppress(OSError):
        os.unlink(SERVICES_FILE, dir_fd=data.descriptor)


def sockets(data: Path, temporary: Path) -> Path:
    """The folder of the sockets: `data/sockets`, or one below `temporary` where a socket cannot have that path.

    A socket's path must not be too long, nor have characters that mean something to the servers or in their addresses,
    and nobody else may be able to put another folder in its place: clients go there by its name. Root takes the other
    one always: there the account of the servers can run programs. Raises ShardcrawlError when neither will do.
    """
    uid = os.geteuid()
    inside = data / "sockets"
    digest = hashlib.blake2b(os.fsencode(data), digest_size=8).hexdigest()
    short = temporary / f"shardcrawl-{uid}-{digest}"
    for folder in (inside, short) if uid and not any(map(_can_be_changed_by_others, data.parents)) else (short,):
        path = str(folder / LONGEST_SOCKET_NAME)
        if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES and path.isprintable() and "," not in path:
            return folder
    raise ShardcrawlError(f"no folder for sockets: {inside} and {short} are too long; set TMPDIR to a shorter folder")


def _can_be_changed_by_others(folder: Path) -> bool:
    found = folder.stat()
    return found.st_uid not in (0, os.geteuid()) or bool(found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX)


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
