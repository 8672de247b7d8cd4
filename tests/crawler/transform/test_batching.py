from __future__ import annotations

import pytest

from crawler.transform.batching import (
    MAX_BATCH_BYTES,
    Coming,
    PassingPage,
    Portion,
    Waiting,
    count_of_next,
    halves,
    rows_of_next,
    take_records,
)
from tests.crawler.examples import a_page

BATCH, PROCESSES = 100, 2


ANY, AFTER, NOTHING = Coming


def waiting(
    rows: int, held: int = 0, *, idle: bool = True, coming: Coming = ANY, aged: bool = False, size: int = 0
) -> Waiting:
    return Waiting(rows, size, max(rows, held), is_idle=idle, coming=coming, is_aged=aged)


@pytest.mark.parametrize(
    ("state", "rows"),
    [
        (waiting(99), 0),
        (waiting(100), 100),
        (waiting(250), 100),
        (waiting(100, idle=False), 100),
        (waiting(99, aged=True), 99),
        (waiting(99, aged=True, idle=False), 0),
        (waiting(1, size=MAX_BATCH_BYTES, idle=False), 100),
        # Nothing comes before a commit: what is there is shared.
        (waiting(80, coming=AFTER), 20),
        (waiting(80, coming=AFTER, idle=False), 20),
        (waiting(20, 80, coming=AFTER, idle=False), 20),
        (waiting(19, 80, coming=AFTER, idle=False), 0),
        (waiting(19, 80, coming=AFTER), 19),
        (waiting(1000, coming=AFTER), 100),
        (waiting(1, coming=AFTER), 1),
        (waiting(0, 80, coming=AFTER), 0),
        # Nothing comes at all: an idle process gets its share of what waits.
        (waiting(80, 400, coming=NOTHING), 40),
        (waiting(80, 400, coming=NOTHING, idle=False), 0),
        (waiting(200, coming=NOTHING, idle=False), 100),
        (waiting(1, coming=NOTHING), 1),
        (waiting(0, 80, coming=NOTHING), 0),
    ],
)
def test_a_batch_begins_when_it_is_full_or_a_process_would_have_nothing_to_do(state: Waiting, rows: int) -> None:
    assert rows_of_next(state, BATCH, PROCESSES) == rows


def portions(*each: tuple[str, int], size: int = 1) -> list[Portion]:
    return [Portion(PassingPage(a_page(key)), 0, rows, b"x" * size, 0.0) for key, rows in each]


@pytest.mark.parametrize(
    ("given", "count"),
    [
        (portions(("a", 5)), 1),
        (portions(("a", 50)), 1),
        (portions(("a", 5), ("b", 5), ("c", 1)), 2),
        (portions(("a", 9), ("b", 2), ("c", 1)), 1),
        (portions(("a", 1), ("a", 1), ("b", 1)), 1),
        (portions(("a", 1), ("b", 1), ("a", 1)), 2),
        (portions(("a", 1), ("b", 1), ("c", 1), size=MAX_BATCH_BYTES // 2), 2),
    ],
)
def test_a_batch_has_whole_keys_and_each_once(given: list[Portion], count: int) -> None:
    assert count_of_next(given, 10) == count


def test_halves_have_every_key_and_none_is_empty() -> None:
    for length in range(2, 9):
        given = portions(*((str(number), 1) for number in range(length)))
        first, second = halves(given)
        assert [*first, *second] == given
        assert first
        assert second


def test_the_records_of_one_table_are_taken_and_the_others_stay() -> None:
    page = a_page("a")
    page.records = [(0, ("x",)), (1, ("y",)), (0, ("z",))]
    assert take_records(page, 0) == [("x",), ("z",)]
    assert page.records == [(1, ("y",))]
