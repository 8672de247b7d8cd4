"""What came of a run, as `crawler.run` returns it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from coordinator.model import Outcome, outcomes_json
from crawler.cli.display.screen import reason_words
from crawler.cli.run import exit_code_of
from crawler.local.events import RunEnd
from crawler.local.services import Place
from crawler.reader import read

if TYPE_CHECKING:
    from arro3.core import RecordBatchReader


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run has ended: `complete`, or `paused` because all that is left is for upstreams that refuse everything.

    `outcomes` are its keys by outcome, `tables` those of its job. `published` says whether readers see it, and
    `shortfall` why not. `ok` is whether `shardcrawl run` would end with exit code 0. `notices` are why keys
    were refused or failed, and what else it would say. `seconds` is how long this call worked on it.
    """

    run: str
    corpus: str
    state: Literal["complete", "paused"]
    outcomes: Mapping[str, int]
    published: bool
    shortfall: str | None
    ok: bool
    tables: Sequence[str]
    notices: Sequence[str]
    seconds: float
    place: Place = field(repr=False)

    @classmethod
    def of(cls, end: RunEnd, place: Place) -> RunResult:
        """The result of a run that has ended so, whose rows are at this place."""
        reasons = (reason_words(outcome, end.reasons) for outcome in (Outcome.REFUSED, Outcome.FAILED))
        return cls(
            run=end.job.run.name,
            corpus=end.job.corpus,
            state="complete" if end.stored else "paused",
            outcomes=outcomes_json(end.outcomes),
            published=end.stored is not None and end.stored.published_at is not None,
            shortfall=(end.stored.shortfall or None) if end.stored else None,
            ok=exit_code_of(end) == 0,
            tables=tuple(table.name for table in end.job.tables),
            notices=(*filter(None, reasons), *end.notices),
            seconds=end.seconds,
            place=place,
        )

    @property
    def summary(self) -> str:
        """How it has ended, in one line."""
        counted = [f"{keys:,} {outcome}" for outcome, keys in self.outcomes.items() if keys]
        return f"run {self.run} is {self.state}: {', '.join(counted) or 'no key'}"

    def read(
        self, table: str = "", *, columns: Sequence[str] | None = None, where: str | None = None
    ) -> RecordBatchReader:
        """The rows of this run, as `crawler.read` gives them."""
        place = self.place
        return read(self.run, table, columns=columns, where=where, database=place.database, data=place.data)
