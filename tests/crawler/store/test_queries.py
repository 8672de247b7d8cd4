from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import pytest

import crawler
from crawler.store.queries import query

SQL = "".join(
    file.read_text() for file in files("crawler.store").joinpath("sql").iterdir() if file.name.endswith(".sql")
)
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
    # The body of a function, between its $$, has statements of its own.
    assert ";" not in re.sub(r"\$\$.*\$\$", "", query(name), flags=re.DOTALL)
    assert query(name)


def test_a_query_nobody_wrote_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        query("no-such-query")
