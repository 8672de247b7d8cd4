from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import pytest

import crawler
from crawler.store.queries import query, schema
from tests.crawler.examples import a_loading_run

SQL = files("crawler.store").joinpath("sql", "queries.sql").read_text()
NAMES = re.findall(r"^-- name: (\S+)$", SQL, re.MULTILINE)
CALLS = re.findall(
    r"""\bquery\(\s*"([^"]+)"((?:\s*,\s*\w+=)?)""",
    "\n".join(path.read_text() for path in Path(next(iter(crawler.__path__))).rglob("*.py")),
)


def test_every_query_that_is_called_exists_and_every_one_that_exists_is_called() -> None:
    assert {name for name, _ in CALLS} == set(NAMES)
    assert len(NAMES) == len(set(NAMES))


@pytest.mark.parametrize("name", NAMES)
def test_a_query_with_places_is_called_with_identifiers_and_only_such_a_one(name: str) -> None:
    places = set(re.findall(r"{(\w+)}", query(name)))
    assert {bool(identifiers) for called, identifiers in CALLS if called == name} == {bool(places)}
    if places:
        filled = query(name, **dict.fromkeys(places, '"x"'))
        assert "{" not in filled
        assert "}" not in filled


@pytest.mark.parametrize("name", NAMES)
def test_a_query_is_one_statement_without_its_semicolon(name: str) -> None:
    assert ";" not in query(name)
    assert query(name)


def test_a_query_nobody_wrote_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        query("no-such-query")


@pytest.mark.anyio
async def test_the_schema_can_be_made_again(database: str) -> None:
    async with a_loading_run(database) as run:
        await run.eye.execute(schema())
        assert await run.eye.fetchval("SELECT count(*) FROM runs") == 1
