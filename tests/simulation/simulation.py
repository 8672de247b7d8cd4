"""One simulated schedule of lease and commit. A seed decides who goes on next, what fails, who dies and who freezes.

Redis and its scripts are real (see checked_redis), and so is the code of the processes (see processes). The clock is
simulated.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random
from typing import Any

from coordinator.model import Epoch, FoundBatch, FoundKey, KeyContext, Outcome
from coordinator.queue.registry import RunRecord, Runs
from coordinator.queue.sharding import Layout, digest
from coordinator.redis.keys import RunKeys
from coordinator.redis.retrying import retry_unavailable
from coordinator.roles.coordinator import Following
from coordinator.source import Cursor
from crawler.worker import Worker
from tests.coordinator.parts import MemorySource
from tests.simulation.checked_redis import CheckedRedis
from tests.simulation.fault_rates import FaultRates
from tests.simulation.faulty_client import LOST, NOT_SENT, TWICE
from tests.simulation.process import RUN, Process
from tests.simulation.processes import CoordinatorProcess, Flush, Opener, WorkerProcess
from tests.simulation.stand_ins import outcome_of
from tests.simulation.truth import Broken, Truth
from tests.simulation.turns import IDLE, NAP, TurnClock

# A schedule has few of these calls, so they fail more often.
RARE = (
    "queue/publish",
    "run/check_resolved",
    "run/replan",
    "queue/split",
    "run/done_add",
    "run/release",
    "transaction",
    "follow/publish_found",
    "follow/publish_frontier",
    "read found",
)
FAIR_ROUNDS = 200


async def _nothing_found(_: FoundBatch) -> tuple[()]:
    """Each coordinator has its own way to Postgres."""
    return ()


class Simulation:
    """One schedule, drawn from a seed."""

    def __init__(self, redis: CheckedRedis, clock: TurnClock, seed: int, flush: Flush = Worker._flush) -> None:
        self.random = random = Random(seed)
        self.redis = redis
        self.flush = flush
        self.layout = Layout(shards=random.choice((1, 1, 2, 4)), buckets=4)
        corpus = [f"key {number}" for number in range(random.randint(4, 32))]
        if random.random() < 0.15:
            corpus += random.choices(corpus, k=3)
        self.corpus = corpus
        self.keys_per_request = Random(~seed).choice((1, 1, 2, 3))  # apart, so that other draws stay as they are
        self.following, links = self._following(Random(seed ^ 0xF0110))
        self.truth = clock.truth = Truth(sorted(set(corpus)), RunKeys(RUN), self.layout, self.corpus, links=links)
        if random.random() < 0.08:
            self.truth.poison = random.choice(corpus)
        self._once = len(set(corpus)) == len(corpus)
        self.block_keys = random.choice((1, 2, 3, 5))
        self.lanes = random.randint(1, 3)
        self.at_hand = random.choice((1, 3, 8))
        self.high_water = random.choice((8, 20, 60, 200))
        self._epochs = 0
        redis.begin(self.truth, once=self._once)
        self.opener = Opener(self, "opener")
        self.workers = [WorkerProcess(self, f"worker-{number + 1}") for number in range(random.randint(1, 4))]
        self.coordinators = [CoordinatorProcess(self, f"lead-{number + 1}") for number in range(random.randint(1, 2))]
        self.processes: list[Process] = [*self.workers, *self.coordinators]

    def _following(self, random: Random) -> tuple[Following | None, dict[str, list[FoundKey]]]:
        """Let some runs follow: a part of the keys is in the source, and pages name these and the others."""
        if random.random() < 0.5:
            return None, {}
        keys = sorted(set(self.corpus))
        random.shuffle(keys)
        self.layout = replace(self.layout, follows=True)
        self.corpus = keys[: max(1, len(keys) // 4)]
        by_level, bounded = random.random() < 0.3, random.random() < 0.3
        depth, links = dict.fromkeys(self.corpus, 0), dict[str, list[FoundKey]]()
        for key in keys:
            depth.setdefault(key, 1 + depth[random.choice(list(depth))])
            for name in random.sample(keys, min(len(keys), random.choice((0, 1, 3, 6)))):
                context = KeyContext(depth=depth[key] + 1, origin=digest(key))
                links.setdefault(key, []).append(FoundKey(digest(name), name, context, 0 if bounded else -1))
        sizes = {"": self.keys_per_request}
        return Following(_nothing_found, by_level, {0: 1000} if bounded else {}, sizes), links

    def play(self) -> None:
        """Play the random part and the part without faults, then check what must hold."""
        try:
            self._open()
            self._arrive()
            self._play_with_faults()
            self._play_without_faults()
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
        """As `runner` does it: first in Postgres, then in Redis."""
        self.truth.complete = True
        self.truth.say(client.who, "takes the final counts")
        await retry_unavailable(lambda: Runs(client).finish(record, self.counts()), "worker")

    def _open(self) -> None:
        """Open the run in one go: a lock in Postgres lets only one process do it at a time."""
        while self.opener.needed:
            self.opener.begin()
            while self.opener.tasks:
                self.opener.step("begin")

    def _arrive(self) -> None:
        """Let processes join; most schedules begin with all of them."""
        for process in self.processes:
            for _ in range(self.random.choice((0, 8, 8, 8))):
                if "begin" in process.tasks or not process.tasks:
                    process.step("begin")

    def _play_with_faults(self) -> None:
        random, rates = self.random, FaultRates.draw(self.random)
        for _ in range(random.randint(60, 360)):
            draw = random.random()
            for rate, happening in (
                (rates.advance, self._advance),
                (rates.die, self._kill),
                (rates.freeze, self._freeze),
                (rates.drain, self._drain),
                (rates.vanish, self._vanish),
                (rates.wipe, self._wipe),
            ):
                if draw < rate:
                    happening()
                    break
                draw -= rate
            else:
                self._step(rates)

    def _step(self, rates: FaultRates) -> None:
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
                rate = rates.fault * (6 if process.at.get(task) in RARE else 1)
                fault = random.choice((NOT_SENT, LOST, LOST, TWICE)) if random.random() < rate else None
                process.step(task, fault)
                if task == "flush" and fault == LOST and process.at.get(task) == NAP and random.random() < 0.5:
                    self._hold_up(process)
                if process.at.get(task) in (None, NAP, IDLE):
                    return

    def _advance(self) -> None:
        self.pass_time(self.random.choice((200, 1000, 3000, 6000, 15_000)))

    def pass_time(self, milliseconds: int) -> None:
        """Let time pass; processes that are not frozen renew their leases."""
        self.truth.say("world", f"{milliseconds / 1000:g} s pass")
        while milliseconds > 0:
            hop = min(milliseconds, 5000)
            milliseconds -= hop
            self.redis.advance(hop)
            for process in self.processes:
                if not process.frozen:
                    process.beat()

    def _kill(self) -> None:
        process = self.random.choice(self.processes)
        who = process.who
        self.truth.say(who, "is killed")
        process.die()
        if isinstance(process, WorkerProcess) and self.random.random() < 0.4 and self.redis.model.epoch is not None:
            self.truth.say(who, "is released as dead")
            self.redis.release_dead(who)

    def _freeze(self) -> None:
        process = self.random.choice(self.processes)
        seconds = self.random.choice((1, 5, 9, 12, 20, 40))
        process.frozen_until = self.truth.now + 1000 * seconds
        self.truth.say(process.who, f"freezes for {seconds} s")

    def _hold_up(self, process: Process) -> None:
        """Delay the call that this worker repeats, so that keys that it deferred are due and claimed before that."""
        process.frozen_until = self.truth.now + 6000
        self.truth.say(process.who, "is held up for 6 s")
        self.pass_time(3000)

    def _drain(self) -> None:
        process = self.random.choice(self.workers)
        if process.worker is not None and not process.frozen:
            self.truth.say(process.who, "drains")
            process.worker.drain()

    def _vanish(self) -> None:
        """Another program deletes an entry, or all of them."""
        entries = self.redis.entries()
        if not entries:
            return
        if self.random.random() < 0.5:
            keys = self.redis.vanish([self.random.choice(entries)])
            self.truth.say("world", f"a stranger deletes an entry: {keys} keys")
        else:
            self.truth.say("world", f"a stranger deletes all entries: {self.redis.vanish(entries)} keys")
            self._hold_up_all_workers()

    def _hold_up_all_workers(self) -> None:
        """Delay what workers complete, so that a coordinator plans the source again while deliveries are pending."""
        for worker in self.workers:
            worker.frozen_until = max(worker.frozen_until, self.truth.now + 8000)
        self.pass_time(6000)
        for coordinator in self.coordinators:
            if not coordinator.frozen:
                self._turn(coordinator)

    def _wipe(self) -> None:
        if not self.truth.complete:
            self.truth.say("world", "Redis is wiped")
            self.redis.wipe()

    def _play_without_faults(self) -> None:
        """No process is frozen and nothing fails any more: the run must become complete."""
        truth = self.truth
        truth.say("world", "from here on nothing fails")
        for process in self.processes:
            process.frozen_until = 0
        if self.random.random() < 0.3:
            for process in self.workers[1:]:
                process.die()
            self.processes = [self.workers[0], *self.coordinators]
        for _ in range(FAIR_ROUNDS):
            self._open()
            for process in self.processes:
                self._turn(process)
            if self.redis.model.state == "complete" and not any(process.worker for process in self.workers):
                return
            self.pass_time(2000)
        state, queued, entries, done = self.redis.look()
        raise Broken(
            f"the run does not come to its end: {len(done)} of {len(truth.corpus)} keys are done, {queued} keys in "
            f"{entries} entries are queued, {self.redis.pending()} pending; {state}"
        )

    def _turn(self, process: Process) -> None:
        """Let a process do all that it can before it has to wait."""
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
        truth, redis = self.truth, self.redis
        truth.expect(truth.wanted == truth.pages.keys(), "not every key has exactly one outcome")
        fetched = [key for key in truth.corpus if digest(key) in truth.pages]
        wrong = [key for key in fetched if truth.pages[digest(key)][0] != outcome_of(key)]
        allowed = {Outcome.FAILED} if truth.unclean_ends >= 3 else set()  # the key of which several workers died
        wrong = [key for key in wrong if truth.pages[digest(key)][0] not in allowed]
        truth.expect(not wrong, f"{wrong} have another outcome than was fetched")
        times = Counter(self.corpus)
        times.update(one.key for one, _ in truth.found.values())
        for key, fetched in truth.fetches.items():
            most = times[key] * truth.plans + truth.deferred[key] + truth.redelivered[key]
            truth.expect(fetched <= most, f"{key} was fetched {fetched} times, at most {most} can be explained")
        state, queued, entries, _ = redis.look()
        truth.expect(queued == entries == 0, f"{entries} entries are left of a complete run")
        truth.expect(
            state.get("published", "0") == state.get("resolved", "0"), f"published is not resolved at the end: {state}"
        )
        counted = {outcome: int(state[outcome.value]) for outcome in Outcome if int(state[outcome.value])}
        truth.expect(counted == dict(self.counts()), f"the counts {counted} are not Postgres' {self.counts()}")
        truth.expect(not redis.left_behind(), f"a complete run leaves {redis.left_behind()} in Redis")
