"""Where simulations are played, one after another."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from crawler.worker import Worker
from tests.simulation.loop import without_a_loop
from tests.simulation.processes import Flush
from tests.simulation.simulation import Simulation
from tests.simulation.truth import Broken
from tests.simulation.wire import Wire


class Stage:
    """A Redis with the product's scripts, and no event loop; `mutations` change the scripts, `flush` the worker."""

    def __init__(
        self,
        url: str,
        patch: pytest.MonkeyPatch,
        mutations: Mapping[str, tuple[str, str]] | None = None,
        flush: Flush = Worker._flush,
    ) -> None:
        self._patch = patch
        self._clock = without_a_loop(patch)
        self._wire = Wire(url, mutations)
        self._flush = flush

    def play(self, seed: int) -> list[str]:
        """The steps of one schedule. Raises Broken, which tells them."""
        simulation = Simulation(self._wire, self._clock, seed, self._flush)
        self._patch.setattr("coordinator.queue.sharding.BLOCK_KEYS", simulation.block_keys)
        trace = simulation.truth.trace
        try:
            simulation.play()
        except Broken as broken:
            raise Broken("\n".join([*trace, f"seed {seed}, {len(trace)} steps: {broken}"])) from broken
        return trace

    def close(self) -> None:
        self._wire.close()
