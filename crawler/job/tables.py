"""`[[tables]]`: their model, and checks of the names and types of columns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta, field

from coordinator.errors import UsageError
from crawler.job.fields import IDENTIFIER, Section, text, value

RESERVED_TABLES = frozenset({"runs", "corpora", "changes", "pages", "pages_found", "schema_version"})
OWN_COLUMNS = ("run_id", "digest")
# In a record this is no column: it says whose record it is.
KEY_FIELD = "_key"
# Every table of Postgres has these (PostgreSQL documentation, chapter 5.6).
SYSTEM_COLUMNS = ("tableoid", "xmin", "cmin", "xmax", "cmax", "ctid")
_TAKEN_COLUMNS = {
    **dict.fromkeys((*OWN_COLUMNS, KEY_FIELD), "shardcrawl's own"),
    **dict.fromkeys(SYSTEM_COLUMNS, "a column that Postgres gives every table"),
}
# The types that a job may use, by Postgres' names for each (PostgreSQL documentation, table 8.1). The first is ours.
_TYPE_NAMES: Mapping[str, Sequence[str]] = {
    "smallint": ["int2"],
    "integer": ["int", "int4"],
    "bigint": ["int8"],
    "numeric": ["decimal", "dec"],
    "real": ["float4"],
    "double precision": ["float8", "float"],
    "boolean": ["bool"],
    "text": [],
    "varchar": ["character varying", "char varying"],
    "char": ["character"],
    "date": [],
    "time": ["time without time zone"],
    "timetz": ["time with time zone"],
    "timestamp": ["timestamp without time zone"],
    "timestamptz": ["timestamp with time zone"],
    "interval": [],
    "uuid": [],
    "bytea": [],
    "json": [],
    "jsonb": [],
}
_CANONICAL = {name: first for first, others in _TYPE_NAMES.items() for name in (first, *others)}
# How many bounds may stand in parentheses behind a type.
_ONE_BOUND = ("varchar", "char", "time", "timetz", "timestamp", "timestamptz", "interval")
_MOST_BOUNDS = {"numeric": 2, **dict.fromkeys(_ONE_BOUND, 1)}
# float(n) has at least n bits.
_REAL_BITS, _DOUBLE_BITS = 24, 53
_TYPE = re.compile(r"([a-z0-9 ]+?)(?:\(([0-9]{1,8}(?:,[0-9]{1,4})?)\))?( ?with(?:out)? time zone)?(\[\])?")
KNOWN_TYPES = (
    f"{', '.join(sorted(_TYPE_NAMES))}, varchar(n), char(n), numeric(p, s), Postgres' other names of these, "
    "and each as an array with []"
)
# Names of the tables that one run loads into, and of the views of the published run.
_PART_OR_VIEW = re.compile(r".*_(?:current|r\d+)")


# The formatter would give each argument a line of its own.
# fmt: off
class ColumnSettings(Section, frozen=True, kw_only=True):
    """One column in a table of its own: its type, and what fills it."""

    type: str
    source: str | tuple[str, ...] = field(default="", name="from")
    reading: str | None = field(default=None, name="as")


class TableSettings(Section, frozen=True, kw_only=True):
    """A table of your own, once for each table. It gets `run_id`, `digest` and your columns, which the parser fills, or
    selectors do.

    A new run adds columns that are new in the job to the table; rows that are there have NULL in them. A job with
    other types, or without a column that is there, is refused.
    """

    name: Annotated[str, text(
        "Lower-case letters, digits and _, at most 40; not `pages`, `runs`, `corpora`, `changes` or `schema_version`, "
        "and not ending in `_current` or `_r1`.",
        "revisions", f"^{IDENTIFIER}$", absent="none, it is needed")] = ""
    kind: Annotated[str, text(
        "The kind of the pages that fill this table.",
        "product", absent="the source's keys, and what is found of their kind")] = ""
    rows: Annotated[str, text(
        "Where this table's records are; the default is what `[parse]` says.",
        "query.pages[].revisions", absent="`rows` of `[parse]`")] | None = None
    skip: Annotated[str | tuple[str, ...], value(
        "Which records are left out, written like `failed` of `[parse]`.",
        "pull_request", write="write a condition, or a list of conditions")] = ()
    unique: Annotated[tuple[str, ...], value(
        "Columns by which a record is one: of several pages' records with the same values there, the page that was "
        "fetched last keeps its own.",
        ["id"])] = ()
    mode: Annotated[Literal["replace", "merge"], value(
        "Whether a run has all records of its corpus, or only what is new: then records of the run before stay, but "
        "those whose `unique` columns, or without these whose key, the new run has.",
        "merge", write='write "replace" or "merge"')] = "replace"
    column_settings: Annotated[dict[str, str | ColumnSettings], Meta(
        description="The columns in their order, each with its Postgres type, or with its `type`, its selector `from` "
        "and perhaps `as`. Names are written like the table's; without `from`, a column is the member of its name.",
        examples=[{"rev_id": "bigint", "at": {"type": "timestamptz", "from": "timestamp", "as": "date"}}],
        extra_json_schema={"propertyNames": {"pattern": f"^{IDENTIFIER}$"}, "minProperties": 1},
        extra={"each": "needs a type: a text, or { type = …, from = …, as = … }", "absent": "none, they are needed",
               "kind": "table of types"},
    )] = field(default_factory=dict, name="columns")

    @property
    def columns(self) -> tuple[tuple[str, str], ...]:
        """The columns in their order as (name, Postgres type)."""
        return tuple(
            (name, given if isinstance(given, str) else given.type) for name, given in self.column_settings.items()
        )
# fmt: on


def identifier_fault(name: str) -> str | None:
    """Why a job may not give a table or a column this name, None when it may."""
    return None if re.fullmatch(IDENTIFIER, name) else "use lower-case letters, digits and _, at most 40"


@dataclass(frozen=True, slots=True)
class ColumnType:
    """A column's type: its name in `_TYPE_NAMES`, its bounds like (p, s), and whether it is an array of these."""

    name: str
    bounds: tuple[int, ...] = ()
    is_array: bool = False

    def __str__(self) -> str:
        bounds = f"({','.join(map(str, self.bounds))})" if self.bounds else ""
        return f"{self.name}{bounds}{'[]' if self.is_array else ''}"


def column_type(kind: str) -> ColumnType:
    """The type that Postgres means by this name, in any case. Raises ValueError when a job may not use it."""
    match = _TYPE.fullmatch(re.sub(r" ?([(),\[\]]) ?", r"\1", " ".join(kind.lower().split())))
    text, bounds, zone, array = match.groups() if match else ("", None, None, None)
    # The zone stands behind the bounds: timestamp(3) with time zone.
    name = _CANONICAL.get(f"{text} {zone.strip()}" if zone else text)
    numbers = tuple(map(int, bounds.split(","))) if bounds else ()
    if text == "float" and len(numbers) == 1 and 1 <= numbers[0] <= _DOUBLE_BITS:
        name, numbers = "real" if numbers[0] <= _REAL_BITS else "double precision", ()
    if name is None or len(numbers) > _MOST_BOUNDS.get(name, 0):
        raise ValueError(f"known types are {KNOWN_TYPES}")
    return ColumnType(name, numbers, array is not None)


def is_column_type(given: Any) -> bool:
    """Whether this can be a column's type, or is a table with one."""
    try:
        column_type(given["type"] if isinstance(given, Mapping) else given)
    except (ValueError, KeyError, AttributeError):
        return False
    return True


def check_tables(tables: Sequence[TableSettings]) -> None:
    """Raise UsageError for the first table whose name, columns or types cannot be used."""
    taken = dict.fromkeys(RESERVED_TABLES, "shardcrawl's own")
    for table in tables:
        _check_identifier("table", table.name, taken)
        taken[table.name] = "another table of the job"
        if _PART_OR_VIEW.fullmatch(table.name):
            raise UsageError(
                f"job: table {table.name!r}: names ending in _current or _r1 are shardcrawl's own; rename it"
            )
        if not table.columns:
            raise UsageError(f'job: table {table.name} needs columns = {{ id = "bigint", … }}')
        for column, kind in table.columns:
            _check_identifier(f"table {table.name}: column", column, _TAKEN_COLUMNS)
            try:
                column_type(kind)
            except ValueError as error:
                raise UsageError(f"job: table {table.name}: column {column} is of type {kind!r}; {error}") from error
        _check_unique(table)


def _check_unique(table: TableSettings) -> None:
    types = dict(table.columns)
    for name in table.unique:
        if name not in types:
            raise UsageError(f"job: table {table.name}: unique names {name!r}; its columns are {', '.join(types)}")
        if column_type(types[name]).name == "json":
            raise UsageError(f"job: table {table.name}: unique: Postgres compares no json; make {name} a jsonb")


def _check_identifier(what: str, name: str, taken: Mapping[str, str]) -> None:
    """Raise UsageError when the name is none that a job may use, or is `taken`, which says by what."""
    fault = identifier_fault(name)
    if fault:
        raise UsageError(f"job: {what} {name!r}: {fault}")
    if name in taken:
        raise UsageError(f"job: {what} {name!r} is taken: it is {taken[name]}; use another name")
