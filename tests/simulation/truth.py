"""What everybody outside the simulation knows: the corpus, Postgres, the clock, and what happened so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from types import coroutine

from coordinator.model import Outcome
from coordinator.queue.sharding import Layout
from coordinator.redis.keys import RunKeys

FIRST = 1_700_000_000_000


class Broken(AssertionError):
    """A promise was broken."""


@coroutine
def pause(at: str) -> Generator[str, None, None]:
    """Where a coroutine of the simulation waits for its next turn."""
    yield at


@dataclass
class Truth:
    """Times are ms of the simulated clock."""

    corpus: Sequence[str]
    keys: RunKeys
    layout: Layout
    now: int = FIRST
    trace: list[str] = field(default_factory=list)
    pages: dict[bytes, tuple[Outcome, str]] = field(default_factory=dict)
    epoch: str | None = None
    complete: bool = False
    poison: str | None = None
    unclean: int = 0  # workers that died, or lost their lease
    # Fetches of each key, and what explains them: how often the source was planned, how often the upstream wanted
    # another try, how often a block with the key in it went to another worker.
    fetches: Counter[str] = field(default_factory=Counter)
    plans: int = 0
    deferred: Counter[str] = field(default_factory=Counter)
    back: Counter[str] = field(default_factory=Counter)

    def say(self, who: str, what: str) -> None:
        """One step of the schedule, as a line."""
        self.trace.append(f"{(self.now - FIRST) / 1000:7.2f} s  {who:<8} {what}")

    def expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            raise Broken(otherwise)
