"""The files of a source (one, those of a folder or a glob, a pipe), and their bytes as they are on disk."""

from __future__ import annotations

import glob
import io
import os
import select
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from coordinator.errors import SourceError
from coordinator.source.input.formats import HEAD_BYTES, LONG_HEAD_BYTES

STANDARD_INPUT = "-"
PIECE_BYTES = 256 * 1024
# The fingerprint is of the first and the last bytes of a file.
_FINGERPRINT_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a source. `name` is for cursors and for lines: empty when the source has only this one."""

    path: str
    name: str = ""

    def open(self) -> RawInput:
        """Open it, without waiting for the writer of a named pipe. Raises SourceError."""
        if self.path == STANDARD_INPUT:
            return RawInput(io.FileIO(0, closefd=False), "standard input", one_way=True)
        try:
            return RawInput(
                io.FileIO(self.path, opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)), self.path
            )
        except FileNotFoundError as error:
            raise SourceError(f"{self.path} does not exist; check the source's path") from error
        except OSError as error:
            raise self.failed(error) from error

    def failed(self, error: OSError) -> SourceError:
        """The error for the user, when the file cannot be read."""
        why = error.strerror or type(error).__name__
        return SourceError(f"{self.path} cannot be read: {why}; check the file and its rights")

    def fingerprint(self) -> str:
        """The size and a digest of the first and last 64 KB as they are on disk. Raises SourceError."""
        content = blake2b(digest_size=16)
        try:
            with io.FileIO(self.path) as file:
                size = file.seek(0, io.SEEK_END)
                for start in (0, max(0, size - _FINGERPRINT_BYTES)):
                    file.seek(start)
                    content.update(file.read(_FINGERPRINT_BYTES))
        except OSError as error:
            raise self.failed(error) from error
        return f"{size}:{content.hexdigest()}"


class RawInput:
    """An open file or pipe. A read of a pipe ends at `deadline` (monotonic seconds), or when `closed` is set."""

    def __init__(self, file: io.FileIO, name: str, *, one_way: bool = False) -> None:
        """Read an open file. `name` is for messages; with `one_way` it is read like a pipe, without seeking."""
        status = os.fstat(file.fileno())
        self.name = name
        self.is_file = stat.S_ISREG(status.st_mode) and not one_way
        self.size = status.st_size
        self.bytes_read = 0
        self.deadline: float | None = None
        self.closed = False
        self._file = file
        self._ahead = b""

    def read(self, size: int) -> bytes | None:
        """The next bytes; b"" at the end; None when the deadline passed, or it was closed, before any came."""
        if self._ahead:
            data, self._ahead = self._ahead, b""
            return data
        if not self._ready():
            return None
        data = self._file.read(size)
        self.bytes_read += len(data or b"")
        return data

    def head(self) -> bytes:
        """The first bytes, which the next read returns again: enough of them to know the format. Waits for a pipe."""
        head = b""
        while len(head) < HEAD_BYTES and not (b"\n" in head or b"\r" in head):
            more = self.read(LONG_HEAD_BYTES)
            if more == b"" or self.closed:
                break
            head += more or b""
        self._ahead = head
        return head

    def go_to(self, offset: int) -> None:
        """Go on from a byte of a plain file. Raises EOFError when the file is shorter."""
        if offset > self.size:
            raise EOFError("the file is shorter than it was when this run read it")
        self._ahead = b""
        self._file.seek(offset)

    def close(self) -> None:
        """Close the file; standard input stays open."""
        self._file.close()

    def _ready(self) -> bool:
        """Wait until a read does not block; False at the deadline, or when it was closed."""
        if self.is_file:
            return not self.closed
        poll = select.poll()
        poll.register(self._file, select.POLLIN)
        while not self.closed:
            # Wake up a few times a second, to see whether another thread has closed it.
            left = 0.2 if self.deadline is None else min(0.2, self.deadline - time.monotonic())
            if poll.poll(max(0.0, left) * 1000):
                return True
            if left <= 0:
                return False
        return False


def reads_once(path: str | None, folder: Path) -> bool:
    """Whether a source cannot be read from its beginning again: standard input, or a named pipe.

    Raises SourceError for a device that is no terminal, like /dev/zero, and for a socket.
    """
    if path is None or path == STANDARD_INPUT:
        return path is not None
    try:
        mode = (folder / path).stat().st_mode
    except OSError:
        return False
    if stat.S_ISBLK(mode) or stat.S_ISSOCK(mode) or (stat.S_ISCHR(mode) and not _is_terminal_or_null(folder / path)):
        raise SourceError(f"{path} is a device or a socket, which has no keys; give a file, a folder or a pipe")
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _is_terminal_or_null(path: Path) -> bool:
    if path.samefile(os.devnull):
        return True
    try:
        with io.FileIO(path, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK | os.O_NOCTTY)) as device:
            return device.isatty()
    except OSError:
        return True  # what is wrong is said when it is read


def _files_below(folder: Path) -> Iterator[str]:
    """The files in a folder and in those below it. A link to a folder is not followed: it may lead in a circle."""
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.join(root, name) for name in names if not name.startswith("."))  # noqa: PTH118 (of str)


def list_files(path: str, folder: Path) -> list[SourceFile]:
    """The files of a source, in its order; a folder and a glob have theirs sorted by name, without hidden ones.

    A folder is read with the folders in it. Raises SourceError when there is none.
    """
    if path == STANDARD_INPUT:
        return [SourceFile(path)]
    whole = folder / path
    if not whole.is_dir() and (whole.exists() or not glob.has_magic(path)):
        return [SourceFile(str(whole))]
    # Path.glob finds hidden files too.
    names = _files_below(whole.absolute()) if whole.is_dir() else glob.iglob(path, root_dir=folder, recursive=True)  # noqa: PTH207
    found = sorted({os.path.relpath(folder / name, folder) for name in names if (folder / name).is_file()})
    if not found:
        why = "is a folder without files" if whole.is_dir() else "matches no file"
        raise SourceError(f"{whole} {why}; check the source's path")
    return [SourceFile(str(folder / name), name) for name in found]


def fingerprint_of(files: Sequence[SourceFile]) -> str:
    """Of one file that is the source, its size and both ends; of several, of their names and fingerprints."""
    if not files[0].name:
        return files[0].fingerprint()
    content = blake2b(digest_size=16)
    for file in files:
        content.update(f"{file.name!r} {file.fingerprint()}\n".encode("utf-8", "backslashreplace"))
    return f"{len(files)}:{content.hexdigest()}"
