"""Keys of a program, written into a file of the data folder: coordinators, which read them, are other processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeAlias

import orjson

from coordinator.errors import UsageError
from crawler.local.embedded.folder import DataFolder, folder_errors, full_path, open_folder

FOLDER = "keys"
Key: TypeAlias = str | int | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class KeyFile:
    """The file of a corpus' keys, one a line: texts, or rows as JSON when the first of the `keys` is a dict."""

    data: Path
    name: str
    keys: Iterator[Key]
    line: Callable[[Any, int], bytes]

    @classmethod
    def of(cls, keys: Iterable[Key], data: Path, corpus: str) -> KeyFile:
        """The file for these keys, which `write` writes."""
        if isinstance(keys, str | bytes | Mapping):
            raise UsageError(f"keys is one {type(keys).__name__}; give a list of texts, or of dicts")
        rest = iter(keys)
        first = list(islice(rest, 1))
        has_rows = bool(first) and isinstance(first[0], Mapping)
        suffix, line = (".jsonl", _row_line) if has_rows else (".txt", _text_line)
        return cls(full_path(data), f"{corpus}{suffix}", chain(first, rest), line)

    @property
    def path(self) -> Path:
        """Its path."""
        return self.data / FOLDER / self.name

    def write(self) -> None:
        """Write the file: who reads it has the old one or the new one. Raises UsageError, ShardcrawlError."""
        with closing(open_folder(self.data)) as folder:
            place = DataFolder(folder.path / FOLDER, folder.open_folder(FOLDER))
        fresh = f"{self.name}.new"
        with closing(place):
            with os.fdopen(place.open_file(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
                file.writelines(self.line(key, number) for number, key in enumerate(self.keys, 1))
            with folder_errors(place.path):
                os.rename(fresh, self.name, src_dir_fd=place.descriptor, dst_dir_fd=place.descriptor)


def _text_line(key: Any, number: int) -> bytes:
    text = str(key) if isinstance(key, int) and not isinstance(key, bool) else key
    if not isinstance(text, str):
        raise UsageError(f"keys: number {number} is a {type(key).__name__}; the first one was a text, or a number")
    if not text or text != text.strip() or "\n" in text or "\r" in text:
        raise UsageError(f"keys: number {number} is {text!r}; a key is one line without blanks around it")
    try:
        return f"{text}\n".encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"keys: number {number} is {text!r}, which is not valid Unicode") from error


def _row_line(row: Any, number: int) -> bytes:
    if not isinstance(row, Mapping):
        raise UsageError(f"keys: number {number} is a {type(row).__name__}; the first one was a dict")
    try:
        return orjson.dumps(dict(row), option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError as error:
        raise UsageError(f"keys: number {number}: {error}; give texts and numbers") from error
