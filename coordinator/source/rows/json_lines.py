"""Rows of JSON Lines (NDJSON): each line is an object, whose fields are the columns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from coordinator.source.input.cut_lines import MAX_ROW_BYTES, CutLines
from coordinator.source.rows.columns import Columns, require_columns
from coordinator.source.rows.row import Row


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


# A number is kept as its literal text.
_DECODER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=_no_constant)


def json_rows(lines: CutLines, columns: Columns | None, name: str) -> Iterator[Row]:
    """The rows of lines; blank lines are skipped. Without columns, SourceError lists those of the first row."""
    while True:
        first = lines.line + 1
        if (line := next(lines, None)) is None:
            return
        if len(line) > MAX_ROW_BYTES:
            last = line
            while not last.endswith((b"\n", b"\r")) and (following := next(lines, None)) is not None:
                last = following
            cells, reason = None, f"is a row of more than {MAX_ROW_BYTES:,} bytes"
        else:
            cells, reason = _read(line)
            if not reason and cells is None:
                continue
            if cells is not None and columns is None:
                require_columns(columns, cells, name)
        text = line[:1000].decode("utf-8", "surrogateescape").strip()
        yield Row(first, lines.offset, lines.line, cells, text, reason)


def _read(line: bytes) -> tuple[Mapping[str, Any] | None, str]:
    """The object in a line, and why there is none; neither for a blank line."""
    text = line.decode("utf-8", "surrogateescape").lstrip("\ufeff").strip()
    if not text:
        return None, ""
    try:
        value = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        return None, f"is no JSON: {error}"[:200]
    return (value, "") if isinstance(value, dict) else (None, "is no JSON object")
