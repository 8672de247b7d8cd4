"""Reads the SQL files: the migrations by number, the queries by name."""

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
    folder = files("crawler.store").joinpath("sql", "migrations")
    return {
        int(file.name.partition("_")[0]): file.read_text(encoding="utf-8")
        for file in sorted(folder.iterdir(), key=lambda file: file.name)
        if file.name.endswith(".sql")
    }


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
    parts = _NAME.split(_read("queries.sql"))
    return {name: text.strip().rstrip(";") for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def _read(name: str) -> str:
    return files("crawler.store").joinpath("sql", name).read_text(encoding="utf-8")
