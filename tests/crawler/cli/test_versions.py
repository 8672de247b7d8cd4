"""What the commands about versions say."""

from __future__ import annotations

from coordinator.model import Outcome
from crawler.cli.versions import kept_words


def test_what_a_cancelled_run_leaves() -> None:
    assert kept_words({Outcome.STORED: 1234, Outcome.GONE: 1}) == "1,234 stored, 1 gone keys stay in Postgres"
    assert kept_words({}) == "no keys of it are in Postgres", "`retry` put all of them back"
