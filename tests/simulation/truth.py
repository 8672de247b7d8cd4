"""What is true outside Redis: the corpus, the pages in Postgres, the clock, and what happened so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from types import coroutine

from coordinator.model import FoundKey, Outcome
from coordinator.queue.registry import RunRecord
from coordinator.queue.sharding import Layout, digest
from coordinator.redis.keys import RunKeys

BEGIN_MS = 1_700_000_000_000


class Broken(AssertionError):
    """A simulation broke a promise."""


@coroutine
def pause(at: str) -> Generator[str, None, None]:
    """Wait for the next turn. `at` says what comes next, or why the coroutine waits."""
    yield at


@dataclass
class Truth:
    """The facts that the checks compare Redis with. Times are ms of the simulated clock."""

    corpus: Sequence[str]
    keys: RunKeys
    layout: Layout
    source: Sequence[str] = ()
    now: int = BEGIN_MS
    trace: list[str] = field(default_factory=list)
    pages: dict[bytes, tuple[Outcome, str]] = field(default_factory=dict)
    # What a page names, in runs that follow; {digest: (found key, its batch)} in Postgres, and the batch of each page.
    links: Mapping[str, Sequence[FoundKey]] = field(default_factory=dict)
    found: dict[bytes, tuple[FoundKey, int]] = field(default_factory=dict)
    batches: dict[bytes, int] = field(default_factory=dict)
    epoch: str | None = None
    record: RunRecord | None = None
    complete: bool = False
    poison: str | None = None
    unclean_ends: int = 0  # of workers that died, or lost their lease
    # Fetches of each key, and what explains them: how often the source was planned, how often the upstream wanted
    # another attempt, how often a block with the key in it went to another worker.
    fetches: Counter[str] = field(default_factory=Counter)
    plans: int = 0
    deferred: Counter[str] = field(default_factory=Counter)
    redelivered: Counter[str] = field(default_factory=Counter)

    @property
    def wanted(self) -> set[bytes]:
        """The digests of the keys that must have a page: those of the source, and what pages named."""
        return {*map(digest, self.source), *self.found}

    def say(self, who: str, what: str) -> None:
        """Add one step to the trace."""
        self.trace.append(f"{(self.now - BEGIN_MS) / 1000:7.2f} s  {who:<8} {what}")

    def expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            raise Broken(otherwise)
