"""Reads the SQL files: the migrations by number, the queries by name, of all files in `sql/`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

_CALL = re.compile(r"\b([a-z_]\w*)\(")
_NAME = re.compile(r"^-- name: (\S+)$", re.MULTILINE)


@cache
def migrations() -> Mapping[int, str]:
    """The statements of each migration by its number, in order. Together they make the schema."""
    return {int(name.partition("_")[0]): text for name, text in _texts("sql", "migrations").items()}


def query(name: str, **identifiers: str | int) -> str:
    """The query of that name, with its {identifiers} filled in. Raises KeyError for an unknown name or identifier."""
    text = _queries()[name]
    return text.format(**identifiers) if identifiers else text


@cache
def used_functions() -> list[str]:
    """The names of all functions that our statements call, and some other words."""
    texts = [*_queries().values(), *migrations().values()]
    return sorted({name for text in texts for name in _CALL.findall(text)})


@cache
def _queries() -> dict[str, str]:
    found: dict[str, str] = {}
    for text in _texts("sql").values():
        parts = _NAME.split(text)
        found |= {name: one.strip().rstrip(";") for name, one in zip(parts[1::2], parts[2::2], strict=True)}
    return found


def _texts(*folder: str) -> dict[str, str]:
    """The SQL files of a folder by name, in the order of their names."""
    found = [file for file in files("crawler.store").joinpath(*folder).iterdir() if file.name.endswith(".sql")]
    return {file.name: file.read_text(encoding="utf-8") for file in sorted(found, key=lambda file: file.name)}
