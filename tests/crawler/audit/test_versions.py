"""Which run of a corpus readers see, as the audit judges it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from coordinator.model import Epoch
from crawler.audit.checks import Finding, InPostgres, Sessions, compare
from crawler.audit.versions import check_current
from crawler.store.rows.stored_run import StoredRun

MOMENT = datetime(2026, 11, 1, tzinfo=UTC)
NOT_COMPARED = Finding("something", "", "", True)


def a_run(run_id: int, *, published: bool = True, corpus: str = "afd") -> StoredRun:
    at = MOMENT if published else None
    return StoredRun(
        *(run_id, f"run-{run_id}", {}, Epoch("x"), True, {}, MOMENT, MOMENT), corpus=corpus, published_at=at
    )


@pytest.mark.parametrize(
    ("current", "found", "expected", "ok"),
    [
        (1, "run-1", "one that is published", True),
        (2, "run-2", "one that is published", True),
        (3, "run-3", "one that is published", False),
        (4, "run-4", "one that is published", False),
        (99, "none", "one that is published", False),
        (None, "none", "one that is published", False),
    ],
)
def test_readers_see_a_run_of_the_corpus_that_was_published(
    current: int | None, found: str, expected: str, ok: bool
) -> None:
    runs = [a_run(1), a_run(2), a_run(3, published=False), a_run(4, corpus="other")]
    one = check_current(runs, runs[0], current)
    assert (one.what, one.found, one.expected, one.ok) == ("run that readers of corpus afd see", found, expected, ok)


@pytest.mark.parametrize(("current", "ok"), [(None, True), (1, False)])
def test_readers_see_no_run_before_one_is_published(current: int | None, ok: bool) -> None:
    run = a_run(1, published=False)
    assert check_current([run], run, current).ok is ok


ALL, NONE = ("pages", "things"), ()


@pytest.mark.parametrize(
    ("complete", "published", "attached", "ok"),
    [
        pytest.param(True, True, ALL, True, id="published"),
        pytest.param(True, True, ("pages",), False, id="published, and a table lacks it"),
        pytest.param(True, True, NONE, False, id="published, and nobody sees it"),
        pytest.param(True, False, NONE, True, id="it fell short"),
        pytest.param(True, False, ALL, True, id="who published it died"),
        pytest.param(True, False, ("pages",), False, id="it fell short, and one table has it"),
        pytest.param(False, False, NONE, True, id="it goes on"),
        pytest.param(False, True, ALL, True, id="it goes on after it was published"),
    ],
)
def test_a_run_is_a_partition_of_all_tables_when_it_is_published_and_else_of_all_or_none(
    *, complete: bool, published: bool, attached: Sequence[str], ok: bool
) -> None:
    postgres = InPostgres(complete, {}, {}, 0, [], None, ALL, attached, published)
    findings = compare(NOT_COMPARED, postgres, NOT_COMPARED, Sessions(0, []), None, 0)
    assert [one.ok for one in findings if one.what == "tables where readers see the run"] == [ok]
