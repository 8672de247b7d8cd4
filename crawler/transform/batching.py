"""Pure: when a transform's next batch begins, what is in it, and what becomes of one that failed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
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


class Coming(Enum):
    """Whether more records come to a transform: at any time, only after some of its own are committed, or not."""

    AT_ANY_TIME = 1
    AFTER_A_COMMIT = 2
    NOTHING = 3


class Waiting(NamedTuple):
    """What a transform knows when it decides. `rows` and `size` (bytes) wait, `held` rows wait or are in processes.

    `is_idle`: a process has nothing to do. `is_aged`: the oldest has waited as long as it may.
    """

    rows: int
    size: int
    held: int
    is_idle: bool
    coming: Coming
    is_aged: bool


def rows_of_next(waiting: Waiting, batch: int, processes: int) -> int:
    """How many rows the next batch has at most; 0 when none begins now.

    Less than a whole batch begins only where a process would do nothing else, or when no more can come. Before a commit
    what is there is shared among the processes, in parts small enough that each has two. At the end each process that
    has nothing to do gets its share of what waits: with parts that become smaller, all of them end together.
    """
    size = batch
    if waiting.coming is Coming.AFTER_A_COMMIT:
        size = max(1, min(batch, -(-waiting.held // (BATCHES_AHEAD * processes))))
    elif waiting.coming is Coming.NOTHING:
        size = max(1, min(batch, -(-waiting.rows // processes)))
        if size < batch and not waiting.is_idle:
            return 0
    if waiting.rows >= size or waiting.size >= MAX_BATCH_BYTES:
        return size
    return waiting.rows if waiting.is_idle and (waiting.is_aged or waiting.coming is Coming.AFTER_A_COMMIT) else 0


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
