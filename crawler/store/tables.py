"""Pure: the names and columns of the tables that a run writes, as SQL has them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from crawler.job.tables import OWN_COLUMNS, TableSettings, column_type, is_column_type

PAGES, FOUND = "pages", "pages_found"


# As long as Postgres has them: a view and a part have the name of their table, and more.
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")


# What is no name without quotes: `pg_get_keywords()`, catcode R and T.
_RESERVED = """
all analyse analyze and any array as asc asymmetric authorization binary both case cast check collate collation column
concurrently constraint create cross current_catalog current_date current_role current_schema current_time
current_timestamp current_user default deferrable desc distinct do else end except false fetch for foreign freeze from
full grant group having ilike in initially inner intersect into is isnull join lateral leading left like limit localtime
localtimestamp natural not notnull null offset on only or order outer overlaps placing primary references returning
right select session_user similar some symmetric system_user table tablesample then to trailing true union unique user
using variadic verbose when where window with
"""
RESERVED_WORDS = frozenset(_RESERVED.split())


def readable(name: str) -> str:
    """A name as people write it in a query: in quotes where it is a word of SQL."""
    return quoted(name) if name in RESERVED_WORDS else name


def quoted(name: str) -> str:
    """A name in double quotes. Raises ValueError when it has other characters than a job may use, or too many."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"not an identifier: {name!r}")
    return f'"{name}"'


def in_schema(schema: str, name: str) -> str:
    """A quoted name, with its schema unless that is "", where our own tables are."""
    return f"{quoted(schema)}.{quoted(name)}" if schema else quoted(name)


class HasDocument(Protocol):
    """A run with the document of its job."""

    @property
    def run_id(self) -> int:
        """The run's number."""
        ...

    @property
    def document(self) -> Mapping[str, Any]:
        """The document."""
        ...


@dataclass(frozen=True, slots=True)
class RunTables:
    """Where one run's rows are: in parts, each of which becomes a partition of a table when the run is published.

    `schema` has the parts and the corpus' own tables; "" is the schema of `runs` and `pages`.
    """

    run_id: int
    schema: str = ""

    @classmethod
    def of(cls, run: HasDocument) -> RunTables:
        """Those of a run that exists."""
        return cls(run.run_id, run.document.get("store", {}).get("schema", ""))

    @property
    def pages(self) -> str:
        """The part of `pages`, quoted."""
        return self.part(PAGES)

    @property
    def found(self) -> str:
        """The table of found keys, quoted."""
        return self.part(FOUND)

    def part_name(self, table: str) -> str:
        """The name of the part of this table, without its schema."""
        return f"{table}_r{self.run_id}"

    def part(self, table: str) -> str:
        """The part of this table, quoted."""
        return in_schema(self.schema, self.part_name(table))

    def whole(self, table: str) -> str:
        """The table itself, quoted."""
        return quoted(table) if table == PAGES else in_schema(self.schema, table)

    @property
    def staging_name(self) -> str:
        """The name of the temporary table through which a batch is merged. No table of a user's ends in _r0."""
        return f"staging_{self.run_id}_r0"

    @property
    def found_staging_name(self) -> str:
        """The same for found keys."""
        return f"staging_found_{self.run_id}_r0"


def column_list(columns: Sequence[tuple[str, str]]) -> str:
    """The columns of a table of records, as in CREATE TABLE."""
    return ", ".join(f"{quoted(name)} {column_type(kind)}" for name, kind in columns)


def columns_fault(found: Sequence[tuple[str, str]], wanted: Sequence[tuple[str, str]]) -> str | None:
    """The first column that a run cannot add to a table that exists; None when there is none.

    Columns are (name, type as Postgres writes it), in any order: one that was added stands at the end.
    """
    there = dict(found)
    for name, kind in wanted:
        if name not in there and name in OWN_COLUMNS:
            return f"it has no column {name} {kind}"
        if there.get(name, kind) != kind:
            return f"column {name} is {there[name]} there, and {kind} in the job"
    if more := [name for name in there if name not in dict(wanted)]:
        if other := next((name for name in more if not is_column_type(there[name])), None):
            return f"the job has no column {other} {there[other]}, and cannot have one of this type; drop it there"
        entries = ", ".join(f'{name} = "{there[name]}"' for name in more)
        why = "it had it, or another one has"
        return f"the job has no column {more[0]} {there[more[0]]} ({why}; add {entries} to columns)"
    return None


@dataclass(frozen=True, slots=True)
class AddedColumn:
    """A column of the job's that a table which exists does not have yet; rows that are there have NULL in it."""

    table: str
    name: str
    kind: str

    def __str__(self) -> str:
        return f"adds column {self.name} {self.kind} to table {self.table}"


def added_columns(
    table: str, found: Sequence[tuple[str, str]], wanted: Sequence[tuple[str, str]]
) -> Sequence[AddedColumn]:
    """The columns that a table lacks, in the job's order."""
    return [AddedColumn(table, name, kind) for name, kind in wanted if name not in dict(found)]


def table_names(tables: Sequence[TableSettings]) -> list[str]:
    """The tables' names in the job's order."""
    return [table.name for table in tables]
