"""Where an export goes: a folder, or a bucket. A file is there whole or not at all."""

from __future__ import annotations

import fcntl
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from coordinator.errors import ShardcrawlError, UsageError, first_line

if TYPE_CHECKING:
    from obstore.store import ObjectStore, RetryConfig


# Of a bucket that does not respond; by default it would be asked for three minutes.
_RETRIES: RetryConfig = {"max_retries": 5, "retry_timeout": timedelta(seconds=30)}

_WRITER = "writer"
_NOT_ALONE = "another command exports to this place now; wait for its end, or name another place with -o"


class FilePlace(Protocol):
    """A place for files by name, with `/` between folders. Two places are the same one when their addresses are."""

    @property
    def address(self) -> str:
        """Where it is."""
        ...

    def alone(self) -> AbstractContextManager[None]:
        """While no other process writes there, also one of another database, or one that was stopped and goes on.

        Raises ShardcrawlError; a bucket does so as soon as another process takes it, when this one writes to it.
        """
        ...

    def read(self, name: str) -> bytes | None:
        """A file's bytes, None when it is not there."""
        ...

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Write a small file, in the place of one that is there."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        ...

    def writing(self, name: str) -> AbstractContextManager[Path]:
        """A path to write a file to, which is put in its place when the block ends without an error."""
        ...


class Folder:
    """A folder of this machine, which is made when it is missing. Raises ShardcrawlError."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def address(self) -> str:
        """The folder's path from the root on."""
        return str(self._path.resolve())

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While this process has the folder's lock, which ends with it. Some network file systems have none."""
        with _file_errors(self._path):
            self._path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise ShardcrawlError(f"export: {self._path}: {_NOT_ALONE}") from None
        except OSError:
            pass
        try:
            yield
        finally:
            os.close(descriptor)

    def read(self, name: str) -> bytes | None:
        """A file's bytes, None when it is not there."""
        with _file_errors(self._path / name):
            try:
                return (self._path / name).read_bytes()
            except FileNotFoundError:
                return None

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        with _file_errors(self._path / name):
            return (self._path / name).is_file()

    def write(self, name: str, content: bytes) -> None:
        """Write a small file, in the place of one that is there."""
        with self.writing(name) as path:
            path.write_bytes(content)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with _file_errors(self._path / name):
            (self._path / name).unlink(missing_ok=True)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A path to write a file to, which is put in its place when the block ends without an error."""
        path = self._path / name
        unfinished = path.with_name(path.name + ".tmp")
        with _file_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                unfinished.unlink(missing_ok=True)  # the process of a killed export may still write to that one
                yield unfinished
                with unfinished.open("rb") as file:
                    os.fsync(file.fileno())
                unfinished.replace(path)
            finally:
                unfinished.unlink(missing_ok=True)


class Bucket:
    """A bucket, or a folder in one, at an address like s3://bucket/folder. Raises ShardcrawlError."""

    def __init__(self, address: str, store: ObjectStore) -> None:
        self.address = address
        self._store = store
        self._writer: bytes | None = None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While the object `writer` there names this process: the last one that came has the bucket."""
        self._writer = secrets.token_hex(8).encode()
        with _store_errors(self.address):
            self._store.put(_WRITER, self._writer)
        yield
        self.remove(_WRITER)  # after an error it stays: the next command writes its own there
        self._writer = None

    def _check_writer(self) -> None:
        if self._writer is not None and self.read(_WRITER) != self._writer:
            raise ShardcrawlError(f"export: {self.address}: {_NOT_ALONE}")

    def read(self, name: str) -> bytes | None:
        """A file's bytes, None when it is not there."""
        with _store_errors(self.address):
            try:
                return bytes(self._store.get(name).bytes())
            except FileNotFoundError:
                return None

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        with _store_errors(self.address):
            try:
                return bool(self._store.head(name))
            except FileNotFoundError:
                return False

    def write(self, name: str, content: bytes) -> None:
        """Write a small file, in the place of one that is there."""
        self._check_writer()
        with _store_errors(self.address):
            self._store.put(name, content)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        self._check_writer()
        with _store_errors(self.address):
            try:
                self._store.delete(name)
            except FileNotFoundError:
                return

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A path to write a file to, which is sent in parts when the block ends without an error."""
        here = Path(tempfile.gettempdir())
        with _file_errors(here), tempfile.TemporaryDirectory(prefix="shardcrawl-export-", dir=here) as folder:
            path = Path(folder) / Path(name).name
            yield path
            self._check_writer()
            with _store_errors(self.address):
                self._store.put(name, path)


def open_place(address: str) -> Folder | Bucket:
    """The place at this path, or at an address like s3://bucket/folder. Raises UsageError."""
    if "://" not in address:
        return Folder(Path(address))
    try:
        from obstore.store import from_url  # an extra, which a folder does not need
    except ImportError as error:
        raise UsageError("export: buckets need an extra: pip install 'shardcrawl[parquet]'") from error
    with _store_errors(address):
        return Bucket(address, from_url(address, retry_config=_RETRIES))


@contextmanager
def _store_errors(address: str) -> Iterator[None]:
    from obstore.exceptions import BaseError

    try:
        yield
    except (BaseError, ValueError, OSError) as error:
        words = first_line(error)[:300]
        raise ShardcrawlError(f"export: {address}: {words}; is it there, and may you write to it?") from error


@contextmanager
def _file_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (ConnectionError, TimeoutError):  # of Postgres, whose rows are written here
        raise
    except OSError as error:
        words = error.strerror or error
        raise ShardcrawlError(f"export: {path}: {words}; name a folder that you can write to") from error
