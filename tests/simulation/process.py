"""One simulated process: coroutines that are resumed one step at a time, in any order."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from coordinator.errors import EpochLost, LeaseLost, PostgresUnavailable, RedisUnavailable
from coordinator.model import RunState
from coordinator.queue.registry import RunRecord, Runs
from coordinator.redis.retrying import retry_unavailable
from tests.simulation.faulty_client import FaultyClient
from tests.simulation.stand_ins import Killed
from tests.simulation.truth import pause
from tests.simulation.turns import NAP

if TYPE_CHECKING:
    from tests.simulation.simulation import Simulation

RUN = "run"


class Process:
    """One process. Any of its coroutines may be resumed next, until it dies, freezes or ends."""

    def __init__(self, simulation: Simulation, name: str) -> None:
        self.simulation = simulation
        self.truth = simulation.truth
        self.name = name
        self.lives = 0
        self.tasks: dict[str, Coroutine[Any, Any, Any]] = {}
        self.at: dict[str, str] = {}
        self.frozen_until = 0
        self.client = FaultyClient(simulation.redis, name)

    @property
    def frozen(self) -> bool:
        return self.frozen_until > self.truth.now

    def begin(self) -> None:
        self.lives += 1
        self.client = FaultyClient(self.simulation.redis, self.who)
        self.run(begin=self.life())

    @property
    def who(self) -> str:
        return f"{self.name}.{self.lives}"

    def run(self, **tasks: Coroutine[Any, Any, Any]) -> None:
        """Close the coroutines that it had, and have these."""
        for task in self.tasks.values():
            task.close()
        self.tasks, self.at = dict(tasks), dict.fromkeys(tasks, "")

    def die(self) -> None:
        """End as by kill -9."""
        self.run()

    def step(self, task: str, fault: str | None = None) -> None:
        """Resume one coroutine until its next pause."""
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
        """Do once what the process does regularly: renew its lease."""

    def resume_until_it_sleeps(self, task: str) -> None:
        for _ in range(4):
            if task in self.tasks:
                self.step(task)
            if self.at.get(task) in (NAP, None):
                return

    def life(self) -> Coroutine[Any, Any, None]:
        raise NotImplementedError

    def ready(self) -> list[str]:
        """The tasks that can be resumed."""
        return list(self.tasks) or ["begin"]

    def ended(self, task: str, value: Any) -> None:
        """A coroutine has returned."""

    def failed(self, error: Exception) -> None:
        """A coroutine raised an error, which ends all of them."""
        self.run()

    async def record(self) -> RunRecord:
        """The run, when Redis and Postgres agree on it."""
        client: Any = self.client
        while True:
            found = await retry_unavailable(lambda: Runs(client).find(RUN), "process")
            record = self.truth.record
            if (
                record is not None
                and found is not None
                and found.epoch == record.epoch == self.truth.epoch
                and found.state is not RunState.COMPLETE
            ):
                return record
            await pause(NAP)
