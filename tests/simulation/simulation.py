"""Simulated schedules of lease and commit: who goes on next, what goes wrong, who dies and who freezes, from a seed.

Redis and its scripts are real (see wire), and so is the code of the processes (see processes); the clock is simulated.
"""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

from coordinator.model import Epoch, Outcome
from coordinator.queue.registry import RunRecord, Runs
from coordinator.queue.sharding import Layout, digest
from coordinator.redis.keys import RunKeys
from coordinator.redis.retrying import retry_unavailable
from coordinator.source import Cursor
from crawler.worker import Worker
from tests.coordinator.parts import MemorySource
from tests.simulation.client import LOST, TWICE, UNSENT
from tests.simulation.loop import IDLE, NAP, Clock
from tests.simulation.process import RUN, Process
from tests.simulation.processes import CoordinatorProcess, Flush, Opener, WorkerProcess
from tests.simulation.stand_ins import outcome_of
from tests.simulation.truth import Broken, Truth
from tests.simulation.weather import Weather
from tests.simulation.wire import Wire

# Calls that a schedule has few of go wrong more often.
RARE = (
    "queue/publish",
    "run/check_resolved",
    "run/replan",
    "queue/split",
    "run/done_add",
    "run/release",
    "transaction",
)
TAIL_ROUNDS = 200


class Simulation:
    """One schedule, drawn from a seed."""

    def __init__(self, wire: Wire, clock: Clock, seed: int, flush: Flush = Worker._flush) -> None:
        self.random = random = Random(seed)
        self.wire = wire
        self.flush = flush
        self.layout = Layout(shards=random.choice((1, 1, 2, 4)), buckets=4)
        corpus = [f"key {number}" for number in range(random.randint(4, 32))]
        if random.random() < 0.15:
            corpus += random.choices(corpus, k=3)
        self.corpus = corpus
        self.truth = clock.truth = Truth(sorted(set(corpus)), RunKeys(RUN), self.layout)
        if random.random() < 0.08:
            self.truth.poison = random.choice(corpus)
        self._once = len(set(corpus)) == len(corpus)
        self.block_keys = random.choice((1, 2, 3, 5))
        self.lanes = random.randint(1, 3)
        self.at_hand = random.choice((1, 3, 8))
        self.high_water = random.choice((8, 20, 60, 200))
        self._epochs = 0
        wire.begin(self.truth, once=self._once)
        self.opener = Opener(self, "opener")
        self.workers = [WorkerProcess(self, f"worker-{number + 1}") for number in range(random.randint(1, 4))]
        self.coordinators = [CoordinatorProcess(self, f"lead-{number + 1}") for number in range(random.randint(1, 2))]
        self.processes: list[Process] = [*self.workers, *self.coordinators]

    def play(self) -> None:
        """The random part, the fair tail, and what must hold after them."""
        try:
            self._open()
            self._arrive()
            self._chance()
            self._fairness()
            self._verify()
        finally:
            for process in (self.opener, *self.workers, *self.coordinators):
                process.die()

    def source(self, cursor: Cursor) -> MemorySource:
        return MemorySource(self.corpus, cursor)

    def new_record(self) -> RunRecord:
        self._epochs += 1
        epoch = Epoch(f"e{self._epochs}")
        return RunRecord(name=RUN, run_id=1, epoch=epoch, layout=self.layout, document={}, folder=".")

    def counts(self) -> Counter[Outcome]:
        return Counter(outcome for outcome, _ in self.truth.pages.values())

    async def finish(self, client: Any, record: RunRecord) -> None:
        """`Workforce._finish`: Postgres first."""
        self.truth.complete = True
        self.truth.say(client.who, "takes the final counts")
        await retry_unavailable(lambda: Runs(client).finish(record, self.counts()), "worker")

    def _open(self) -> None:
        """An opening is one process' at a time, under a lock in Postgres: it is played in one go, or dies in it."""
        while self.opener.needed:
            self.opener.begin()
            while self.opener.tasks:
                self.opener.step("begin")

    def _arrive(self) -> None:
        """Most schedules begin with everybody there."""
        for process in self.processes:
            for _ in range(self.random.choice((0, 8, 8, 8))):
                if "begin" in process.tasks or not process.tasks:
                    process.step("begin")

    def _chance(self) -> None:
        random, weather = self.random, Weather.of(self.random)
        for _ in range(random.randint(60, 360)):
            draw = random.random()
            for rate, happening in (
                (weather.advance, self._advance),
                (weather.die, self._kill),
                (weather.freeze, self._freeze),
                (weather.drain, self._drain),
                (weather.vanish, self._vanish),
                (weather.wipe, self._wipe),
            ):
                if draw < rate:
                    happening()
                    break
                draw -= rate
            else:
                self._step(weather)

    def _step(self, weather: Weather) -> None:
        random = self.random
        if self.opener.needed and random.random() < 0.1:
            self.opener.step("begin") if self.opener.tasks else self.opener.begin()
            return
        awake = [process for process in self.processes if not process.frozen]
        if not awake:
            self._advance()
            return
        process = random.choice(awake)
        ready = process.ready()
        busy = [task for task in ready if process.at.get(task) != NAP]
        if random.random() < 0.9 and busy:
            ready = busy
        if ready:
            task = random.choice(ready)
            for _ in range(random.choice((1, 1, 2, 5))):
                rate = weather.fault * (6 if process.at.get(task) in RARE else 1)
                fault = random.choice((UNSENT, LOST, LOST, TWICE)) if random.random() < rate else None
                process.step(task, fault)
                if task == "flush" and fault == LOST and process.at.get(task) == NAP and random.random() < 0.5:
                    self._hold_up(process)
                if process.at.get(task) in (None, NAP, IDLE):
                    return

    def _advance(self) -> None:
        self.pass_time(self.random.choice((200, 1000, 3000, 6000, 15_000)))

    def pass_time(self, milliseconds: int) -> None:
        """Time passes, and whoever is awake goes on beating."""
        self.truth.say("world", f"{milliseconds / 1000:g} s pass")
        while milliseconds > 0:
            hop = min(milliseconds, 5000)
            milliseconds -= hop
            self.wire.advance(hop)
            for process in self.processes:
                if not process.frozen:
                    process.beat()

    def _kill(self) -> None:
        process = self.random.choice(self.processes)
        who = process.who
        self.truth.say(who, "is killed")
        process.die()
        if isinstance(process, WorkerProcess) and self.random.random() < 0.4 and self.wire.account.epoch is not None:
            self.truth.say(who, "is buried")
            self.wire.release_dead(who)

    def _freeze(self) -> None:
        process = self.random.choice(self.processes)
        seconds = self.random.choice((1, 5, 9, 12, 20, 40))
        process.frozen_until = self.truth.now + 1000 * seconds
        self.truth.say(process.who, f"freezes for {seconds} s")

    def _hold_up(self, process: Process) -> None:
        """Delay what this worker repeats: before that, keys that it deferred fall due, and others act on them."""
        process.frozen_until = self.truth.now + 6000
        self.truth.say(process.who, "is held up for 6 s")
        self.pass_time(3000)

    def _drain(self) -> None:
        process = self.random.choice(self.workers)
        if process.worker is not None and not process.frozen:
            self.truth.say(process.who, "drains")
            process.worker.drain()

    def _vanish(self) -> None:
        self.truth.say("world", self.wire.vanish(self.random.choice))

    def _wipe(self) -> None:
        if not self.truth.complete:
            self.truth.say("world", "Redis is wiped")
            self.wire.wipe()

    def _fairness(self) -> None:
        """Everybody thaws, nothing goes wrong any more; then the run must come to its end."""
        truth = self.truth
        truth.say("world", "the fair tail")
        for process in self.processes:
            process.frozen_until = 0
        if self.random.random() < 0.3:
            for process in self.workers[1:]:
                process.die()
            self.processes = [self.workers[0], *self.coordinators]
        for _ in range(TAIL_ROUNDS):
            self._open()
            for process in self.processes:
                self._turn(process)
            if self.wire.account.state == "complete" and not any(process.worker for process in self.workers):
                return
            self.pass_time(2000)
        state, queued, entries, done = self.wire.look()
        raise Broken(
            f"the run does not come to its end: {len(done)} of {len(truth.corpus)} keys are done, {queued} keys in "
            f"{entries} entries are queued, {self.wire.pending()} pending; {state}"
        )

    def _turn(self, process: Process) -> None:
        """All that a process can do before it has to wait."""
        for _ in range(60):
            ready = [task for task in process.ready() if task not in ("heartbeat", "keep")]
            moved = False
            for task in ready:
                if task in process.tasks or not process.tasks:
                    process.step(task)
                    moved = moved or process.at.get(task) not in (NAP, IDLE)
            if not moved:
                return

    def _verify(self) -> None:
        truth, wire = self.truth, self.wire
        truth.expect(
            {digest(key) for key in self.corpus} == truth.pages.keys(), "not every key has exactly one outcome"
        )
        wrong = [key for key in truth.corpus if truth.pages[digest(key)][0] != outcome_of(key)]
        allowed = {Outcome.FAILED} if truth.unclean >= 3 else set()  # the key at which several workers died
        wrong = [key for key in wrong if truth.pages[digest(key)][0] not in allowed]
        truth.expect(not wrong, f"{wrong} have another outcome than was fetched")
        times = Counter(self.corpus)
        for key, fetched in truth.fetches.items():
            most = times[key] * truth.plans + truth.deferred[key] + truth.back[key]
            truth.expect(fetched <= most, f"{key} was fetched {fetched} times, at most {most} can be explained")
        state, queued, entries, _ = wire.look()
        truth.expect(queued == entries == 0, f"{entries} entries are left of a complete run")
        truth.expect(
            state.get("published", "0") == state.get("resolved", "0"), f"published is not resolved at the end: {state}"
        )
        counted = {outcome: int(state[outcome.value]) for outcome in Outcome if int(state[outcome.value])}
        truth.expect(counted == dict(self.counts()), f"the counts {counted} are not Postgres' {self.counts()}")
        truth.expect(not wire.left_behind(), f"a complete run leaves {wire.left_behind()} in Redis")
