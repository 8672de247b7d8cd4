"""Readers of the corpus: they yield its keys in order, from a cursor, without holding them all in memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from coordinator.errors import SourceError
from coordinator.source.chunk import Chunk, Cursor, Refused, Source
from coordinator.source.files import STANDARD_INPUT, reads_once
from coordinator.source.first_keys import FIRST_KEYS
from coordinator.source.generator import GeneratorSource
from coordinator.source.key_rule import KeyRule
from coordinator.source.text import TextSource

__all__ = [
    "FIRST_KEYS",
    "STANDARD_INPUT",
    "Chunk",
    "Cursor",
    "KeyRule",
    "Refused",
    "Source",
    "log_warning",
    "open_source",
    "reads_once",
]

logger = logging.getLogger(__name__)


def log_warning(text: str) -> None:
    """Log what the user should know about a source."""
    logger.warning("%s", text)


def open_source(
    path: str | None,
    python: str | None,
    *,
    cursor: Cursor,
    key_rule: KeyRule,
    folder: Path,
    warn: Callable[[str], None] = log_warning,
) -> Source:
    """Open the source of a job: a `path` (a file, folder or glob, or "-" for standard input), or `python` =
    "module:function".

    Relative paths and modules are looked up in `folder`; `warn` gets what the user should know about the source.
    Raises SourceError when it cannot be opened.
    """
    if path and not python:
        return TextSource(path, cursor=cursor, key_rule=key_rule, folder=folder, warn=warn)
    if python and not path:
        return GeneratorSource(python, cursor=cursor, key_rule=key_rule, folder=folder, warn=warn)
    raise SourceError("the source needs either path or python; give one of them")
