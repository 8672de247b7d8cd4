"""Readers of the corpus: they yield its keys in order, from a cursor, without holding them all in memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from coordinator.errors import SourceError
from coordinator.source.chunk import Chunk, Cursor, Refused, Source
from coordinator.source.first_keys import FIRST_KEYS
from coordinator.source.generator import GeneratorSource
from coordinator.source.input.files import STANDARD_INPUT, fingerprint_of, list_files, reads_once
from coordinator.source.key_rule import KeyRule, showable
from coordinator.source.rows.columns import Columns
from coordinator.source.rows.query import QueryReader, QueryRows
from coordinator.source.rows.row import Listed
from coordinator.source.rows.row_file import RowFile, estimate_rows, row_format_of
from coordinator.source.rows.source import RowSource
from coordinator.source.text import TextSource

__all__ = [
    "FIRST_KEYS",
    "STANDARD_INPUT",
    "Chunk",
    "Columns",
    "Cursor",
    "KeyRule",
    "QueryReader",
    "Refused",
    "Source",
    "log_warning",
    "open_source",
    "reads_once",
    "showable",
]

logger = logging.getLogger(__name__)


def log_warning(text: str) -> None:
    """Log what the user should know about a source."""
    logger.warning("%s", text)


def open_source(
    path: str | None,
    python: str | None,
    *,
    keys: Sequence[str] = (),
    kind: str = "",
    query: QueryReader | None = None,
    columns: Columns | None = None,
    cursor: Cursor,
    key_rule: KeyRule,
    folder: Path,
    warn: Callable[[str], None] = log_warning,
) -> Source:
    """Open the source of a job, which is one of these: a `path` (a file, folder or glob, or "-" for standard input),
    `python` = "module:function", a list of `keys`, which are of a `kind`, or a `query`, as that which reads
    its rows.

    Where the source has rows, `columns` says which of them make the key. Relative paths and modules are looked up in
    `folder`; `warn` gets what the user should know about the source. Raises SourceError when it cannot be opened.
    """
    given = [one for one in (path, python, keys, query) if one]
    if len(given) != 1:
        raise SourceError("the source needs one of path, keys, python and query")
    if python:
        return GeneratorSource(python, columns, cursor=cursor, key_rule=key_rule, folder=folder, warn=warn)
    rows = partial(RowSource, cursor=cursor, key_rule=key_rule, warn=warn)
    if keys:
        return rows("[source] keys", [Listed(keys)], None, estimate=lambda: None if kind else len(keys), kind=kind)
    if query:
        return rows("[source] query", [QueryRows(query, columns)], columns, fingerprint=lambda: query.fingerprint)
    assert path is not None
    files = list_files(path, folder)
    if columns is None and not any(map(row_format_of, files)):
        return TextSource(path, files, cursor=cursor, key_rule=key_rule, warn=warn)
    return rows(
        path,
        [RowFile(file, columns, warn) for file in files],
        columns,
        fingerprint=lambda: fingerprint_of(files),
        estimate=lambda: estimate_rows(files),
    )
