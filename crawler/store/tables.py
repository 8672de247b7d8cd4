"""Pure: names and column lists of the tables that a run writes, checked and quoted."""

from __future__ import annotations

import re
from collections.abc import Sequence

from coordinator.settings import TableSettings

_IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]{0,39}")
RESERVED_TABLES = frozenset({"runs", "pages"})
OWN_COLUMNS = ("run_id", "digest")
TYPES = frozenset(
    {
        *("bigint", "integer", "smallint", "numeric", "real", "double precision"),
        *("text", "boolean", "uuid", "bytea", "jsonb", "json"),
        *("date", "time", "timestamp", "timestamptz", "interval"),
    }
)
_TYPE = re.compile(
    r"(?:numeric(?:\(\d{1,4}(?:, ?\d{1,4})?\))?|(?:varchar|char|interval|time|timestamp|timestamptz)(?:\(\d{1,4}\))?"
    rf"|{'|'.join(sorted(TYPES))})(?:\[\])?"
)


def identifier_fault(name: str) -> str | None:
    """Why a name cannot be a table or a column of ours, None when it can."""
    if not _IDENTIFIER.fullmatch(name):
        return "use lower-case letters, digits and _, at most 40"
    return None


def type_fault(name: str) -> str | None:
    """Why a name is not a column type that a job may use, None when it is."""
    if _TYPE.fullmatch(name.strip().lower()):
        return None
    known = ", ".join(sorted(TYPES))
    return f"known types are {known}, varchar(n), char(n), numeric(p, s), each also as an array with []"


def quoted(name: str) -> str:
    """A checked identifier in double quotes."""
    if identifier_fault(name):
        raise ValueError(f"not an identifier: {name!r}")
    return f'"{name}"'


def part(table: str, run_id: int) -> str:
    """The table into which one run loads."""
    return f"{table}_r{run_id}"


def column_list(columns: Sequence[tuple[str, str]]) -> str:
    """The columns of a table of records, as in CREATE TABLE."""
    return ", ".join(f"{quoted(name)} {kind}" for name, kind in columns)


def names(tables: Sequence[TableSettings]) -> list[str]:
    """The tables' names in the job's order."""
    return [table.name for table in tables]
