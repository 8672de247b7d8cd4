"""What a worker is made of: one is put together for each lease, and closed at its end."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import NamedTuple, cast

from redis.asyncio import Redis

from coordinator.failpoints import Failpoint
from coordinator.limits.limiter import Limiter
from coordinator.limits.matcher import UpstreamMatcher
from coordinator.limits.robots_cache import RobotsCache
from coordinator.limits.unreachable import LoggedUpstreams, UnreachableUpstreams
from coordinator.queue.done import DoneSet
from coordinator.queue.found import FoundKeys
from coordinator.queue.notices import Notices
from coordinator.queue.recent import RecentKeys
from coordinator.queue.registry import RunRecord
from coordinator.queue.streams import Streams
from coordinator.redis.keys import RunKeys
from coordinator.redis.retrying import retry_unavailable
from coordinator.roles.membership import new_worker_id
from coordinator.stages.timing import Timing
from crawler.fetch.attempt import Meter
from crawler.fetch.engines.open import open_engine
from crawler.fetch.engines.protocol import Engine
from crawler.fetch.fetcher import Fetcher
from crawler.fetch.memory import BodyMemory
from crawler.fetch.network.credentials import Credentials, resolve_credentials, resolve_every
from crawler.fetch.template import Template
from crawler.job.job import Job
from crawler.parse import hook
from crawler.parse.parser import Parser
from crawler.pipeline.batch import Batch
from crawler.pipeline.intake import Intake
from crawler.pipeline.lanes import Lanes
from crawler.pipeline.page_builder import PageBuilder
from crawler.pipeline.refresh import Refresh
from crawler.pipeline.scheduler import Scheduler
from crawler.store.rows.base import BaseReader
from crawler.store.tables import RunTables
from crawler.store.writer import Writer
from crawler.telemetry.stage_watch import StageWatch
from crawler.transform.stage import TransformStage
from crawler.worker import Worker


class Fetching(NamedTuple):
    """What sends the requests of one worker. `limiter.watch` must run while they are sent."""

    limiter: Limiter
    matcher: UpstreamMatcher
    scheduler: Scheduler
    meter: Meter
    memory: BodyMemory
    fetcher: Fetcher
    credentials: Credentials


def open_fetching(
    stack: AsyncExitStack,
    keys: RunKeys,
    name: str,
    job: Job,
    client: Redis,
    environ: Mapping[str, str],
    through: Callable[[Engine], Engine] = lambda engine: engine,
) -> Fetching:
    """What sends the requests of the worker `name`; `stack` closes it.

    The engine is what `through` makes of the job's. Raises UsageError.
    """
    matcher = UpstreamMatcher(job.limits)
    limiter = Limiter(client, keys, matcher, most_refused=job.retry.refused_in_a_row)
    scheduler = Scheduler(limiter, enough=job.run.concurrency)
    meter = Meter()
    credentials = resolve_every(job.every_kind, environ)
    memory = BodyMemory(job.body_memory, job.request.max_body)
    engine = through(open_engine(job, credentials, memory))
    stack.push_async_callback(engine.close)
    stack.push_async_callback(scheduler.close)
    robots_cache = RobotsCache(client, keys, name) if job.obeys_robots else None
    fetcher = Fetcher(engine, limiter, matcher, job, meter, robots_cache, credentials)
    stack.push_async_callback(fetcher.close)
    return Fetching(limiter, matcher, scheduler, meter, memory, fetcher, credentials)


async def build_worker(
    stack: AsyncExitStack,
    record: RunRecord,
    job: Job,
    client: Redis,
    database: str,
    environ: Mapping[str, str],
    failpoint: Failpoint,
) -> tuple[Worker, Limiter, Notices]:
    """A worker for one lease, with its limiter and its matched limits, whose `watch` must run while the worker does.

    `stack` closes what they open. Waits until Postgres can be reached. Raises PostgresRefused, EpochLost, UsageError.
    """
    keys = RunKeys(record.name)
    name = new_worker_id()
    streams = Streams(client, keys, record.layout, record.epoch)
    templates = {
        one.kind: Template(one.request, resolve_credentials(one.request, environ).body_secrets)
        for one in job.every_kind
    }
    batch = Batch(job.store)
    of_run = RunTables.of(record)
    base = None if record.carried_run is None else RunTables(record.carried_run, of_run.schema)
    base_reader = None if base is None else BaseReader(database, base, keeps=job.run.on_failure == "keep")
    if base_reader is not None:
        stack.callback(base_reader.close)
    writer = Writer(database, of_run, record.epoch, job.tables, failpoint, follows=job.follows, base=base)
    stack.push_async_callback(writer.close)
    fetching = open_fetching(stack, keys, name, job, client, environ)
    limiter, matcher, scheduler, meter, memory, fetcher, credentials = fetching
    found_keys = _found_keys(client, keys, record, job) if job.follows else None
    recent = found_keys.recent if found_keys else None
    parsers = _parsers(job, record.parser_files, recent, meter.timings.parse)
    for parser in parsers.values():
        stack.push_async_callback(parser.close)
    sample = templates[""].sample if len(templates) == 1 else None
    only_upstream = None if sample is None else matcher.upstream_of(sample)
    intake = Intake(
        streams=streams,
        done=DoneSet(client, keys, record.layout, record.epoch),
        worker=name,
        batch=batch,
        templates=templates,
        matcher=matcher,
        scheduler=scheduler,
        keys_per_request={one.kind: one.request.keys_per_request for one in job.every_kind},
        follows=job.follows,
        by_level=job.by_level,
        refresh=None if base_reader is None else Refresh(job, base_reader),
        would_only_wait=lambda: (
            limiter.run_is_paused or (only_upstream is not None and scheduler.would_only_wait(only_upstream))
        ),
        failpoint=failpoint,
    )
    transforms = None
    if job.transform:
        transforms = TransformStage.open(job, batch, lambda: scheduler.empty, record.parser_files, meter.timings.of)
        stack.push_async_callback(transforms.close)
    lanes = Lanes(
        job.run.concurrency,
        scheduler=scheduler,
        fetcher=fetcher,
        page_builder=PageBuilder(job, templates, parsers, intake.put_alone, batch.defer_item, credentials),
        batch=batch,
        unreachable=UnreachableUpstreams(LoggedUpstreams(client, keys)),
        transforms=transforms,
        memory=memory,
        wait=meter.timings.wait,
        failpoint=failpoint,
    )
    worker = Worker(
        name,
        streams=streams,
        intake=intake,
        scheduler=scheduler,
        lanes=lanes,
        batch=batch,
        writer=writer,
        meter=meter,
        transforms=transforms,
        stages=StageWatch(lambda: lanes.look(intake.feeding), meter.timings),
        found_keys=found_keys,
        base=base_reader,
        failpoint=failpoint,
    )
    await retry_unavailable(writer.open, "worker")
    turned_null = ChainMap(*(cast("dict[str, float]", parser.turned_null) for parser in parsers.values()))
    return worker, limiter, Notices(client, keys, matcher.matched, turned_null)


def _parsers(
    job: Job, files: Mapping[str, str], recent: Mapping[str, RecentKeys] | None, timing: Timing
) -> Mapping[str, Parser]:
    """The parser of each kind that has one; `files` are the digests of their modules. Raises UsageError."""
    hooks = {one.kind: hook.load(job, kind=one.kind, recent=recent) for one in job.every_kind}
    return {kind: Parser(found, job, files, kind, timing) for kind, found in hooks.items() if found is not None}


def _found_keys(client: Redis, keys: RunKeys, record: RunRecord, job: Job) -> FoundKeys:
    return FoundKeys(
        client,
        keys,
        record.layout,
        record.epoch,
        high_water=job.run.high_water,
        keys_per_request={one.kind: one.request.keys_per_request for one in job.every_kind},
        by_level=job.by_level,
        bounded=job.most_found.keys(),
    )
