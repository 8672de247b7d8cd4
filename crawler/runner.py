"""What a worker process does: joins a run with one lease after another, and takes the final counts at its end."""

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
from crawler.store.catalogue import Catalogue
from crawler.store.postgres import connect_postgres
from crawler.store.writer import Writer
from crawler.telemetry.loop_lag import LoopLag
from crawler.worker import Worker

logger = logging.getLogger(__name__)

RUNS_POLL = 1.0
RUN_AGAIN = 10.0


class Runner:
    """This process' part in the runs of one Redis; `environ` is where secrets in job files are looked up."""

    def __init__(
        self, client: Redis, database: str, environ: Mapping[str, str], failpoint: Failpoint = no_failpoint
    ) -> None:
        self._client = client
        self._runs = Runs(client)
        self._database = database
        self._environ = environ
        self._failpoint = failpoint
        self._working: set[Worker] = set()
        self._draining = False

    def drain(self) -> None:
        """Finish what is in flight in every run, commit, leave."""
        self._draining = True
        for worker in self._working:
            worker.drain()

    async def serve_all(self) -> None:
        """Work on every run that is not complete, as they come, until drained.

        A run that cannot be worked on is an error line and is tried again later: it must not stop the others.
        """
        serving: dict[str, asyncio.Task[None]] = {}
        again_at: dict[str, float] = {}
        while not self._draining:
            for name in await retry_unavailable(self._runs.names, "worker"):
                if name in serving and serving[name].done():
                    error = serving.pop(name).exception()
                    if isinstance(error, ShardcrawlError):
                        logger.error("run %s: %s", name, error)
                        again_at[name] = monotonic() + RUN_AGAIN
                    elif error is not None:
                        raise error
                if name in serving or monotonic() < again_at.get(name, 0.0):
                    continue
                if await retry_unavailable(partial(self._runs.state, name), "worker") is not RunState.COMPLETE:
                    serving[name] = asyncio.create_task(self.serve(name), name=f"serve {name}")
            await asyncio.sleep(RUNS_POLL)
        await asyncio.gather(*serving.values())

    async def serve(self, name: str) -> None:
        """Work on one run until it is complete or this process drains. Raises UsageError, EpochLost."""
        while not self._draining:
            record = await retry_unavailable(lambda: self._runs.find(name), "worker")
            if record is None:
                raise UsageError(f"Redis has no run {name}; `shardcrawl coordinate JOB` makes it")
            job = read_job(record.document, record.folder)
            try:
                state = await self._lease(record, job)
            except LeaseLost as error:
                logger.warning("%s; joining again", error)
                continue
            except EpochLost:
                await retry_unavailable(partial(self._void, record), "worker")
                raise
            if state is RunState.RESOLVED:
                await retry_unavailable(partial(self._finish, record, job), "worker")
            if state is not RunState.RUNNING:
                return

    async def _lease(self, record: RunRecord, job: Job) -> RunState:
        """One worker's life, from its lease to its end; returns the run's state."""
        keys = RunKeys(record.name)
        worker_id = new_worker_id()
        streams = Streams(self._client, keys, record.layout, record.epoch)
        matcher = UpstreamMatcher(job.limits)
        limiter = Limiter(self._client, keys, matcher)
        scheduler = Scheduler(limiter, enough=job.run.concurrency)
        template = Template(job.request)
        batch = Batch(job.store)
        meter = Meter()
        async with AsyncExitStack() as stack:
            writer = Writer(self._database, record.run_id, record.epoch, job.tables, self._failpoint)
            stack.push_async_callback(writer.close)
            engine = open_engine(job, self._environ)
            stack.push_async_callback(engine.close)
            stack.push_async_callback(scheduler.close)
            cache = RobotsCache(self._client, keys, worker_id) if job.request.obeys_robots else None
            parse = hook.load(job)
            parser = None if parse is None else Parser(parse, job)
            if parser is not None:
                stack.push_async_callback(parser.close)
            fetcher = Fetcher(engine, limiter, matcher, job, meter, cache)
            stack.push_async_callback(fetcher.close)
            intake = Intake(
                streams=streams,
                done=DoneSet(self._client, keys, record.layout, record.epoch),
                worker=worker_id,
                batch=batch,
                template=template,
                matcher=matcher,
                scheduler=scheduler,
                keys_per_request=job.request.keys_per_request,
                shut=partial(scheduler.shut, matcher.upstream_of(job.request.url))
                if job.request.url
                else lambda: False,
                failpoint=self._failpoint,
            )
            worker = Worker(
                worker_id,
                streams=streams,
                intake=intake,
                scheduler=scheduler,
                fetcher=fetcher,
                pages=PageBuilder(template, parser),
                batch=batch,
                writer=writer,
                meter=meter,
                concurrency=job.run.concurrency,
                failpoint=self._failpoint,
            )
            await retry_unavailable(writer.open, "worker")
            self._working.add(worker)
            try:
                await run_until_first_ends(worker.run(), limiter.watch(), LoopLag().watch())
            finally:
                self._working.discard(worker)
        return worker.state

    async def _void(self, record: RunRecord) -> None:
        """Redis is not where this worker's work is recorded: see that nobody goes on there without a rebuild."""
        connection = await connect_postgres(self._database)
        try:
            await Catalogue(connection).void_epoch(record.run_id, record.epoch)
        finally:
            await connection.close()

    async def _finish(self, record: RunRecord, job: Job) -> None:
        """Take the final counts from Postgres and publish the run there; then Redis may call it complete."""
        connection = await connect_postgres(self._database)
        try:
            counts = await Catalogue(connection).finish(record.run_id, job.tables)
        finally:
            await connection.close()
        self._failpoint("finished")
        await self._runs.finish(record, counts)
        logger.info("run %s is complete: %s", record.name, ", ".join(f"{keys} {name}" for name, keys in counts.items()))
