from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from arro3.core import Table

import crawler
from coordinator.errors import UsageError
from crawler.store.tables import RunTables
from tests.crawler.examples import a_loading_run, a_page, a_table, finished

pytestmark = pytest.mark.anyio
FACTS = a_table(n="bigint", t="text")


async def test_rows_are_read_as_arrow_by_table_columns_and_condition(database: str) -> None:
    async with a_loading_run(database, FACTS) as run:
        await run.store([a_page(f"key-{n}", records=[(n, f"t{n}")]) for n in range(5000)])
        await finished(run.eye, RunTables(run.run_id), run.epoch, [FACTS])
        # Called where a loop runs, as in a notebook.
        reader = crawler.read("test", "facts", columns=["_key", "n"], where="n < 3000", database=database)
        table = Table(await asyncio.to_thread(reader.read_all))
        assert (table.schema.names, table.num_rows) == (["_key", "n"], 3000)
        assert {f"key-{n}" for n in table.column("n").to_pylist()} == set(table.column("_key").to_pylist())
        pages = crawler.read("test", "pages", columns=["outcome"], database=database)
        assert set(Table(pages.read_all()).column("outcome").to_pylist()) == {"stored"}
        for wrong, words in (
            ({"name": "other"}, "no run other"),
            ({"table": "other"}, "no table other; it has pages, facts"),
            ({"columns": []}, "columns is \\[\\]; give a list"),
            ({"columns": "n"}, "columns is 'n'; give a list"),
            ({"columns": ["m"]}, "no column m; it has _key, run_id, digest, n, t"),
            ({"where": "m > 2"}, 'read: where: column "m" does not exist'),
            ({"where": "n > 'x'"}, "read: where: invalid input syntax"),
        ):
            with pytest.raises(UsageError, match=words):
                crawler.read(**({"name": "test", "database": database} | wrong)).read_all()  # type: ignore[arg-type]


@pytest.mark.parametrize("batches", [0, 1])
async def test_a_reader_that_is_not_read_to_its_end_leaves_no_connection(database: str, batches: int) -> None:
    async with a_loading_run(database, FACTS) as run:
        await run.store([a_page(f"key-{n}", records=[(n, "x")]) for n in range(5000)])
        await finished(run.eye, RunTables(run.run_id), run.epoch, [FACTS])
        reader = crawler.read("test", database=database)
        for _ in range(batches):
            next(iter(reader))
        del reader
        others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        async with asyncio.timeout(10):
            while await run.eye.fetchval(others):
                await asyncio.sleep(0.01)


READERS: dict[str, Callable[[Any, Any], list[tuple[int, str]]]] = {
    "polars": lambda polars, rows: polars.DataFrame(rows).sort("n").rows(),
    "pandas": lambda pandas, rows: [*pandas.DataFrame.from_arrow(rows).sort_values("n").itertuples(False, None)],
    "duckdb": lambda duckdb, rows: duckdb.sql("SELECT n, t FROM rows ORDER BY n").fetchall(),
    "pyarrow": lambda pyarrow, rows: [*zip(*pyarrow.table(rows).sort_by("n").to_pydict().values(), strict=True)],
}


@pytest.mark.parametrize("name", READERS)
async def test_libraries_take_what_is_read(name: str, database: str) -> None:
    for needed in ["pyarrow", "pandas"] if name == "pandas" else [name]:
        library = pytest.importorskip(needed, reason=f"{needed} is large and in no lock file: pip install {needed}")
    async with a_loading_run(database, FACTS) as run:
        await run.store([a_page(f"key-{n}", records=[(n, f"t{n}")]) for n in range(5000)])
        await finished(run.eye, RunTables(run.run_id), run.epoch, [FACTS])
        rows = crawler.read("test", columns=["n", "t"], database=database)
        assert READERS[name](library, rows) == [(n, f"t{n}") for n in range(5000)]
