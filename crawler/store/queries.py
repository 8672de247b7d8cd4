"""Reads the SQL files: the schema as a whole, the queries by name."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

_NAME = re.compile(r"^-- name: (\S+)$", re.MULTILINE)


def schema() -> str:
    """The statements that make the schema."""
    return _read("schema.sql")


def query(name: str, **identifiers: str | int) -> str:
    """The query of that name, with its {identifiers} filled in. Raises KeyError for an unknown name or identifier."""
    text = _queries()[name]
    return text.format(**identifiers) if identifiers else text


@cache
def _queries() -> dict[str, str]:
    parts = _NAME.split(_read("queries.sql"))
    return {name: text.strip().rstrip(";") for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def _read(name: str) -> str:
    return files("crawler.store").joinpath("sql", name).read_text(encoding="utf-8")
