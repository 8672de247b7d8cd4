"""What `check --try` warns of; tests/live/test_check_try.py has what it sends."""

from __future__ import annotations

from typing import Any

import pytest

from crawler.cli.fetch import trial_warnings
from crawler.rehearsal import Rehearsal
from crawler.testing import Parsed
from tests.crawler.examples import a_job

TABLES = [
    {"name": "one", "columns": {"a": "bigint", "b": "text"}},
    {"name": "two", "columns": {"a": "bigint"}},
]


def found(key: str, outcome: str | None, one: list[Any], two: list[Any]) -> Rehearsal:
    tables = {"one": [{"a": a, "b": b} for a, b in one], "two": [{"a": a} for a in two]}
    parsed = Parsed(tables, {key: (outcome or "", None)}, {key: tables})
    return Rehearsal(key, outcome, None, (), "https://upstream.example/x", parsed=parsed)


@pytest.mark.parametrize(
    ("keys", "warnings"),
    [
        ([("k", "stored", [(1, "x")], [1])], []),
        ([("k", "stored", [(1, None)], [1])], ["one.b is null in every row (1)"]),
        ([("k", "stored", [(None, None)], [1])], ["one.a is null in every row (1)", "one.b is null in every row (1)"]),
        ([("k", "stored", [(1, None), (1, "x")], [1])], []),
        ([("k", "stored", [(1, None)], [1]), ("l", "stored", [(2, "x")], [1])], []),
        ([("k", "stored", [(1, "x")], [])], ["table two has no row"]),
        ([("k", "stored", [], [])], ["1 of 1 stored keys have no row: k"]),
        (
            [*((key, "stored", [], []) for key in "abcd"), ("k", "stored", [(1, "x")], [1])],
            ["4 of 5 stored keys have no row: a, b, c, …"],
        ),
        ([("k", "gone", [], []), ("l", "failed", [], []), ("m", None, [], [])], []),
    ],
)
def test_what_looks_wrong_is_said(keys: list[Any], warnings: list[str]) -> None:
    job = a_job(tables=TABLES, parse={"python": "a:b"})
    assert trial_warnings(job, [found(*key) for key in keys]) == warnings
