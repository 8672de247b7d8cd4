"""Types of columns by any of Postgres' names, and names that a column may not have."""

from __future__ import annotations

import pytest

from coordinator.errors import UsageError
from crawler.job.tables import SYSTEM_COLUMNS, TableSettings, check_tables, column_type
from crawler.store.postgres import PostgresConnection
from tests.crawler.examples import a_table

NAMES = {
    "int": "integer",
    "INT4": "integer",
    "int2": "smallint",
    "int8": "bigint",
    "int8[]": "bigint[]",
    "int []": "integer[]",
    "float": "double precision",
    "float8": "double precision",
    "float(24)": "real",
    "float(25)": "double precision",
    "float4": "real",
    "Double  Precision": "double precision",
    "bool": "boolean",
    "decimal": "numeric",
    "dec(5)": "numeric(5)",
    "DECIMAL ( 10 , 2 ) []": "numeric(10,2)[]",
    "character varying": "varchar",
    "character varying(20)": "varchar(20)",
    "varchar(20000)": "varchar(20000)",
    "character": "char",
    "character(3)": "char(3)",
    "timestamp with time zone": "timestamptz",
    "timestamp(3) with time zone": "timestamptz(3)",
    "timestamp (3) without time zone": "timestamp(3)",
    "timestamp without time zone[]": "timestamp[]",
    "timestamptz(3)": "timestamptz(3)",
    "time with time zone": "timetz",
    "time(3) without time zone": "time(3)",
    " Text ": "text",
}
NO_TYPES = [
    *(
        "",
        "()",
        "text(5)",
        "varchar(3,4)",
        "varchar(-1)",
        "text[][]",
        "int[3]",
        "serial",
        "int8range",
        "money",
        "float(54)",
    ),
    *(
        "timestamptz with time zone",
        "date with time zone",
        "text; drop table runs",
        "integer)",
        "numeric(1,2,3)",
        "int\0",
    ),
]


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_a_type_means_what_it_means_in_postgres(name: str) -> None:
    assert str(column_type(name)) == NAMES[name]
    assert str(column_type(NAMES[name])) == NAMES[name]


@pytest.mark.anyio
async def test_postgres_agrees_that_the_names_mean_the_same(connection: PostgresConnection) -> None:
    for number, (name, ours) in enumerate(NAMES.items()):
        await connection.execute(f"CREATE TEMP TABLE t{number} (a {name}, b {ours})")
    differing = await connection.fetch(
        """SELECT relname FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid
           WHERE relpersistence = 't' AND relname ~ '^t[0-9]+$' AND attnum > 0
           GROUP BY relname HAVING count(DISTINCT (atttypid, atttypmod)) > 1"""
    )
    assert not differing


@pytest.mark.parametrize("name", NO_TYPES)
def test_any_other_name_is_refused_with_those_that_are_known(name: str) -> None:
    with pytest.raises(ValueError, match="^known types are bigint, "):
        column_type(name)


@pytest.mark.parametrize(
    ("column", "owner"),
    [
        *((name, "shardcrawl's own") for name in ("run_id", "digest", "_key")),
        *((name, "a column that Postgres gives every table") for name in SYSTEM_COLUMNS),
    ],
)
def test_a_column_that_is_there_anyway_is_refused_with_the_reason(column: str, owner: str) -> None:
    with pytest.raises(UsageError, match=f"column '{column}' is taken: it is {owner}; use another name"):
        check_tables([a_table(**{column: "text"})])


@pytest.mark.parametrize(
    ("unique", "says"),
    [
        (("id", "sku"), "table facts: unique names 'sku'; its columns are id, raw"),
        (("raw",), "table facts: unique: Postgres compares no json; make raw a jsonb"),
    ],
)
def test_unique_names_columns_that_postgres_can_compare(unique: tuple[str, ...], says: str) -> None:
    table = TableSettings(name="facts", column_settings={"id": "bigint", "raw": "json[]"}, unique=unique)
    with pytest.raises(UsageError, match=says):
        check_tables([table])
