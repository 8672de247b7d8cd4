"""The processes of a simulation: the product's own coroutines, which pause before each step that others can see.

Worker, intake, batch, planner, janitor, election and rebuild are the real ones. What is replaced is in stand_ins. The
few lines of `runner`, `Coordinator.run` and `opening` that need an event loop are repeated here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from coordinator.errors import EpochLost, PostgresUnavailable, RedisUnavailable
from coordinator.limits.unreachable import UnreachableUpstreams
from coordinator.model import FoundBatch, FoundKey, KeyContext, Outcome, RunState, WorkerId
from coordinator.queue.done import DoneSet, KnownSet
from coordinator.queue.found import FoundKeys, Frontier
from coordinator.queue.registry import RunRecord, Runs
from coordinator.queue.streams import Streams
from coordinator.redis.keys import RunKeys
from coordinator.redis.retrying import retry_unavailable
from coordinator.roles.coordinator import Coordinator, Following
from crawler.fetch.attempt import Lane, Meter
from crawler.job.models import StoreSettings
from crawler.model import GET, Payload
from crawler.pipeline.intake import Intake
from crawler.pipeline.lanes import Lanes
from crawler.telemetry.stage_watch import Look, StageWatch
from crawler.worker import Worker
from tests.simulation.faulty_client import LOST
from tests.simulation.process import RUN, Process
from tests.simulation.stand_ins import (
    FETCH,
    CountingFetcher,
    DictWriter,
    OneQueueScheduler,
    PromptBatch,
    SimplePageBuilder,
    found_batches,
)
from tests.simulation.turns import IDLE, NAP

Flush = Callable[[Worker], Coroutine[Any, Any, None]]


def joined(keys: Sequence[str], _: KeyContext) -> tuple[SimpleNamespace, Payload]:
    """What is sent for these keys."""
    return SimpleNamespace(href="|".join(keys)), GET


class WorkerProcess(Process):
    """A worker process: it joins with one lease after another, as `runner` does."""

    worker: Worker | None = None

    async def life(self) -> None:
        self.worker = None
        record = await self.record()
        self.opened = record
        client: Any = self.client
        keys, name = RunKeys(RUN), WorkerId(self.who)
        meter, lanes = Meter(), self.simulation.lanes
        self.streams = Streams(client, keys, record.layout, record.epoch)
        self.batch = PromptBatch(StoreSettings(batch_age=0.0), clock=lambda: 0.0)
        self.scheduler = OneQueueScheduler(self.simulation.at_hand)
        self.intake = Intake(
            streams=self.streams,
            done=DoneSet(client, keys, record.layout, record.epoch),
            worker=name,
            batch=self.batch,
            templates={"": SimpleNamespace(build=joined, is_repeatable=True)},  # type: ignore[dict-item]
            matcher=SimpleNamespace(upstream_of=lambda target: "upstream"),  # type: ignore[arg-type]
            scheduler=self.scheduler,  # type: ignore[arg-type]
            keys_per_request={"": self.simulation.keys_per_request},
            by_level=bool(self.simulation.following and self.simulation.following.by_level),
        )
        doing: dict[str, Any] = {
            "fetcher": CountingFetcher(self.truth, self.who, meter),
            "page_builder": SimplePageBuilder(self.truth, self.intake),
            "unreachable": UnreachableUpstreams(SimpleNamespace()),  # type: ignore[arg-type]
        }
        parts: dict[str, Any] = {
            "scheduler": self.scheduler,
            "lanes": Lanes(lanes, scheduler=self.scheduler, batch=self.batch, **doing),  # type: ignore[arg-type]
            "writer": DictWriter(self.truth, self.client, self.who),
            "found_keys": self.simulation.following and self._found_keys(client, keys, record),
            "stages": StageWatch(Look, meter.timings),
        }
        worker = Worker(name, streams=self.streams, intake=self.intake, batch=self.batch, meter=meter, **parts)
        worker._apply(await retry_unavailable(lambda: self.streams.join(name), "worker"))
        self.worker = worker
        self._work = {
            "heartbeat": worker._heartbeat(),
            "feed": self.intake.feed(),
            "flush": self.simulation.flush(worker),
            **{f"lane {number}": worker.lanes.serve(Lane()) for number in range(lanes)},
        }

    def _found_keys(self, client: Any, keys: RunKeys, record: RunRecord) -> FoundKeys:
        following = self.simulation.following
        assert following is not None
        return FoundKeys(
            client,
            keys,
            record.layout,
            record.epoch,
            high_water=self.simulation.high_water,
            keys_per_request=following.keys_per_request,
            by_level=following.by_level,
            bounded=following.most.keys(),
        )

    async def _leave(self, worker: Worker) -> None:
        await retry_unavailable(lambda: self.streams.release(worker.name), "worker")
        self.truth.say(self.who, "left")
        if worker.state is RunState.RESOLVED:
            await self.simulation.finish(self.client, self.opened)

    def ended(self, task: str, value: Any) -> None:
        if task == "begin":
            self.run(**self._work)
        elif task == "flush":
            assert self.worker is not None
            self.run(leave=self._leave(self.worker))
        elif task == "leave":
            self.worker = None

    def failed(self, error: Exception) -> None:
        if self.worker is not None:
            self.truth.unclean_ends += 1
            self.worker = None
        if isinstance(error, EpochLost) and self.truth.epoch == self.opened.epoch:
            self.truth.epoch = None  # `Catalogue.void_epoch`
        self.run()

    def die(self) -> None:
        self.truth.unclean_ends += self.worker is not None
        self.worker = None
        super().die()

    def ready(self) -> list[str]:
        if "feed" not in self.tasks and "flush" not in self.tasks:
            return super().ready()
        assert self.worker is not None
        if self.worker._drain.is_set():
            self._drain(self.worker)
        if not any(task.startswith("lane") for task in self.tasks):
            self.batch.close()
        idle = not self.scheduler.waiting
        return [
            task
            for task in self.tasks
            if not (task == "flush" and self.at[task] == IDLE and not self.batch._is_due() and not self.batch._closing)
            and not (task.startswith("lane") and self.at[task] in (IDLE, "") and idle)
        ]

    def _drain(self, worker: Worker) -> None:
        for task in [task for task in self.tasks if task == "feed" or task.startswith("lane")]:
            if self.at[task] not in (FETCH, IDLE, NAP, "") and self.simulation.random.random() < 0.5:
                self.step(task, LOST)  # cancelled in the middle of a call, which Redis then carries out
            if task in self.tasks and (task == "feed" or self.at[task] != FETCH):
                self.tasks.pop(task).close()
                del self.at[task]

    def beat(self) -> None:
        self.resume_until_it_sleeps("heartbeat")


class CoordinatorProcess(Process):
    """A coordinator process: it leads or stands by, as `Coordinator.run` does."""

    async def life(self) -> None:
        record = await self.record()
        client: Any = self.client
        self.coordinator = Coordinator(
            client,
            record,
            self.who,
            self.simulation.source,
            rereadable=True,
            high_water=self.simulation.high_water,
            keys_per_request=self.simulation.keys_per_request,
            fill_seconds=1.0,
            following=self.following(),
        )

    def following(self) -> Following | None:
        found = self.simulation.following
        return None if found is None else replace(found, read_found=self._read_found)

    async def _read_found(self, batch: FoundBatch) -> Sequence[FoundKey]:
        def read() -> Sequence[FoundKey]:
            (found,) = found_batches(
                self.truth, lambda name, number: (number, self.depth(name)) == (batch.batch, batch.depth)
            )
            return found.keys

        keys: Sequence[FoundKey] = await self.client.send("read found", read, error=PostgresUnavailable)
        return keys

    def depth(self, name: bytes) -> int:
        return self.truth.found[name][0].context.depth

    def ended(self, task: str, value: Any) -> None:
        if task == "begin" or task in ("keep", "plan", "watch", "frontier"):
            self.run(gain=retry_unavailable(self.coordinator._election.gain, "coordinator"))
        elif task == "gain":
            leads = self.coordinator
            frontier = {} if (found := self.following()) is None else {"frontier": leads._plan_frontier(found)}
            self.run(keep=leads._election.keep(), plan=leads._plan_rest(), watch=leads._watch_queue(), **frontier)

    def failed(self, error: Exception) -> None:
        if isinstance(error, RedisUnavailable):
            self.ended("plan", None)
        else:
            self.run()

    def beat(self) -> None:
        self.resume_until_it_sleeps("keep")


class Opener(Process):
    """The user who starts the command again: makes the run, or rebuilds what Redis lost, as `opening` does."""

    async def life(self) -> None:
        truth, redis = self.truth, self.simulation.redis
        client: Any = self.client
        runs = Runs(client)
        found = await runs.find(RUN)
        if truth.complete:
            if found is not None and redis.model.state != "complete":
                assert truth.record is not None
                await runs.finish(truth.record, self.simulation.counts())
            return
        if found is not None and found.epoch == truth.epoch:
            return
        record = self.simulation.new_record()
        await runs.make(record)
        if truth.pages:
            await DoneSet(client, RunKeys(RUN), record.layout, record.epoch).rebuild(self._rows())
            await self._rebuild_found(client, record)
        truth.record, truth.epoch = record, record.epoch
        truth.plans += 1
        truth.say(self.who, f"opens the run with epoch {record.epoch}")

    async def _rebuild_found(self, client: Any, record: RunRecord) -> None:
        """As `opening` does."""
        truth, arguments = self.truth, (client, RunKeys(RUN), record.layout, record.epoch)
        await KnownSet(*arguments).mark([name for name in truth.found if name not in truth.pages])
        frontier = Frontier(*arguments)
        batches = found_batches(truth, lambda name, _: name not in truth.pages)
        fetched = Counter(one.rule for name, (one, _) in truth.found.items() if one.rule >= 0 and name in truth.pages)
        await frontier.count_followed(fetched)
        await frontier.add(batches)

    async def _rows(self) -> AsyncIterator[Mapping[Outcome, Sequence[bytes]]]:
        rows = list(self.truth.pages.items())
        for start in range(0, len(rows), 5):
            batch: dict[Outcome, list[bytes]] = {}
            for name, (outcome, _) in rows[start : start + 5]:
                batch.setdefault(outcome, []).append(name)
            yield batch

    @property
    def needed(self) -> bool:
        truth, redis = self.truth, self.simulation.redis
        if truth.complete:
            return redis.model.epoch is not None and redis.model.state != "complete"
        return redis.model.epoch is None or redis.model.epoch != truth.epoch
