"""What a worker process does: it joins a run with one lease after another, and completes the run at its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial
from time import monotonic

from redis.asyncio import Redis

from coordinator.errors import EpochLost, LeaseLost, ShardcrawlError, UsageError
from coordinator.failpoints import Failpoint, no_failpoint
from coordinator.limits.limiter import Limiter
from coordinator.limits.matcher import UpstreamMatcher
from coordinator.limits.robots_cache import RobotsCache
from coordinator.model import RunState
from coordinator.queue.done import DoneSet
from coordinator.queue.registry import RunRecord, Runs
from coordinator.queue.streams import Streams
from coordinator.redis.keys import RunKeys
from coordinator.redis.retrying import retry_unavailable
from coordinator.roles.membership import new_worker_id
from coordinator.tasks import run_until_first_ends
from crawler.fetch.engines.open import open_engine
from crawler.fetch.fetcher import Fetcher, Meter
from crawler.fetch.template import Template
from crawler.job.job import Job, read_job
from crawler.parse import hook
from crawler.parse.parser import Parser
from crawler.pipeline.batch import Batch
from crawler.pipeline.intake import Intake
from crawler.pipeline.page_builder import PageBuilder
from crawler.pipeline.scheduler import Scheduler
from crawler.store.catalogue import open_catalogue
from crawler.store.writer import Writer
from crawler.telemetry.loop_lag import LoopLag
from crawler.worker import Worker

logger = logging.getLogger(__name__)

# How often the list of runs is read.
LIST_RUNS_INTERVAL_SECONDS = 1.0
# After an error in one run, until this process joins that run again.
RUN_RETRY_SECONDS = 10.0


class Runner:
    """Works on the runs of one Redis, with one worker at a time for each run.

    `environ` has the secrets that job files name.
    """

    def __init__(
        self, client: Redis, database: str, environ: Mapping[str, str], failpoint: Failpoint = no_failpoint
    ) -> None:
        self._client = client
        self._runs = Runs(client)
        self._database = database
        self._environ = environ
        self._failpoint = failpoint
        self._workers: set[Worker] = set()
        self._draining = False

    def drain(self) -> None:
        """In every run: claim nothing more, finish what is in flight, commit, leave."""
        self._draining = True
        for worker in self._workers:
            worker.drain()

    async def serve_all(self) -> None:
        """Work on every run that is not complete, also on those that come later, until drained.

        A ShardcrawlError of one run is logged, and that run is joined again ten seconds later; the others go on. Raises
        every other error.
        """
        serving: dict[str, asyncio.Task[None]] = {}
        retry_at: dict[str, float] = {}
        while not self._draining:
            for name in await retry_unavailable(self._runs.names, "worker"):
                if name in serving and serving[name].done():
                    error = serving.pop(name).exception()
                    if isinstance(error, ShardcrawlError):
                        logger.error("run %s: %s", name, error)
                        retry_at[name] = monotonic() + RUN_RETRY_SECONDS
                    elif error is not None:
                        raise error
                if name in serving or monotonic() < retry_at.get(name, 0.0):
                    continue
                if await retry_unavailable(partial(self._runs.state, name), "worker") is not RunState.COMPLETE:
                    serving[name] = asyncio.create_task(self.serve(name), name=f"serve {name}")
            await asyncio.sleep(LIST_RUNS_INTERVAL_SECONDS)
        await asyncio.gather(*serving.values())

    async def serve(self, name: str) -> None:
        """Work on one run until it is complete or this process drains, with a new worker after each lost lease.

        Raises UsageError, EpochLost, PostgresRefused.
        """
        while not self._draining:
            record = await retry_unavailable(lambda: self._runs.find(name), "worker")
            if record is None:
                raise UsageError(f"Redis has no run {name}; `shardcrawl coordinate JOB` makes it")
            job = read_job(record.document, record.folder)
            try:
                state = await self._work_for_one_lease(record, job)
                if state is RunState.RESOLVED:
                    await retry_unavailable(partial(self._complete_run, record, job), "worker")
            except LeaseLost as error:
                logger.warning("%s; joining again", error)
                continue
            except EpochLost:
                await retry_unavailable(partial(self._void_epoch, record), "worker")
                raise
            if state is not RunState.RUNNING:
                return

    async def _work_for_one_lease(self, record: RunRecord, job: Job) -> RunState:
        """Build a worker and let it work until its lease ends; returns the state of the run."""
        async with AsyncExitStack() as stack:
            worker, limiter = await build_worker(
                stack, record, job, self._client, self._database, self._environ, self._failpoint
            )
            self._workers.add(worker)
            try:
                await run_until_first_ends(worker.run(), limiter.watch(), LoopLag().watch())
            finally:
                self._workers.discard(worker)
        return worker.state

    async def _void_epoch(self, record: RunRecord) -> None:
        """Make every worker wait for a rebuild, because Redis has lost what this worker recorded in it."""
        async with open_catalogue(self._database) as catalogue:
            await catalogue.void_epoch(record.run_id, record.epoch)

    async def _complete_run(self, record: RunRecord, job: Job) -> None:
        """Take the final counts in Postgres and publish the run there; then tell Redis that it is complete."""
        async with open_catalogue(self._database) as catalogue:
            counts = await catalogue.finish(record.run_id, record.epoch, job.tables)
        self._failpoint("finished")
        await self._runs.finish(record, counts)
        logger.info("run %s is complete: %s", record.name, ", ".join(f"{keys} {name}" for name, keys in counts.items()))


async def build_worker(
    stack: AsyncExitStack,
    record: RunRecord,
    job: Job,
    client: Redis,
    database: str,
    environ: Mapping[str, str],
    failpoint: Failpoint,
) -> tuple[Worker, Limiter]:
    """A worker for one lease, and its limiter, whose `watch` must run while the worker does.

    `stack` closes what they open. Waits until Postgres can be reached. Raises PostgresRefused, EpochLost, UsageError.
    """
    keys = RunKeys(record.name)
    name = new_worker_id()
    streams = Streams(client, keys, record.layout, record.epoch)
    matcher = UpstreamMatcher(job.limits)
    limiter = Limiter(client, keys, matcher)
    scheduler = Scheduler(limiter, enough=job.run.concurrency)
    template = Template(job.request)
    batch = Batch(job.store)
    meter = Meter()
    writer = Writer(database, record.run_id, record.epoch, job.tables, failpoint)
    stack.push_async_callback(writer.close)
    engine = open_engine(job, environ)
    stack.push_async_callback(engine.close)
    stack.push_async_callback(scheduler.close)
    parser_hook = hook.load(job)
    parser = None if parser_hook is None else Parser(parser_hook, job)
    if parser is not None:
        stack.push_async_callback(parser.close)
    robots_cache = RobotsCache(client, keys, name) if job.request.obeys_robots else None
    fetcher = Fetcher(engine, limiter, matcher, job, meter, robots_cache)
    stack.push_async_callback(fetcher.close)
    only_upstream = None if job.request.url is None else matcher.upstream_of(job.request.url)
    intake = Intake(
        streams=streams,
        done=DoneSet(client, keys, record.layout, record.epoch),
        worker=name,
        batch=batch,
        template=template,
        matcher=matcher,
        scheduler=scheduler,
        keys_per_request=job.request.keys_per_request,
        would_only_wait=lambda: only_upstream is not None and scheduler.would_only_wait(only_upstream),
        failpoint=failpoint,
    )
    worker = Worker(
        name,
        streams=streams,
        intake=intake,
        scheduler=scheduler,
        fetcher=fetcher,
        page_builder=PageBuilder(template, parser),
        batch=batch,
        writer=writer,
        meter=meter,
        concurrency=job.run.concurrency,
        failpoint=failpoint,
    )
    await retry_unavailable(writer.open, "worker")
    return worker, limiter
