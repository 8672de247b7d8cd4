"""The processes of a simulation: the product's own coroutines, which pause before whatever others can see.

Real are worker, intake, batch, planner, janitor, leadership and rebuild. Postgres is a dict with a primary key, a fetch
is a counter, and the few lines of `workforce`, `coordinate` and `opening` that need an event loop are told again here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import pytest

from coordinator.coordinate import Coordinator
from coordinator.done import DoneSet
from coordinator.errors import EpochLost, LeaseLost, PostgresUnavailable, RedisUnavailable
from coordinator.keys import RunKeys
from coordinator.model import Outcome, Presence, RunState, WorkerId
from coordinator.patience import patiently
from coordinator.runs import RunRecord, Runs
from coordinator.settings import StoreSettings
from coordinator.sharding import digest
from coordinator.streams import Streams
from crawler.batch import Batch, Load
from crawler.fetch.fetcher import Lane, Later, Meter, Soon
from crawler.fetch.retry import noted
from crawler.intake import Intake
from crawler.page import Page, Request
from crawler.worker import Worker
from tests.faults.wire import LOST, Client, Truth, pause

if TYPE_CHECKING:
    from tests.faults.simulation import Simulation

RUN = "run"
IDLE, NAP, FETCH, COMMIT = "idle", "nap", "fetch", "commit"
Flush = Callable[[Worker], Coroutine[Any, Any, None]]


class Killed(BaseException):
    """This process died of the key that it fetched."""


class Event(asyncio.Event):
    """An event for which a coroutine waits turn by turn."""

    async def wait(self) -> Literal[True]:
        while not self.is_set():
            await pause(IDLE)
        return True


class OneLine:
    """Lines of an upstream that may be asked at any time, in which lanes wait turn by turn."""

    def __init__(self, enough: int) -> None:
        self._enough = enough
        self.waiting: deque[Request] = deque()

    def put(self, request: Request, delay: float = 0.0) -> None:
        (self.waiting.appendleft if delay else self.waiting.append)(request)

    async def next(self) -> Request:
        while not self.waiting:
            await pause(IDLE)
        return self.waiting.popleft()

    async def until_low(self) -> None:
        while len(self.waiting) >= self._enough:
            await pause(IDLE)

    @property
    def at_hand(self) -> int:
        return len(self.waiting)

    def spilled(self) -> Iterator[tuple[Request, float]]:
        return iter(())

    def arrived(self, upstream: str) -> None:
        """Nobody counts."""

    def resize(self, presence: Presence) -> None:
        """Nothing here is shared."""


class Shelf:
    """The files of a package, each read once: a simulation makes a hundred scripts."""

    def __init__(self, package: str) -> None:
        self._package = files(package)
        self.joinpath = cache(self._joined)

    def _joined(self, *parts: str) -> SimpleNamespace:
        text = self._package.joinpath(*parts).read_text()
        return SimpleNamespace(read_text=lambda: text)


class Clock:
    """Seconds of the simulated clock, for the modules that measure time."""

    truth: Truth

    def __call__(self) -> float:
        return self.truth.now / 1000


def without_a_loop(patch: pytest.MonkeyPatch) -> Clock:
    """Let the product's coroutines sleep and wait in the simulation instead of in an event loop."""

    async def nap(seconds: float) -> None:
        await pause(NAP)

    async def at_once(call: Callable[..., Any], *arguments: Any) -> Any:
        return call(*arguments)

    @cache
    def shelf(package: str) -> Shelf:
        return Shelf(package)

    clock = Clock()
    patch.setattr("coordinator.scripts.files", shelf)
    world = SimpleNamespace(sleep=nap, to_thread=at_once, Event=Event)
    for module in ("coordinate", "patience", "planner", "janitor", "leader"):
        patch.setattr(f"coordinator.{module}.asyncio", world)
    for module in ("worker", "intake"):
        patch.setattr(f"crawler.{module}.asyncio", world)
    patch.setattr("coordinator.janitor.monotonic", clock)
    return clock


class PromptBatch(Batch):
    """A batch that is due as soon as it has anything: the schedule decides how long it fills."""

    async def due(self) -> Load | None:
        while not self._is_due():
            if self._closing:
                return None
            await pause(IDLE)
        return await super().due()


class DictWriter:
    """A Postgres of one table: a page that is there stays as it is."""

    def __init__(self, truth: Truth, client: Client, name: str) -> None:
        self._truth = truth
        self._client = client
        self._name = name

    async def write(self, pages: Sequence[Page]) -> None:
        await self._client.send(COMMIT, lambda: self._commit(pages), error=PostgresUnavailable)

    def _commit(self, pages: Sequence[Page]) -> None:
        rows = {page.item.digest: (page.outcome, self._name) for page in pages}
        fresh = {name: row for name, row in rows.items() if name not in self._truth.pages}
        self._truth.pages.update(fresh)
        again = f", {len(rows) - len(fresh)} again" if len(rows) > len(fresh) else ""
        self._truth.say(self._name, f"commits {len(fresh)} pages{again}")


class CountingFetcher:
    """Asks nobody, and counts what it would have asked. Some keys need a second or a third try."""

    def __init__(self, truth: Truth, name: str, meter: Meter) -> None:
        self._truth = truth
        self._name = name
        self._meter = meter

    async def fetch(self, request: Request, lane: Lane) -> str | Soon | Later:
        url = request.url
        lane.sending = True
        await pause(FETCH)
        lane.sending = False
        self._meter.requests += 1
        self._truth.fetches[url] = self._truth.fetches.get(url, 0) + 1
        self._truth.say(self._name, f"fetches {url}")
        if url == self._truth.poison:
            raise Killed
        tried = request.tries.failed
        if tried < digest(url)[14] % 4 - 1:
            request.tries = noted(request.tries, "status 503", self._truth.now / 1000)
            self._truth.put_off[url] += 1
            return Later(float(digest(url)[13] % 8)) if tried == 0 else Soon(1.0)
        return url


def outcome_of(key: str) -> Outcome:
    return (Outcome.STORED, Outcome.STORED, Outcome.GONE, Outcome.FAILED)[digest(key)[15] % 4]


class OnePage:
    """What the parser makes of a reply."""

    def made(self, request: Request, reply: str) -> list[Page]:
        return [Page(item, request.url, outcome_of(item.key)) for item in request.items]


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
        while True:
            record = await patiently(lambda: Runs(self.client).find(RUN), "process")
            state = await patiently(lambda: Runs(self.client).state(RUN), "process")
            if record is not None and record.epoch == self.truth.epoch and state is not RunState.COMPLETE:
                return record
            await pause(NAP)


class WorkerProcess(Process):
    """One lease after another, as `workforce` has it."""

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
        self.lines = OneLine(self.simulation.at_hand)
        self.intake = Intake(
            streams=self.streams,
            done=DoneSet(client, keys, record.layout, record.epoch),
            worker=name,
            batch=self.batch,
            template=SimpleNamespace(url="|".join),  # type: ignore[arg-type]
            upstreams=SimpleNamespace(of=lambda url: "upstream"),  # type: ignore[arg-type]
            lines=self.lines,  # type: ignore[arg-type]
            keys_per_request=1,
        )
        parts: dict[str, Any] = {
            "lines": self.lines,
            "fetcher": CountingFetcher(self.truth, self.who, meter),
            "pages": OnePage(),
            "writer": DictWriter(self.truth, self.client, self.who),
        }
        worker = Worker(
            name, streams=self.streams, intake=self.intake, batch=self.batch, meter=meter, concurrency=lanes, **parts
        )
        worker._take(await patiently(lambda: self.streams.join(name), "worker"))
        self.worker = worker
        self._work = {
            "heartbeat": worker._heartbeat(),
            "feed": self.intake.feed(),
            "flush": self.simulation.flush(worker),
            **{f"lane {number}": worker._serve(lane) for number, lane in enumerate(worker._lanes)},
        }

    async def _leave(self, worker: Worker) -> None:
        await patiently(lambda: self.streams.release(worker.name), "worker")
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
            self.truth.unclean += 1
            self.worker = None
        if isinstance(error, EpochLost) and self.truth.epoch == self.opened.epoch:
            self.truth.epoch = None  # `Catalogue.void_epoch`
        self.run()

    def die(self) -> None:
        self.truth.unclean += self.worker is not None
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
        idle = not self.lines.waiting
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
        self.beats("heartbeat")


class CoordinatorProcess(Process):
    """Leads or stands by, as `coordinate` has it."""

    async def life(self) -> None:
        record = await self.record()
        client: Any = self.client
        self.coordinator = Coordinator(
            client, record, self.simulation.job, self.who, lambda job, cursor: self.simulation.source(cursor)
        )

    def ended(self, task: str, value: Any) -> None:
        if task == "begin" or task in ("keep", "plan", "tidy"):
            self.run(gain=patiently(self.coordinator._leadership.gain, "coordinator"))
        elif task == "gain":
            leads = self.coordinator
            self.run(keep=leads._leadership.keep(), plan=leads._plan_rest(), tidy=leads._tidy())

    def failed(self, error: Exception) -> None:
        if isinstance(error, RedisUnavailable):
            self.ended("plan", None)
        else:
            self.run()

    def beat(self) -> None:
        self.beats("keep")


class Opener(Process):
    """Whoever starts the command again: makes the run, or rebuilds what Redis lost, as `opening` has it."""

    async def life(self) -> None:
        truth, wire = self.truth, self.simulation.wire
        client: Any = self.client
        runs = Runs(client)
        record = await runs.find(RUN)
        if truth.complete:
            if record is not None and wire.state != "complete":
                await runs.finish(record, self.simulation.counts())
            return
        if record is not None and record.epoch == truth.epoch:
            return
        record = self.simulation.new_record()
        await runs.make(record)
        if truth.pages:
            await DoneSet(client, RunKeys(RUN), record.layout, record.epoch).rebuild(self._rows())
        truth.epoch = record.epoch
        truth.say(self.who, f"opens the run with epoch {record.epoch}")

    async def _rows(self) -> AsyncIterator[Mapping[Outcome, Sequence[bytes]]]:
        rows = list(self.truth.pages.items())
        for start in range(0, len(rows), 5):
            batch: dict[Outcome, list[bytes]] = {}
            for name, (outcome, _) in rows[start : start + 5]:
                batch.setdefault(outcome, []).append(name)
            yield batch

    @property
    def needed(self) -> bool:
        truth, wire = self.truth, self.simulation.wire
        if truth.complete:
            return wire.epoch is not None and wire.state != "complete"
        return wire.epoch is None or wire.epoch != truth.epoch
