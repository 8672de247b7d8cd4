"""One simulated process: some coroutines of which any may go on next, until it dies, freezes or ends."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from coordinator.errors import EpochLost, LeaseLost, PostgresUnavailable, RedisUnavailable
from coordinator.model import RunState
from coordinator.queue.registry import RunRecord, Runs
from coordinator.redis.retrying import retry_unavailable
from tests.simulation.client import Client
from tests.simulation.loop import NAP
from tests.simulation.stand_ins import Killed
from tests.simulation.truth import pause

if TYPE_CHECKING:
    from tests.simulation.simulation import Simulation

RUN = "run"


class Process:
    """One process: some coroutines of which any may go on next, until it dies, freezes or ends."""

    def __init__(self, simulation: Simulation, name: str) -> None:
        self.simulation = simulation
        self.truth = simulation.truth
        self.name = name
        self.lives = 0
        self.tasks: dict[str, Coroutine[Any, Any, Any]] = {}
        self.at: dict[str, str] = {}
        self.frozen_until = 0
        self.client = Client(simulation.wire, name)

    @property
    def frozen(self) -> bool:
        return self.frozen_until > self.truth.now

    def begin(self) -> None:
        self.lives += 1
        self.client = Client(self.simulation.wire, self.who)
        self.run(begin=self.life())

    @property
    def who(self) -> str:
        return f"{self.name}.{self.lives}"

    def run(self, **tasks: Coroutine[Any, Any, Any]) -> None:
        """These coroutines and no others."""
        for task in self.tasks.values():
            task.close()
        self.tasks, self.at = dict(tasks), dict.fromkeys(tasks, "")

    def die(self) -> None:
        """As by kill -9."""
        self.run()

    def step(self, task: str, fault: str | None = None) -> None:
        """Let one coroutine go on to its next pause."""
        if not self.tasks:
            return self.begin()
        self.client.fault = fault
        try:
            self.at[task] = self.tasks[task].send(None)
        except StopIteration as ended:
            self.tasks.pop(task, None), self.at.pop(task, None)
            self.ended(task, ended.value)
        except Killed:
            self.truth.say(self.who, "dies of that key")
            self.die()
        except (LeaseLost, EpochLost, RedisUnavailable, PostgresUnavailable) as error:
            self.truth.say(self.who, f"ends: {type(error).__name__}")
            self.failed(error)
        finally:
            self.client.fault = None

    def beat(self) -> None:
        """Let what beats on a clock do so once."""

    def beats(self, task: str) -> None:
        for _ in range(4):
            if task in self.tasks:
                self.step(task)
            if self.at.get(task) in (NAP, None):
                return

    def life(self) -> Coroutine[Any, Any, None]:
        raise NotImplementedError

    def ready(self) -> list[str]:
        """The tasks that would do something."""
        return list(self.tasks) or ["begin"]

    def ended(self, task: str, value: Any) -> None:
        """A coroutine came to its end."""

    def failed(self, error: Exception) -> None:
        """A coroutine ended the whole life."""
        self.run()

    async def record(self) -> RunRecord:
        """The run, once Redis and Postgres agree on it."""
        client: Any = self.client
        while True:
            record = await retry_unavailable(lambda: Runs(client).find(RUN), "process")
            state = await retry_unavailable(lambda: Runs(client).state(RUN), "process")
            if record is not None and record.epoch == self.truth.epoch and state is not RunState.COMPLETE:
                return record
            await pause(NAP)
