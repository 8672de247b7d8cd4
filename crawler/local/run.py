"""A run on this machine: its services, its coordinator and workers as child processes, and events of what happens."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from time import monotonic

from redis.asyncio import Redis

from coordinator.errors import (
    DataInUse,
    EpochLost,
    PostgresUnavailable,
    RedisUnavailable,
    Unavailable,
)
from coordinator.failpoints import failpoint_at
from coordinator.model import RunCounts
from coordinator.queue.registry import RunRecord, Runs
from coordinator.redis.connection import check_server, connect_redis
from coordinator.roles.membership import release_dead
from coordinator.status import RunSnapshot, read_counts, read_snapshot
from coordinator.tasks import run_until_first_ends
from crawler.corpus import polite_upstream, sample_corpus, survey_corpus, with_source_database
from crawler.job.job import Job
from crawler.job.permissions import Permissions
from crawler.local.child_spec import FAILPOINT_VARIABLE, ChildSpec
from crawler.local.ending import end_of, with_files
from crawler.local.events import (
    ChildLine,
    Listener,
    NothingElseLeft,
    OnEvent,
    PoliteDefaultUsed,
    ProgressUnknown,
    RunBegins,
    RunEnd,
    RunGoesOn,
    RunLost,
    RunProgress,
    ServerWarning,
)
from crawler.local.other_run import refuse_beside_another, refuse_beside_its_like
from crawler.local.services import Addresses, Place, services
from crawler.local.signals import drain_on_signals
from crawler.local.standstill import Progress, Standstill
from crawler.local.supervisor import Supervisor, children_of_run
from crawler.opening import OpenedRun, open_run
from crawler.runs.naming import with_name
from crawler.runs.notify import Notifier
from crawler.runs.since import with_fixed_since
from crawler.store.address import address_warnings
from crawler.store.catalogue import open_catalogue
from crawler.store.postgres import connect_postgres
from crawler.telemetry import logs

# How often a command checks that Postgres still has the epoch that its run began with.
EPOCH_CHECK_INTERVAL_SECONDS = 5.0
# A Redis that loses the run so often in one command cannot be relied on. After a calm time the count begins anew.
MAX_REBUILDS = 5
CALM_SECONDS = 60.0


async def run_in(place: Place, job: Job, listener: Listener, environ: Mapping[str, str]) -> RunEnd:
    """Run a job on this machine until it is complete or the user interrupts it; resumes a run of the same name.

    Raises SourceError, before anything is started, when the source cannot be read; else ShardcrawlError like `run_at`.
    """
    if job.source.query is None:
        await asyncio.to_thread(survey_corpus, job, count=False)
    try:
        async with services(place) as addresses:
            if job.run.refresh and place.redis:  # at an embedded one nobody else works: its leases are of the dead
                await refuse_beside_another(addresses, job)
            return await run_at(addresses, job, listener, environ)
    except DataInUse:
        if job.run.refresh:
            await refuse_beside_its_like(place, job)
        raise


async def run_at(
    addresses: Addresses, job: Job, listener: Listener, environ: Mapping[str, str], *, with_workers: bool = True
) -> RunEnd:
    """Like `run`, with services that are there already. A run that Redis lost is rebuilt from Postgres and goes on.

    `environ` is what children inherit. Raises ShardcrawlError: EpochLost after MAX_REBUILDS, or what opening the run,
    a child or a server raised.
    """
    work_on_it = partial(_run_at, addresses, job, listener, environ, with_workers=with_workers)
    return await with_files(addresses, job, listener, environ, work_on_it)


async def _run_at(
    addresses: Addresses, job: Job, listener: Listener, environ: Mapping[str, str], *, with_workers: bool
) -> RunEnd:
    began = monotonic()
    if not job.run.name or job.run.since is not None:
        async with open_catalogue(addresses.database) as catalogue:
            await catalogue.prepare(upgrade=True)
            job = await with_fixed_since(await with_name(job, catalogue), catalogue)
    job = with_source_database(job, addresses.database, environ)
    logs.name_run(job.run.name)
    workers = (job.run.workers or os.cpu_count() or 1) if with_workers else 0
    failpoint = failpoint_at(environ.get(FAILPOINT_VARIABLE), "opening")
    client = connect_redis(addresses.redis)
    notifier = Notifier(client, job, environ)
    try:
        await _check_servers(client, addresses, listener.on_event)
        rebuilds, before = 0, None
        while True:
            opened = await open_run(client, addresses.database, job, failpoint)
            if opened.complete_run is not None:
                complete = opened.complete_run
                final = RunCounts(total=sum(complete.counts.values()), outcomes=dict(complete.counts))
                seconds = monotonic() - began
                return RunEnd(job, final, complete, seconds, was_complete=True, reasons=complete.reasons)
            assert opened.record is not None
            opened_at = monotonic()
            counts = await read_counts(client, opened.record.name, opened.record.total)
            await _report_opening(job, opened, counts, listener.on_event)
            specs = children_of_run(addresses, job, listener, workers)
            supervisor = _supervisor(addresses, client, specs, listener, environ)
            if before is not None and before.interrupted:  # since a child saw that Redis lost the run
                supervisor.drain()
            before = supervisor
            try:
                gave_up = await _supervise(supervisor, addresses, client, opened.record, listener, workers, notifier)
            except EpochLost as error:
                await Runs(client).mark_opened(job.run.name)
                async with open_catalogue(addresses.database) as catalogue:  # if no child did it
                    is_lost = await catalogue.void_epoch(opened.record.run_id, opened.record.epoch)
                if is_lost:  # else `retry` or `rebuild` did it, however often the user likes
                    rebuilds = 0 if monotonic() - opened_at > CALM_SECONDS else rebuilds
                    if rebuilds == MAX_REBUILDS:
                        raise
                    rebuilds += 1
                listener.on_event(RunLost(str(error)))
            else:
                # One that stood idle between two looks may lead to a Redis that is not there any more.
                await client.connection_pool.disconnect()
                end = await end_of(addresses, client, opened.record, job, monotonic() - began)
                await notifier.notify_of_end(end.stored)
                return replace(end, gave_up=gave_up and end.stored is None)
    finally:
        await client.aclose()


async def work(
    addresses: Addresses,
    listener: Listener,
    environ: Mapping[str, str],
    *,
    workers: int,
    grace_seconds: float,
    permissions: Permissions,
) -> None:
    """Run worker processes for every active run of this Redis until a signal ends them; the `permissions` say what
    their jobs may do. Raises ShardcrawlError.
    """
    await (await connect_postgres(addresses.database)).close()
    client = connect_redis(addresses.redis)
    try:
        await _check_servers(client, addresses, listener.on_event)
        specs = [
            ChildSpec(
                "worker",
                f"worker-{number + 1}",
                addresses.redis,
                addresses.database,
                log_level=listener.log_level,
                line_format=logs.line_format(),
                grace_seconds=grace_seconds,
                permissions=permissions,
                debug=listener.debug,
            )
            for number in range(workers)
        ]
        await _supervisor(addresses, client, specs, listener, environ).run()
    finally:
        await client.aclose()


async def report_progress(
    look: Callable[[], Awaitable[RunSnapshot]], name: str, on_event: OnEvent, seconds: float
) -> None:
    """Report the run's progress every `seconds` until cancelled. While Redis does not respond, report that instead."""
    while True:
        try:
            on_event(RunProgress(await look()))
        except Unavailable as error:
            on_event(ProgressUnknown(name, str(error)))
        await asyncio.sleep(seconds)


async def _check_servers(client: Redis, addresses: Addresses, on_event: OnEvent) -> None:
    for warning in [*await check_server(client, addresses.redis), *address_warnings(addresses.database)]:
        on_event(ServerWarning(warning))


async def _report_opening(job: Job, opened: OpenedRun, now: RunCounts, on_event: OnEvent) -> None:
    # A generator is the user's code, which only the planner calls.
    if unlimited := await asyncio.to_thread(
        polite_upstream, job, lambda: () if job.source.python else sample_corpus(job).keys
    ):
        on_event(PoliteDefaultUsed(unlimited))
    begins = RunBegins(job.run.name, now.total, opened.base)
    on_event(RunGoesOn(job.run.name, now.done) if opened.resumed else begins)


async def _supervise(
    supervisor: Supervisor,
    addresses: Addresses,
    client: Redis,
    record: RunRecord,
    listener: Listener,
    workers: int,
    notifier: Notifier,
) -> bool:
    """Work on the run with a coordinator and workers as children, until it is complete or drained.

    Returns whether it drained because all that is left is for upstreams that refuse everything. A command without
    workers never does: what an upstream refuses may be mended where the workers are.
    """
    watches = [_watch_epoch(client, addresses.database, record, supervisor)]
    if addresses.embedded:
        watches.append(addresses.embedded.watch())
    standstill, progress, gave_up = Standstill(), Progress(notifier.stalled_seconds), False

    async def look() -> RunSnapshot:
        nonlocal gave_up
        snapshot = await read_snapshot(client, record.name, record.total)
        if workers and not gave_up and (upstreams := standstill.add(snapshot, monotonic())):
            gave_up = True
            listener.on_event(NothingElseLeft(upstreams))
            supervisor.drain()
        if progress.has_stalled(snapshot, monotonic()):
            await notifier.notify_stalled(snapshot)
        return snapshot

    await run_until_first_ends(
        supervisor.run(), report_progress(look, record.name, listener.on_event, listener.progress_seconds), *watches
    )
    if not supervisor.draining:  # `retry` may have put keys back while the last ones were finished
        await _check_epoch(addresses.database, record)
    return gave_up


async def _watch_epoch(client: Redis, database: str, record: RunRecord, supervisor: Supervisor) -> None:
    """Drain, and then raise EpochLost, when the run gets another epoch in Postgres: a worker saw that Redis was rolled
    back, or `retry` has put keys back. Runs until cancelled.

    Nothing in Redis tells our own workers of a `retry`. What they have in flight is finished first: a POST that was
    sent would fail with an unknown outcome.
    """
    while True:
        await asyncio.sleep(EPOCH_CHECK_INTERVAL_SECONDS)
        if supervisor.draining:
            continue
        try:
            await _check_epoch(database, record)
        except PostgresUnavailable:
            continue  # the next check will see it
        except EpochLost as error:
            await Runs(client).mark_opened(record.name)
            supervisor.drain(error)


async def _check_epoch(database: str, record: RunRecord) -> None:
    async with open_catalogue(database) as catalogue:
        epoch = await catalogue.epoch(record.run_id)
    if epoch is not None and epoch != record.epoch:
        raise EpochLost(f"run {record.name} was given another beginning in Postgres")


def _supervisor(
    addresses: Addresses,
    client: Redis,
    specs: Sequence[ChildSpec],
    listener: Listener,
    environ: Mapping[str, str],
) -> Supervisor:
    async def release(pid: int) -> None:
        """End the leases of a child that died, so that other workers take its blocks over at once."""
        with suppress(RedisUnavailable):  # the leases then end by themselves
            await release_dead(client, pid)

    supervisor = Supervisor(specs, lambda line: listener.on_event(ChildLine(line)), environ, release)
    if listener.on_children is not None:
        listener.on_children(lambda: supervisor.silent)
    drain_on_signals(supervisor.drain, supervisor.kill, listener, addresses.embedded)
    return supervisor
