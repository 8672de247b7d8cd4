"""What must stay the same within a run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from crawler.job.fixed import changed_setting, why_no_new_run
from tests.crawler.job.examples import a_document, a_job


class Begun:
    """A run that was begun with this job."""

    name = "test"

    def __init__(self, folder: str | None = None, **sections: Any) -> None:
        self.folder = folder
        self.document = a_document(**sections)


def with_table(**columns: Any) -> dict[str, Any]:
    return {"tables": [{"name": "facts", "columns": columns}]}


def test_a_column_that_is_new_needs_a_new_run() -> None:
    job = a_job(**with_table(t={"type": "text", "from": "title"}, n="bigint"))
    assert changed_setting(job, Begun(**with_table(n="bigint"))) == (
        "run test was begun without column t of table facts, and has these columns to its end: finish it with the job "
        "as it was, or give the new run another --name"
    )
    assert changed_setting(job, Begun(**with_table(n="bigint", t="text"))) is None


def test_the_tables_of_a_run_stay_in_their_schema() -> None:
    job = a_job(store={"schema": "afd", "batch_rows": 7})
    assert changed_setting(job, Begun(store={"schema": "afd"})) is None
    assert "begun with another [store] schema" in (changed_setting(job, Begun()) or "")


@pytest.mark.parametrize(
    ("then", "folder", "message"),
    [
        ({"corpus": "afd"}, "/job", None),
        ({"corpus": "old"}, "/job", '"old", now "afd"'),
        ({}, "/job", '"test", now "afd"'),
        ({}, None, None),
    ],
    ids=["the same", "another one", "none, which is the name", "of an older version"],
)
def test_a_run_stays_in_its_corpus(then: dict[str, Any], folder: str | None, message: str | None) -> None:
    job = a_job(run={"name": "test", "corpus": "afd"})
    refused = f"run test was begun with another [run] corpus ({message}): give the new run another --name"
    assert changed_setting(job, Begun(folder, run={"name": "test", **then})) == (refused if message else None)


@pytest.mark.parametrize("then", [with_table(n="text"), with_table(n="bigint", t="text"), {}])
def test_another_difference_between_tables_is_shown(then: dict[str, Any]) -> None:
    message = changed_setting(a_job(**with_table(n="bigint")), Begun(**then))
    assert message is not None
    assert "run test was begun with another [tables]" in message


def test_unique_and_since_are_not_fixed() -> None:
    unique = {"tables": [{"name": "facts", "columns": {"n": "bigint"}, "unique": ["n"], "mode": "merge"}]}
    job = a_job(run={"name": "test", "since": "2026-01-01"}, **unique)
    assert changed_setting(job, Begun(**with_table(n="bigint"))) is None


@pytest.mark.parametrize(
    ("folder", "names_corpus", "changed", "is_refused"),
    [
        ("/other", False, {"request": {"url": "https://other/{key}"}}, True),
        ("/other", False, {"source": {"path": "others.txt"}}, True),
        ("/other", False, {}, False),
        ("/other", True, {"request": {"url": "https://other/{key}"}}, False),
        ("/first", False, {"request": {"url": "https://other/{key}"}}, False),
        (None, False, {"request": {"url": "https://other/{key}"}}, False),
    ],
)
def test_a_job_file_in_another_folder_does_not_take_a_corpus_over(
    folder: str | None, names_corpus: bool, changed: dict[str, Any], is_refused: bool
) -> None:
    job = replace(a_job(**changed), folder="/first", names_corpus=names_corpus)
    message = why_no_new_run(job, Begun(folder=folder), None)
    assert (message is not None) is is_refused
    if message:
        assert "the job in /other" in message
        assert "write [run] corpus" in message
