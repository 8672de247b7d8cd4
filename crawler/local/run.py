"""Everything on this machine: services, the run, its coordinator and workers, and what the user sees of them."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from redis.asyncio import Redis
from rich.console import Console

from coordinator.errors import EpochLost, RedisUnavailable, UsageError
from coordinator.failpoints import failpoint_at
from coordinator.limits.matcher import UpstreamMatcher
from coordinator.model import Outcome, RunCounts
from coordinator.queue.registry import RunRecord
from coordinator.redis.connection import check_server, connect_redis
from coordinator.roles.membership import release_dead
from coordinator.settings import ANY_UPSTREAM, POLITE
from coordinator.source import STANDARD_INPUT
from coordinator.status import read_counts, read_snapshot
from coordinator.tasks import run_until_first_ends
from crawler.cli import progress
from crawler.cli.progress import say
from crawler.job.job import Job, read_job
from crawler.local import embedded
from crawler.local.child import FAILPOINT_VARIABLE, INTERRUPTED, ChildSpec
from crawler.local.supervisor import ChildPlan, Supervisor
from crawler.opening import OpenedRun, open_run, readable
from crawler.store.catalogue import Catalogue, StoredRun
from crawler.store.postgres import connect_postgres

logger = logging.getLogger(__name__)

DATA = Path(".shardcrawl")
# A Redis that loses the run again and again is not one to go on with.
MOST_REBUILDS = 5


@dataclass(frozen=True, slots=True)
class Place:
    """Where Redis and Postgres are: at the user's addresses, or embedded in `data` where there is none."""

    redis: str | None
    database: str | None
    data: Path

    @property
    def options(self) -> str:
        """What another command needs to look at the same place: nothing, or its --data."""
        return "" if self.database or self.data == DATA else f" --data {shlex.quote(str(self.data))}"


@dataclass(frozen=True, slots=True)
class Addresses:
    """Both services' addresses, and the embedded ones' keeper when this process owns any."""

    redis: str
    database: str
    keeper: embedded.Embedded | None = None


@dataclass(frozen=True, slots=True)
class Voice:
    """How a command speaks to its user: where to, from which level on, and whether with tracebacks."""

    console: Console
    level: str
    debug: bool


@dataclass(frozen=True, slots=True)
class RunEnd:
    """How a run stands when its command ends. `stored` is its row in Postgres once it is complete."""

    job: Job
    counts: RunCounts
    stored: StoredRun | None
    seconds: float
    was_complete: bool = False

    @property
    def too_many_failed(self) -> bool:
        """Whether more keys failed than the job allows."""
        outcomes = self.stored.counts if self.stored else self.counts.outcomes
        return outcomes.get(Outcome.FAILED, 0) > self.job.run.max_failed * sum(outcomes.values())


@asynccontextmanager
async def services(place: Place, *, share: bool = False) -> AsyncIterator[Addresses]:
    """Both services, started here where no address is given; `share` uses those that a running command has started.

    Raises DataInUse, RedisUnavailable, RedisRefused, PostgresUnavailable, PostgresRefused.
    """
    if place.redis and place.database:
        yield Addresses(place.redis, place.database)
        return
    running = embedded.running(place.data) if share else None
    if running is not None and (place.redis or running.redis_url) and (place.database or running.database_url):
        yield Addresses(place.redis or str(running.redis_url), place.database or str(running.database_url))
        return
    async with embedded.Embedded(place.data, redis=not place.redis, postgres=not place.database) as keeper:
        started = keeper.services
        yield Addresses(
            place.redis or str(started.redis_url), place.database or str(started.database_url), keeper=keeper
        )


async def run(place: Place, document: Mapping[str, Any], folder: str, voice: Voice) -> RunEnd:
    """Run a job on this machine until it is complete or the user interrupts it; resumes a run of the same name."""
    await readable(read_job(document, folder))
    async with services(place) as addresses:
        return await run_at(addresses, document, folder, voice)


async def run_at(
    addresses: Addresses, document: Mapping[str, Any], folder: str, voice: Voice, *, with_workers: bool = True
) -> RunEnd:
    """The same with services that are there already. A run that Redis lost is rebuilt from Postgres and goes on."""
    began = monotonic()
    client = connect_redis(addresses.redis)
    try:
        for warning in await check_server(client, addresses.redis):
            logger.warning("%s", warning)
        for left in range(MOST_REBUILDS, -1, -1):
            failpoint = failpoint_at(os.environ.get(FAILPOINT_VARIABLE), "opening")
            opened = await open_run(client, addresses.database, document, folder, failpoint)
            job = opened.job
            if opened.complete is not None:
                final = RunCounts(total=sum(opened.complete.counts.values()), outcomes=dict(opened.complete.counts))
                return RunEnd(job, final, opened.complete, monotonic() - began, was_complete=True)
            assert opened.record is not None
            say_how_it_begins(opened, await read_counts(client, opened.record), voice.console)
            try:
                workers = (job.run.workers or os.cpu_count() or 1) if with_workers else 0
                await _work(addresses, client, opened.record, job, voice, workers)
            except EpochLost as error:
                if not left:
                    raise
                logger.warning("%s; nothing is called done until the run is rebuilt", error)
                continue
            return await _end_of(addresses, client, opened.record, job, monotonic() - began)
        raise AssertionError("unreachable: the last round raises or returns")
    finally:
        await client.aclose()


async def _work(addresses: Addresses, client: Redis, record: RunRecord, job: Job, voice: Voice, workers: int) -> None:
    plans = [_coordinator(addresses, job, voice)]
    for number in range(workers):
        who = f"worker-{number + 1}"
        plans.append(ChildPlan(_assignment(addresses, job, voice, "worker", who)))
    supervisor = Supervisor(plans, printer(voice.console), os.environ, release_on_death(client))
    keeping = [addresses.keeper.watch()] if addresses.keeper else []
    with_signals(supervisor, voice.console, addresses.keeper)
    await run_until_first_ends(
        supervisor.run(), progress.show(lambda: read_snapshot(client, record), voice.console, job.run.name), *keeping
    )


def _coordinator(addresses: Addresses, job: Job, voice: Voice) -> ChildPlan:
    """The coordinator as a child. What it read of a pipe is gone with it: then it is not started again."""
    piped = job.source.path == STANDARD_INPUT
    spec = _assignment(addresses, job, voice, "coordinator", "coordinator")
    return ChildPlan(spec, restart=not piped, reads_input=piped)


def _assignment(addresses: Addresses, job: Job, voice: Voice, role: str, who: str) -> ChildSpec:
    return ChildSpec(
        role,
        who,
        addresses.redis,
        addresses.database,
        job.run.name,
        level=voice.level,
        grace=job.run.grace,
        debug=voice.debug,
    )


def with_signals(supervisor: Supervisor, console: Console, keeper: embedded.Embedded | None = None) -> None:
    """The first Ctrl-C (or SIGTERM) drains, the second leaves at once; the keeper's servers stop by themselves then."""
    loop = asyncio.get_running_loop()
    told = False

    def on_signal() -> None:
        nonlocal told
        if told:
            supervisor.kill()
            if keeper is not None:
                keeper.abandon()
            os._exit(INTERRUPTED)
        told = True
        say(console, "finishing what is in flight; Ctrl-C again leaves at once")
        supervisor.drain()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)


def release_on_death(client: Redis) -> Callable[[int], Awaitable[None]]:
    """Ends the leases of a child that died, so that its work need not wait for them to run out."""

    async def on_death(pid: int) -> None:
        with suppress(RedisUnavailable):  # then the lease ends by itself
            await release_dead(client, pid)

    return on_death


def printer(console: Console) -> Callable[[str], None]:
    """Shows a child's log line above the progress bar."""

    def show(line: str) -> None:
        say(console, line)

    return show


def say_how_it_begins(opened: OpenedRun, now: RunCounts, console: Console) -> None:
    """Tell whether the run is new or goes on, and with how much left."""
    name = opened.job.run.name
    if unlimited := UpstreamMatcher(opened.job.limits).without_limit(opened.job.request.url):
        whose = "each host" if unlimited == ANY_UPSTREAM else unlimited
        most = f"{POLITE.rate_text} and {POLITE.concurrency} requests at once"
        say(console, f"no limit is named for {whose}: {most}, to be polite; set [limits] or --rate (none: no bound)")
    if not opened.resumed:
        about = f", about {now.total:,} keys" if now.total is not None else ""
        say(console, f"run {name} begins{about}")
        return
    say(console, f"run {name} goes on: {now.done:,} keys are done")


async def _end_of(addresses: Addresses, client: Redis, record: RunRecord, job: Job, seconds: float) -> RunEnd:
    """How the run stands now, with its row in Postgres when it is complete."""
    connection = await connect_postgres(addresses.database)
    try:
        stored = await Catalogue(connection).find(job.run.name)
    finally:
        await connection.close()
    if stored is None:
        raise UsageError(f"run {job.run.name} is no longer in Postgres: somebody deleted it")
    return RunEnd(job, await read_counts(client, record), stored if stored.complete else None, seconds)
