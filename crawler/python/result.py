"""What came of a run, as `crawler.run` returns it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from coordinator.model import RunCounts
from crawler.cli.display.progress import outcome_words
from crawler.cli.display.screen import outcomes_json
from crawler.cli.run import exit_code_of
from crawler.export.reader import read
from crawler.local.events import RunEnd
from crawler.local.services import Place

if TYPE_CHECKING:
    from arro3.core import RecordBatchReader


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run has ended: `complete`, or `paused` because all that is left is for upstreams that refuse everything.

    `outcomes` are its keys by outcome, `tables` those of its job. `published` says whether readers see it, and
    `shortfall` why not. `ok` is whether `shardcrawl run` would end with exit code 0. `notices` are what it would say
    besides. `seconds` is how long this call worked on it.
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
        return cls(
            run=end.job.run.name,
            corpus=end.job.corpus,
            state="complete" if end.stored else "paused",
            outcomes=outcomes_json(end.outcomes),
            published=end.stored is not None and end.stored.published_at is not None,
            shortfall=(end.stored.shortfall or None) if end.stored else None,
            ok=exit_code_of(end) == 0,
            tables=tuple(table.name for table in end.job.tables),
            notices=tuple(end.notices),
            seconds=end.seconds,
            place=place,
        )

    def read(
        self, table: str = "", *, columns: Sequence[str] | None = None, where: str | None = None
    ) -> RecordBatchReader:
        """The rows of this run, as `crawler.read` gives them."""
        place = self.place
        return read(self.run, table, columns=columns, where=where, database=place.database, data=place.data)


def end_lines(end: RunEnd) -> list[str]:
    """What is said of a run at its end, as lines."""
    how = "complete" if end.stored else "paused" if end.gave_up else "interrupted"
    words = outcome_words(RunCounts(outcomes=dict(end.outcomes)))
    return [f"run {end.job.run.name} is {how}: {words}", *end.notices]
