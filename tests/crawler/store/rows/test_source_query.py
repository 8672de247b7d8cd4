"""`[source] query`: what a query returns as rows, and what is said of one that cannot be read."""

from __future__ import annotations

import asyncio
from contextlib import closing

import pytest

from coordinator.errors import SourceError
from coordinator.source import Columns, Cursor
from coordinator.source.rows.query import QueryRows
from crawler.store.rows.source_query import SourceQuery

pytestmark = pytest.mark.anyio
ROWS = "select * from (values ('a', 1.50), ('b', null)) t (sku, n) order by sku"


def read(database: str, statement: str, key: str = "sku") -> list[object] | str:
    """The cells of the rows, or the error in their place."""
    with closing(SourceQuery(database, statement)) as reader:
        try:
            return [row.cells for row in QueryRows(reader, Columns((key,))).rows(Cursor())]
        except SourceError as error:
            return str(error)


async def test_a_query_is_read_and_one_that_cannot_be_is_one_line(database: str) -> None:
    found = [{"sku": "a"}, {"sku": "b"}]
    cases: dict[str, object] = {
        ROWS: found,
        f"{ROWS} ;;\n": found,
        f"{ROWS} -- by key": found,
        f"{ROWS}; -- by key": '[source] query: syntax error at or near ";"; leave out the semicolon',
        "select 'a' as sku where 'a' = $1 order by 1": "[source] query has a parameter, like $1; write its value there",
        "select sku from none order by 1": '[source] query: relation "none" does not exist',
        "select 1 as sku order by none": '[source] query: column "none" does not exist',
        "select 'a' as sku, 'b' as sku order by 1": "[source] query has two columns sku; give one of them another name",
        "select 1 / 0 as sku order by 1": "[source] query: division by zero",
    }
    assert {one: await asyncio.to_thread(read, database, one) for one in cases} == cases
