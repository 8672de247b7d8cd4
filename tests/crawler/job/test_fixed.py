"""What must stay the same within a run."""

from __future__ import annotations

from typing import Any

import pytest

from crawler.job.fixed import changed_setting
from tests.crawler.job.examples import a_document, a_job


class Begun:
    """A run that was begun with this job."""

    name = "test"

    def __init__(self, **sections: Any) -> None:
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


@pytest.mark.parametrize("then", [with_table(n="text"), with_table(n="bigint", t="text"), {}])
def test_another_difference_between_tables_is_shown(then: dict[str, Any]) -> None:
    message = changed_setting(a_job(**with_table(n="bigint")), Begun(**then))
    assert message is not None
    assert "run test was begun with another [tables]" in message


def test_unique_and_since_are_not_fixed() -> None:
    unique = {"tables": [{"name": "facts", "columns": {"n": "bigint"}, "unique": ["n"], "mode": "merge"}]}
    job = a_job(run={"name": "test", "since": "2026-01-01"}, **unique)
    assert changed_setting(job, Begun(**with_table(n="bigint"))) is None
