"""Checks of the names that a job gives: of functions, tables, columns and their types."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence

from coordinator.errors import UsageError
from crawler.job.models import FUNCTION, IDENTIFIER, TableSettings

RESERVED_TABLES = frozenset({"runs", "pages"})
OWN_COLUMNS = ("run_id", "digest")
TYPES = frozenset(
    {
        *("bigint", "integer", "smallint", "numeric", "real", "double precision"),
        *("text", "boolean", "uuid", "bytea", "jsonb", "json"),
        *("date", "time", "timestamp", "timestamptz", "interval"),
    }
)
KNOWN_TYPES = f"{', '.join(sorted(TYPES))}, varchar(n), char(n), numeric(p, s), each also as an array with []"
_TYPE = re.compile(
    r"(?:numeric(?:\(\d{1,4}(?:, ?\d{1,4})?\))?|(?:varchar|char|interval|time|timestamp|timestamptz)(?:\(\d{1,4}\))?"
    rf"|{'|'.join(sorted(TYPES))})(?:\[\])?"
)
# Names of the tables that one run loads into, and of the views of the published run.
_PART_OR_VIEW = re.compile(r".*_(?:current|r\d+)")


def identifier_fault(name: str) -> str | None:
    """Why a job may not give a table or a column this name, None when it may."""
    return None if re.fullmatch(IDENTIFIER, name) else "use lower-case letters, digits and _, at most 40"


def type_fault(name: str) -> str | None:
    """Why a name is not a column type that a job may use, None when it is."""
    return None if _TYPE.fullmatch(name.strip().lower()) else f"known types are {KNOWN_TYPES}"


def check_function(section: str, name: str | None) -> None:
    """Raise UsageError when `name` is given, and is not module:function."""
    if name is not None and not re.fullmatch(FUNCTION, name):
        raise UsageError(f"job: [{section}] python is {name!r}; write module:function")


def check_tables(tables: Sequence[TableSettings]) -> None:
    """Raise UsageError for the first table whose name, columns or types cannot be used."""
    taken = set(RESERVED_TABLES)
    for table in tables:
        _check_identifier("table", table.name, taken)
        taken.add(table.name)
        if _PART_OR_VIEW.fullmatch(table.name):
            raise UsageError(
                f"job: table {table.name!r}: names ending in _current or _r1 are shardcrawl's own; rename it"
            )
        if not table.columns:
            raise UsageError(f'job: table {table.name} needs columns = {{ id = "bigint", … }}')
        for column, kind in table.columns:
            _check_identifier(f"table {table.name}: column", column, OWN_COLUMNS)
            fault = type_fault(kind)
            if fault:
                raise UsageError(f"job: table {table.name}: column {column} is of type {kind!r}; {fault}")


def _check_identifier(what: str, name: str, taken: Container[str]) -> None:
    fault = identifier_fault(name)
    if fault:
        raise UsageError(f"job: {what} {name!r}: {fault}")
    if name in taken:
        raise UsageError(f"job: {what} {name!r} is taken; use another name")
