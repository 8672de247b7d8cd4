"""A column that was filled and is null in every record of 1,000 pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from crawler.model import Page
from crawler.parse.null_columns import WINDOW_PAGES, NullColumnWatch
from tests.crawler.examples import a_page, a_table

TABLES = [a_table(a="text", b="text"), a_table("notes", c="text")]


class Looking:
    """A watch whose clock counts the pages."""

    def __init__(self) -> None:
        self.pages = 0
        self.watch = NullColumnWatch(TABLES, clock=lambda: self.pages)

    def look(self, pages: int, *records: tuple[int, Sequence[Any]]) -> list[str]:
        found: list[str] = []
        for _ in range(pages):
            page: Page = a_page("k")
            page.records = [(number, tuple(row)) for number, row in records]
            found += self.watch.add([page])
            self.pages += 1
        return found


def test_a_column_that_turned_null_is_found_with_since_when() -> None:
    looking = Looking()
    assert looking.look(WINDOW_PAGES, (0, ("x", "y"))) == []
    assert looking.look(WINDOW_PAGES, (0, ("x", None)), (0, ("x", None))) == []
    assert looking.look(1, (0, ("x", None))) == ["facts.b"]
    assert looking.watch.turned == {"facts.b": WINDOW_PAGES}
    assert looking.look(3 * WINDOW_PAGES, (0, ("x", None))) == []  # it is said once


def test_one_value_in_the_window_is_enough_to_be_filled() -> None:
    looking = Looking()
    looking.look(WINDOW_PAGES, (0, ("x", "y")))
    looking.look(500, (0, ("x", None)))
    looking.look(1, (0, ("x", None)), (0, ("x", "z")))
    assert looking.look(600, (0, ("x", None))) == []


def test_a_column_that_was_never_filled_and_a_table_without_records_say_nothing() -> None:
    looking = Looking()
    looking.look(WINDOW_PAGES, (0, ("x", None)), (1, ("c",)))
    assert looking.look(5 * WINDOW_PAGES, (0, ("x", None))) == []
    assert looking.look(WINDOW_PAGES) == []
    assert looking.watch.turned == {}
