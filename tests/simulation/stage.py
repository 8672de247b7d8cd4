"""Plays simulations, one after another."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from crawler.worker import Worker
from tests.simulation.checked_redis import CheckedRedis
from tests.simulation.processes import Flush
from tests.simulation.simulation import Simulation
from tests.simulation.truth import Broken
from tests.simulation.turns import patch_asyncio


class Stage:
    """A Redis with the product's scripts, and asyncio replaced.

    `mutations` change texts in scripts, `flush` replaces `Worker._flush`: a test makes a fault, and expects Broken.
    """

    def __init__(
        self,
        url: str,
        patch: pytest.MonkeyPatch,
        mutations: Mapping[str, tuple[str, str]] | None = None,
        flush: Flush = Worker._flush,
    ) -> None:
        self._patch = patch
        self._clock = patch_asyncio(patch)
        self._redis = CheckedRedis(url, mutations)
        self._flush = flush

    def play(self, seed: int) -> list[str]:
        """Play the schedule of a seed; returns its steps. Raises Broken, with the steps in its text."""
        simulation = Simulation(self._redis, self._clock, seed, self._flush)
        self._patch.setattr("coordinator.queue.sharding.BLOCK_KEYS", simulation.block_keys)
        trace = simulation.truth.trace
        try:
            simulation.play()
        except Broken as broken:
            raise Broken("\n".join([*trace, f"seed {seed}, {len(trace)} steps: {broken}"])) from broken
        return trace

    def close(self) -> None:
        self._redis.close()
