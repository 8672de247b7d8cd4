"""Readers of the corpus: they yield its keys in order, from a cursor, without holding them all in memory."""

from __future__ import annotations

from pathlib import Path

from coordinator.errors import SourceError
from coordinator.source.chunk import Chunk, Cursor, Refused, Source
from coordinator.source.generator import GeneratorSource
from coordinator.source.key_rule import KeyRule
from coordinator.source.text import STANDARD_INPUT, TextSource

__all__ = ["STANDARD_INPUT", "Chunk", "Cursor", "KeyRule", "Refused", "Source", "open_source"]


def open_source(path: str | None, python: str | None, *, cursor: Cursor, key_rule: KeyRule, folder: Path) -> Source:
    """Open the source of a job: a `path` (or "-" for standard input), or `python` = "module:function".

    Relative paths and modules are looked up in `folder`. Raises SourceError when it cannot be opened.
    """
    if path and not python:
        return TextSource(path, cursor=cursor, key_rule=key_rule, folder=folder)
    if python and not path:
        return GeneratorSource(python, cursor=cursor, key_rule=key_rule, folder=folder)
    raise SourceError("the source needs either path or python; give one of them")
