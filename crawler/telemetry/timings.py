"""How long the stages of one worker take, and how many of them are at work."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from time import monotonic
from typing import TypeVar

from coordinator.stages.timing import Timing

StepResult = TypeVar("StepResult")


class Timings:
    """The times of each stage since the worker began.

    `wait` is how long a request waits in the worker before its first attempt may leave, `fetch` the time of one
    attempt, `parse` that of the parser for one response; `commit` is what Postgres takes for a batch, `complete` Redis.
    `flushing` is the one of these two that is under way, `keys` how many keys have an outcome that is committed.
    """

    def __init__(self) -> None:
        self._by_stage: dict[str, Timing] = {}
        self.wait, self.fetch, self.parse = self.of("wait"), self.of("fetch"), self.of("parse")
        self.commit, self.complete = self.of("commit"), self.of("complete")
        self.flushing = ""
        self.keys = 0

    def of(self, stage: str) -> Timing:
        """The times of the stage of that name."""
        return self._by_stage.setdefault(stage, Timing())

    def take(self) -> Mapping[str, int]:
        """What all of them have grown by since the last call, as Timing.take has it."""
        grown: dict[str, int] = {}
        for stage, timing in self._by_stage.items():
            grown |= timing.take(stage)
        return grown

    async def flush(self, stage: str, step: Awaitable[StepResult]) -> StepResult:
        """Wait for a step of the flush, and count how long it took."""
        began, self.flushing = monotonic(), stage
        try:
            return await step
        finally:
            self.flushing = ""
            self.of(stage).add(monotonic() - began)
