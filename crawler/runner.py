"""What a worker process does: it joins a run with one lease after another, and completes the run at its end."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from time import monotonic

from redis.asyncio import Redis

from coordinator.errors import EpochLost, LeaseLost, RunCancelled, ShardcrawlError, WorkersFull
from coordinator.failpoints import Failpoint, no_failpoint
from coordinator.model import RunState
from coordinator.queue.registry import RunRecord, Runs
from coordinator.redis.retrying import retry_unavailable
from coordinator.tasks import run_until_first_ends
from crawler.assembly import build_worker
from crawler.job.fields import RUN_NAME
from crawler.job.job import Job, read_job
from crawler.job.permissions import NOTHING_ALLOWED, Permissions
from crawler.parse import hook
from crawler.parse.code import LoadedParsers
from crawler.runs.publish import finish_run
from crawler.store.catalogue import find_record, open_catalogue
from crawler.telemetry import logs
from crawler.telemetry.loop_lag import LoopLag
from crawler.telemetry.pulse import BEAT_HOLDS_SECONDS, Pulse
from crawler.worker import Worker

logger = logging.getLogger(__name__)

# How often the list of runs is read.
LIST_RUNS_INTERVAL_SECONDS = 1.0
# After an error in one run, until this process joins that run again.
RUN_RETRY_SECONDS = 10.0
# How often a worker process asks whether the run may have one more worker.
FULL_RETRY_SECONDS = 5.0


class Runner:
    """Works on the runs that one Redis names, with one worker at a time for each run.

    `environ` has the secrets that job files name. A job of its own, which this machine has from its user, may do
    everything; without one, jobs come from Postgres and may do what `permissions` say.
    """

    def __init__(
        self,
        client: Redis,
        database: str,
        environ: Mapping[str, str],
        failpoint: Failpoint = no_failpoint,
        pulse: Pulse | None = None,
        *,
        job: Job | None = None,
        permissions: Permissions = NOTHING_ALLOWED,
    ) -> None:
        self._client = client
        self._runs = Runs(client)
        self._database = database
        self._job = job
        self._permissions = permissions
        self._environ = permissions.secrets_in(environ) if job is None else environ
        self._failpoint = failpoint
        self._pulse = pulse or Pulse()
        self._workers: set[Worker] = set()
        self._unknown: set[str] = set()
        self._draining = asyncio.Event()
        self._parsers = LoadedParsers()

    def drain(self) -> None:
        """In every run: claim nothing more, finish what is in flight, commit, leave."""
        self._draining.set()
        for worker in self._workers:
            worker.drain()

    async def serve_all(self) -> None:
        """Work on every run that is not complete, also on those that come later, until drained.

        A ShardcrawlError of one run is logged, the same one once a minute, and that run is joined again ten seconds
        later; the others go on. Raises every other error.
        """
        serving: dict[str, asyncio.Task[None]] = {}
        retry_at: dict[str, float] = {}
        errors = logs.Repeated()

        async def serve(name: str) -> None:
            try:
                await self.serve(name)
            except RunCancelled as error:
                logger.info("%s", error)
                retry_at[name] = monotonic() + RUN_RETRY_SECONDS
            except ShardcrawlError as error:
                if errors.is_due(text := f"run {name}: {error}"):
                    logger.error("%s", text)
                retry_at[name] = monotonic() + RUN_RETRY_SECONDS

        while not self._draining.is_set():
            for name in [name for name, task in serving.items() if task.done()]:
                serving.pop(name).result()
            now = monotonic()
            for name in await self._runs_to_join({*serving, *(name for name in retry_at if now < retry_at[name])}):
                serving[name] = asyncio.create_task(serve(name), name=f"serve {name}")
            await asyncio.sleep(LIST_RUNS_INTERVAL_SECONDS)
        await asyncio.gather(*serving.values())

    async def serve(self, name: str) -> None:
        """Work on one run until it is complete or this process drains, with a new worker after each lost lease.

        Raises UsageError, RunCancelled, EpochLost, PostgresRefused.
        """
        logs.name_run(name)
        while not self._draining.is_set():
            record = await retry_unavailable(partial(find_record, self._database, name), "worker")
            job = self._job or self._job_of(record)
            try:
                state = await self._work_for_one_lease(record, job)
                if state is RunState.RESOLVED:
                    await retry_unavailable(partial(self._complete_run, record, job), "worker")
            except LeaseLost as error:
                logger.warning("%s; joining again", error)
                continue
            except WorkersFull:
                with suppress(TimeoutError):
                    async with asyncio.timeout(FULL_RETRY_SECONDS):
                        await self._draining.wait()
                continue
            except EpochLost:
                await retry_unavailable(partial(self._void_epoch, record), "worker")
                raise
            if state is not RunState.RUNNING:
                return

    async def _runs_to_join(self, others: Collection[str]) -> list[str]:
        """The runs to work on that are not among the `others`: Redis names them, and Postgres has them."""
        named = [name for name in await retry_unavailable(self._runs.names, "worker") if name not in others]
        active = [name for name in named if re.fullmatch(RUN_NAME, name) and not await self._is_over(name)]
        if not active:
            return []
        known = await retry_unavailable(partial(self._known, active), "worker")
        if unknown := set(active) - known - self._unknown:  # said once of each
            logger.error(
                "Postgres does not have %d runs of Redis, like %s: is DATABASE_URL right? If they were deleted there, "
                "`shardcrawl prune` deletes what they left",
                *(len(unknown), min(unknown)),
            )
            self._unknown |= unknown
        return [name for name in active if name in known]

    async def _is_over(self, name: str) -> bool:
        state = await retry_unavailable(partial(self._runs.state, name), "worker")
        return state is not None and state.is_over

    async def _known(self, names: Sequence[str]) -> set[str]:
        async with open_catalogue(self._database) as catalogue:
            return await catalogue.known(names)

    def _job_of(self, record: RunRecord) -> Job:
        """The job of a run that was begun elsewhere. Raises UsageError when it wants more than it may."""
        job = read_job(record.document, record.folder)
        self._permissions.check(job)
        return job

    async def _work_for_one_lease(self, record: RunRecord, job: Job) -> RunState:
        """Build a worker and let it work until its lease ends; returns the state of the run."""
        async with AsyncExitStack() as stack:
            files = await asyncio.to_thread(self._parsers.check, job, record.parser_files)
            self._pulse.beat(hook.IMPORT_SECONDS + BEAT_HOLDS_SECONDS)
            worker, limiter, matched = await build_worker(
                stack, record, job, self._client, self._database, self._environ, self._failpoint
            )
            self._parsers.add(job, files)
            self._pulse.begun()
            self._workers.add(worker)
            try:
                await run_until_first_ends(worker.run(), limiter.watch(), matched.watch(), LoopLag().watch())
                await matched.record()
            finally:
                self._workers.discard(worker)
        return worker.state

    async def _void_epoch(self, record: RunRecord) -> None:
        """Make every worker wait for a rebuild, because Redis has lost what this worker recorded in it."""
        async with open_catalogue(self._database) as catalogue:
            await catalogue.void_epoch(record.run_id, record.epoch)

    async def _complete_run(self, record: RunRecord, job: Job) -> None:
        """Take the final counts in Postgres and publish the run there; then tell Redis that it is complete."""
        counts = (await finish_run(self._database, record, job, self._failpoint)).counts
        self._failpoint("finished")
        await self._runs.finish(record, counts)
        logger.info(
            "run %s is complete: %s",
            record.name,
            ", ".join(f"{keys} {name}" for name, keys in counts.items()),
            extra={"event": "run_complete"},
        )
