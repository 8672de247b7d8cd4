"""Rows of a Parquet file, by arro3, which is an extra."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any

from coordinator.errors import SourceError
from coordinator.source.chunk import Cursor
from coordinator.source.input.files import SourceFile
from coordinator.source.rows.columns import Columns, require_columns
from coordinator.source.rows.row import Row

# Cells can be large, and a batch is in memory as a whole.
_BATCH_ROWS = 256
_MAGIC = b"PAR1"
_NOT_FINITE = ("NaN", "inf", "-inf")


def parquet_rows(
    path: str, columns: Columns | None, cursor: Cursor, closed: Callable[[], bool]
) -> Generator[Row, None, None]:
    """The rows of a file behind as many as the cursor says. Raises SourceError."""
    try:
        from arro3.core import DataType  # an extra, which other sources do not need
        from arro3.io import read_parquet
    except ImportError:
        raise SourceError(f"{path}: Parquet needs an extra: pip install 'shardcrawl[parquet]'") from None
    _require_parquet(path)
    try:
        reader = read_parquet(Path(path), batch_size=_BATCH_ROWS)
        names = require_columns(columns, reader.schema.names, path).names
        kept = [DataType.is_boolean, DataType.is_nested, DataType.is_binary, DataType.is_large_binary]
        kept += [DataType.is_binary_view, DataType.is_fixed_size_binary]
        before, skipped = 0, cursor.line
        for batch in reader:
            if closed():
                return
            count = batch.num_rows
            if before + count > skipped:
                start = max(0, skipped - before)
                values = []
                for column in (batch.column(name).slice(start) for name in names):
                    # Arrow writes dates, times and decimals as texts; the rest is judged as it is. Of bytes that are no
                    # text it would make nulls.
                    as_it_is = any(is_kind(column.type) for is_kind in kept)
                    cells: Iterable[Any] = (column if as_it_is else column.cast(DataType.string())).to_pylist()
                    if DataType.is_floating(column.type):
                        cells = [float(cell) if cell in _NOT_FINITE else cell for cell in cells]
                    values.append(cells)
                for number, row in enumerate(zip(*values, strict=True), before + start + 1):
                    yield Row(number, number, number, dict(zip(names, row, strict=True)))
            before += count
    except (SourceError, GeneratorExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # what arro3 raises for damaged data can be a Rust panic, which is no Exception
        raise SourceError(f"{path} cannot be read as Parquet: {' '.join(str(error).split())[:200]}") from error
    if before < skipped:
        raise SourceError(f"{path} has fewer than the {skipped} rows that this run has read before")


def _require_parquet(path: str) -> None:
    """Raise SourceError when the file does not begin and end as Parquet does."""
    try:
        with Path(path).open("rb") as file:
            begin = file.read(len(_MAGIC))
            file.seek(-len(_MAGIC), os.SEEK_END)
            if begin == file.read() == _MAGIC:
                return
    except OSError as error:  # it does not exist, or is too short
        if error.errno != errno.EINVAL:
            raise SourceFile(path).failed(error) from error
    raise SourceError(f"{path} is no whole Parquet file; check it")
