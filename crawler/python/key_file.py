"""Keys of a program, written into a file of the data folder: coordinators, which read them, are other processes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import closing, suppress
from hashlib import blake2b
from itertools import chain, islice
from numbers import Integral
from pathlib import Path
from secrets import token_hex
from typing import Any, TypeAlias

import orjson

from coordinator.errors import UsageError
from crawler.local.embedded.folder import DataFolder, folder_errors, full_path, open_folder

KEYS_FOLDER = "keys"
Key: TypeAlias = str | int | Mapping[str, Any]


def write_keys(keys: Iterable[Key], data: Path) -> Path:
    """Write the keys, one a line: texts, or rows as JSON when the first one is a dict; returns the file's path.

    Its name is the digest of its content: so a run that reads it never finds other keys there, and the same keys are
    the same source. Raises UsageError for what is no key, ShardcrawlError.
    """
    if isinstance(keys, str | bytes | Mapping) or not isinstance(keys, Iterable):
        raise UsageError(f"keys is one {type(keys).__name__}; give a list of texts, or of dicts")
    rest = iter(keys)
    first = list(islice(rest, 1))
    suffix, line_of = (".jsonl", _row_line) if first and isinstance(first[0], Mapping) else (".txt", _text_line)
    with closing(open_folder(full_path(data))) as folder:
        place = DataFolder(folder.path / KEYS_FOLDER, folder.open_folder(KEYS_FOLDER))
    fresh, digest = f"{token_hex(8)}.new", blake2b(digest_size=16)
    with closing(place):
        try:
            with os.fdopen(place.open_file(fresh, os.O_WRONLY | os.O_CREAT), "wb") as file, folder_errors(place.path):
                for number, key in enumerate(chain(first, rest), 1):
                    line = line_of(key, number)
                    digest.update(line)
                    file.write(line)
            name = f"{digest.hexdigest()}{suffix}"
            with folder_errors(place.path):
                os.rename(fresh, name, src_dir_fd=place.descriptor, dst_dir_fd=place.descriptor)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(fresh, dir_fd=place.descriptor)
    return place.path / name


def _text_line(key: Any, number: int) -> bytes:
    text = str(key) if isinstance(key, Integral) and not isinstance(key, bool) else key
    if not isinstance(text, str):
        raise UsageError(f"keys: number {number} is a {type(key).__name__}; write texts or integers, or dicts alone")
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
