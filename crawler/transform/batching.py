"""Pure: when a transform's next batch begins, what is in it, and what becomes of one that failed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from crawler.model import Page

MAX_BATCH_BYTES = 8 * 1024 * 1024
# For each process one batch to work at, and one that waits there.
BATCHES_AHEAD = 2


@dataclass(slots=True, eq=False)
class PassingPage:
    """A page on its way through the transforms; `made` has the records of each portion that came back from this one."""

    page: Page
    open: int = 0
    made: list[Sequence[tuple[int, Any]]] = field(default_factory=list)


def take_records(page: Page, table: int) -> list[dict[str, Any]]:
    """Take the records of a table out of the page."""
    taken: list[dict[str, Any]] = [record for number, record in page.records if number == table]  # type: ignore[misc]
    page.records = [one for one in page.records if one[0] != table]
    return taken


class Portion(NamedTuple):
    """Records of one key that stay together, as a pickle: all that it has, unless a batch cannot hold so many.

    `rows` is how many, `number` which part of the page it is. It came at `at`, by the step's clock.
    """

    passing: PassingPage
    number: int
    rows: int
    content: bytes
    at: float

    @property
    def key(self) -> str:
        """The key that the user's function reads."""
        return self.passing.page.item.user_key


class Waiting(NamedTuple):
    """What a transform knows when it decides. `rows` and `size` (bytes) wait, `held` rows wait or are in processes.

    `is_idle`: a process has nothing to do. `may_grow`: more records may come before any of these are committed.
    `is_aged`: the oldest has waited as long as it may.
    """

    rows: int
    size: int
    held: int
    is_idle: bool
    may_grow: bool
    is_aged: bool


def rows_of_next(waiting: Waiting, batch: int, processes: int) -> int:
    """How many rows the next batch has at most; 0 when none begins now.

    When nothing more can come, what is there is shared among the processes, in parts small enough that each has two.
    Less than a whole batch begins only where a process would do nothing else.
    """
    size = batch if waiting.may_grow else max(1, min(batch, -(-waiting.held // (BATCHES_AHEAD * processes))))
    if waiting.rows >= size or waiting.size >= MAX_BATCH_BYTES:
        return size
    return waiting.rows if waiting.is_idle and (waiting.is_aged or not waiting.may_grow) else 0


def count_of_next(portions: Iterable[Portion], rows: int) -> int:
    """How many of the portions, from the first, are the next batch: one at least, and none with a key of another.

    The same key has several portions when it has many records, and several pages when it is a list.
    """
    keys: set[str] = set()
    size = count = 0
    for portion in portions:
        rows -= portion.rows
        size += len(portion.content)
        if count and (rows < 0 or size > MAX_BATCH_BYTES or portion.key in keys):
            return count
        keys.add(portion.key)
        count += 1
    return count


def halves(portions: Sequence[Portion]) -> tuple[Sequence[Portion], Sequence[Portion]]:
    """The two halves of a batch that failed, by keys."""
    middle = len(portions) // 2
    return portions[:middle], portions[middle:]
