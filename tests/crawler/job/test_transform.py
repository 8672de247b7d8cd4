"""`[transform]` in a job file: one or several, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.errors import UsageError
from crawler.job.permissions import Permissions
from crawler.runs.content import content_hash
from tests.crawler.examples import a_job

TABLES = [{"name": name, "columns": {"n": "bigint"}} for name in ("facts", "notes")]


def a_transforming_job(transform: Any, **sections: Any) -> Any:
    return a_job(**{"tables": TABLES, "transform": transform} | sections)


def test_one_is_a_table_and_several_are_a_list_in_their_order() -> None:
    (one,) = a_transforming_job({"python": "a:b", "memory": "1.5GB"}).transform
    assert (one.table, one.memory_bytes, one.processes) == ("facts", 1_500_000_000, 1)
    several = a_transforming_job([{"python": "a:b", "table": "notes"}, {"python": "c:d"}]).transform
    assert [(each.python, each.table, each.memory_bytes) for each in several] == [
        ("a:b", "notes", None),
        ("c:d", "facts", None),
    ]


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"transform": "a:b"}, "transform is written as [transform], or as [[transform]], once for each"),
        ({"transform": {"pyton": "a:b"}}, "[transform] has no key 'pyton'; did you mean python?"),
        ({"transform": [{"python": "a:b", "rows": 5}]}, "[[transform]] has no key 'rows'; known are python"),
        ({"transform": {}}, "[transform] python is ''; write module:function"),
        ({"transform": {"python": "features"}}, "[transform] python is 'features'; write module:function"),
        ({"transform": {"python": "a:b", "table": "fact"}}, "table: no table 'fact'; did you mean 'facts'?"),
        ({"transform": {"python": "a:b", "table": "x"}}, "table: no table 'x'; the job has facts, notes"),
        ({"transform": {"python": "a:b"}, "tables": []}, "[transform] gets the records of a table: add [[tables]]"),
        ({"transform": {"python": "a:b", "memory": "1 gig"}}, "memory is '1 gig'; write a size like \"1GB\""),
        ({"transform": {"python": "a:b", "batch": 0}}, "[transform] batch is 0; it must be from 1 to 100000"),
        ({"transform": {"python": "a:b", "seconds": 26}}, "[transform] seconds is 26, and [run] grace 25: a worker"),
        ({"transform": {"python": "a:b"}, "run": {"name": "x", "grace": 19.5}}, "seconds is 20, and [run] grace 19.5"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(sections: Any, says: str) -> None:
    with pytest.raises(UsageError) as raised:
        a_transforming_job(**sections)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_another_machine_must_allow_the_function_too() -> None:
    job = a_transforming_job({"python": "features:batch"}, parse={"python": "parse:f"})
    with pytest.raises(UsageError, match="--allow-parser parse:f --allow-parser features:batch$"):
        Permissions().check(job)
    Permissions(parsers=("*",)).check(job)


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        ({"processes": 3, "batch": 5, "seconds": 1, "age": 3, "memory": "1GB"}, True),
        ({"table": "facts"}, True),
        ({"table": "notes"}, False),
        ({"python": "a:c"}, False),
    ],
)
def test_what_a_transform_makes_is_content_and_how_it_runs_is_not(change: dict[str, Any], is_same: bool) -> None:
    files = {"a.py": "1"}
    before = content_hash(a_transforming_job({"python": "a:b"}), files)
    assert (content_hash(a_transforming_job({"python": "a:b"} | change), files) == before) is is_same
    assert before != content_hash(a_job(tables=TABLES), files)
    assert content_hash(a_transforming_job({"python": "a:b"}), {}) is None
