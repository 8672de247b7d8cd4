"""What the user's function gets, what it may return, and what its mistakes cost."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from coordinator.errors import UsageError
from crawler.job.job import Job, read_job
from crawler.pool.protocol import pickled, unpickled
from crawler.transform.function import Transform
from crawler.transform.handler import BatchTask, TransformSetup, transform_handler
from tests.crawler.examples import a_document

COLUMNS = {"n": "bigint", "price": "numeric(6, 2)", "at": "timestamptz"}
TABLES = [{"name": "given", "columns": COLUMNS}, {"name": "parts", "columns": {"part": "text"}}]
GIVEN: Mapping[str, Sequence[dict[str, Any]]] = {"a": [{"n": 1, "extra": "x"}, {"n": 2}], "b": [{"n": 3}]}


def a_transforming_job(folder: Path, code: str, **settings: Any) -> Job:
    (folder / "features.py").write_text(code)
    transform = {"python": "features:batch"} | settings
    return read_job(a_document(tables=TABLES, transform=transform), str(folder))


def transform_of(folder: Path, body: str, before: str = "", **settings: Any) -> Transform:
    return Transform(a_transforming_job(folder, f"{before}\ndef batch(records):\n    {body}\n", **settings), 0)


@pytest.mark.parametrize(
    ("body", "made"),
    [
        ("return records[:1] if not records[0].pop('extra') else []", {"a": [], "b": []}),
        (
            "return [{'_key': r['_key'], 'n': 10 * r['n'], 'price': '1.50'} for r in records]",
            {"a": [(0, (10, Decimal("1.50"), None)), (0, (20, Decimal("1.50"), None))],
             "b": [(0, (30, Decimal("1.50"), None))]},
        ),
        (
            "return {'parts': ({'_key': r['_key'], 'part': p} for r in records for p in r.get('extra', '') * 2)}",
            {"a": [(1, ("x",)), (1, ("x",))], "b": []},
        ),
        (
            "return [{'_key': r['_key'], 'n': r['n'] + (0.5 if r['n'] == 2 else 0)} for r in records]",
            {"a": "transform: given.n: 2.5 is no whole number", "b": [(0, (3, None, None))]},
        ),
        ("return records", {"a": "transform: given has no column extra", "b": [(0, (3, None, None))]}),
    ],
)  # fmt: skip
def test_what_a_function_returns_is_sorted_by_key_and_converted(tmp_path: Path, body: str, made: Any) -> None:
    assert transform_of(tmp_path, body).apply(GIVEN) == made


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("pass", "TypeError: given: the function returned NoneType; it must be a list of records"),
        ("return 'abc'", "TypeError: given: the function returned str; it must be a list of records"),
        ("return {'part': []}", "ValueError: no table 'part' in the job; it has given, parts"),
        ("return [{'n': 1}]", 'ValueError: given: a record is a mapping and says whose it is: "_key"'),
        ("return [(1, None, None)]", "ValueError: given: a record is a mapping"),
        ("return [{'_key': 'c', 'n': 1}]", "ValueError: given: a record of key 'c', which is not in this batch"),
        ("return records[9]", "IndexError: list index out of range (features.py, line 3)"),
        ("raise SystemExit(3)", "SystemExit: 3 (features.py, line 3)"),
    ],
)
def test_the_reason_says_what_the_function_has_done_and_where(tmp_path: Path, body: str, reason: str) -> None:
    handle = transform_handler(
        TransformSetup(a_transforming_job(tmp_path, f"\ndef batch(records):\n    {body}\n"), 0, {})
    )
    result = handle(BatchTask(list(GIVEN), [pickled(records) for records in GIVEN.values()]))
    assert str(result.error).startswith(f"transform: {reason}")


def test_records_for_a_transform_behind_it_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "features.py").write_text("def batch(records):\n    return records\n")
    transforms = [{"python": "features:batch"}] * 2
    job = read_job(a_document(tables=TABLES, transform=transforms), str(tmp_path))
    assert Transform(job, 0).apply(GIVEN)["a"] == [(0, {"n": 1, "extra": "x"}), (0, {"n": 2})]
    assert Transform(job, 1).apply(GIVEN)["a"] == "transform: given has no column extra"


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("def other(records): ...", "[transform] python: module features has no function 'batch'"),
        ("async def batch(records): ...", "[transform] python: features:batch is async; write a plain function"),
        ("batch = 1 / 0", "[transform] python: cannot import features: ZeroDivisionError: division by zero"),
        ("def batch(_): ...\ndef setup():\n    1 / 0", "[transform] features:batch: setup: ZeroDivisionError"),
    ],
)  # fmt: skip
def test_a_function_that_cannot_be_used_is_said_in_one_line(tmp_path: Path, code: str, says: str) -> None:
    job = a_transforming_job(tmp_path, code)
    with pytest.raises(UsageError) as raised:
        transform_handler(TransformSetup(job, 0, {}))
    assert str(raised.value).startswith(says)
    assert "\n" not in str(raised.value)


def test_setup_is_called_once_and_its_names_are_those_of_the_function(tmp_path: Path) -> None:
    before = "calls = []\ndef setup():\n    calls.append(1)"
    transform = transform_of(tmp_path, "return [{'_key': 'a', 'n': len(calls)}]", before)
    transform.set_up()
    transform.set_up()
    assert transform.apply({"a": [{"n": 0}]}) == {"a": [(0, (1, None, None))]}


def test_a_function_that_is_out_of_time_is_interrupted(tmp_path: Path) -> None:
    job = a_transforming_job(tmp_path, "def batch(records):\n    while True: pass\n", seconds=0.1)
    result = transform_handler(TransformSetup(job, 0, {}))(BatchTask(["a"], [pickled([{}])]))
    assert result.error == "transform: OutOfTime: no result within 0.1 s ([transform] seconds) (features.py, line 2)"
    assert result.seconds >= 0.1


def test_one_key_pays_for_records_that_cannot_go_to_another_process(tmp_path: Path) -> None:
    code = "class Own: ...\ndef batch(records):\n    return [{'_key': r['_key'], 'part': r['n']} for r in records]\n"
    job = a_transforming_job(tmp_path, code)
    handle = transform_handler(TransformSetup(job, 0, {}))
    result = handle(BatchTask(["a", "b"], [b"no pickle", pickled([])]))
    first, second = result.made
    assert "cannot go from one process to another" in str(first)
    assert isinstance(second, bytes)
    assert unpickled(second) == []


ARROW = """
from arro3.core import Table

def batch(table: Table):
    assert table.column_names == ["_key", "n", "price", "at", "day", "words", "more"]
    types = [str(table.schema.field(name).type).split("<")[1] for name in table.column_names]
    assert [one[:5] for one in types] == ["Utf8>", "Int64", "Utf8>", "Times", "Date3", "List(", "Utf8>"]
    return RETURNED
"""
ARROW_TABLES = [
    {
        "name": "given",
        "columns": COLUMNS | {"day": "date", "words": "text[]", "more": "jsonb"},
    }
]


@pytest.mark.parametrize("returned", ["table", "{'given': table}"])
def test_a_function_that_says_so_gets_and_returns_an_arrow_table(tmp_path: Path, returned: str) -> None:
    (tmp_path / "features.py").write_text(ARROW.replace("RETURNED", returned))
    document = a_document(tables=ARROW_TABLES, transform={"python": "features:batch"})
    transform = Transform(read_job(document, str(tmp_path)), 0)
    moment = dt.datetime(2026, 1, 1, 12, 30, 0, 123456, tzinfo=dt.UTC)
    first = {
        "n": 2**40,
        "price": "1.50",
        "at": moment,
        "day": dt.date(1969, 7, 20),
        "words": ["a", None],
        "more": {"b": 1},
    }
    made = transform.apply({"a": [first, {}], "b": [{"words": []}]})
    row = (2**40, Decimal("1.50"), moment, dt.date(1969, 7, 20), ["a", None])
    assert [record[1][:5] for record in made["a"]] == [row, (None,) * 5]  # type: ignore[index]
    assert made["b"] == [(0, (None, None, None, None, [], None))]
