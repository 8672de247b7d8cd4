"""A child process: `python -m crawler.local.child CONTROL_FD NAME` does what its parent writes to it over a pipe.

The pipe's first line is the ChildSpec as JSON. The addresses come this way too, so that no secret is in an argument
list. The pipe stays open as long as the parent lives. When it is closed, nobody supervises the child, so it drains.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable
from functools import partial

import uvloop
from redis.asyncio import Redis

from coordinator.errors import EpochLost, ShardcrawlError, UsageError
from coordinator.failpoints import Failpoint, failpoint_at
from coordinator.queue.registry import Runs
from coordinator.redis.connection import connect_redis
from coordinator.redis.retrying import retry_unavailable
from coordinator.roles.coordinator import Coordinator
from coordinator.roles.membership import new_worker_id
from coordinator.source import STANDARD_INPUT
from coordinator.tasks import run_until_first_ends
from crawler.corpus import open_corpus
from crawler.job.job import read_job
from crawler.local.child_spec import (
    EPOCH_LOST_EXIT_CODE,
    ERROR_PREFIX,
    FAILPOINT_VARIABLE,
    INTERRUPTED_EXIT_CODE,
    ChildSpec,
)
from crawler.runner import Runner
from crawler.telemetry import logs

logger = logging.getLogger(__name__)

# How long a drain may take once the parent is gone.
ORPHAN_GRACE_SECONDS = 10.0
GC_THRESHOLDS = (20_000, 20, 20)  # for gc.set_threshold


def main() -> None:
    """Do what the spec says. Exit with 0 when it is done; with 1, 2 or 4 and a line "error: …" when it cannot be."""
    control = os.fdopen(int(sys.argv[1]), "rb", buffering=0)
    spec = ChildSpec.decode(control.readline())
    logs.configure(spec.name, spec.log_level)
    try:
        uvloop.run(_run_role(spec, control.fileno()))
    except ShardcrawlError as error:
        if spec.debug:
            logger.exception("%s ends", spec.name)
        sys.stderr.write(f"{ERROR_PREFIX}{' '.join(str(error).split())}\n")
        sys.exit(EPOCH_LOST_EXIT_CODE if isinstance(error, EpochLost) else error.exit_code)


async def _run_role(spec: ChildSpec, control: int) -> None:
    client = connect_redis(spec.redis)
    try:
        if spec.role == "coordinator":
            await _coordinate(spec, client, control)
        else:
            await _work(spec, client, control)
    finally:
        await client.aclose()


async def _coordinate(spec: ChildSpec, client: Redis, control: int) -> None:
    """Coordinate one run until it is complete. A drain ends it at once: each of its steps is one script in Redis."""
    record = await retry_unavailable(lambda: Runs(client).find(str(spec.run)), spec.name)
    if record is None:
        raise UsageError(f"Redis has no run {spec.run}; start it with `shardcrawl run` or `coordinate`")
    job = read_job(record.document, record.folder)
    leave = asyncio.Event()
    _install_drain(control, spec, leave.set)
    coordinator = Coordinator(
        client,
        record,
        new_worker_id(),
        partial(open_corpus, job),
        rereadable=job.source.path != STANDARD_INPUT,
        high_water=job.run.high_water,
        failpoint=_failpoint(spec),
    )
    await run_until_first_ends(leave.wait(), coordinator.run())


async def _work(spec: ChildSpec, client: Redis, control: int) -> None:
    _collect_garbage_seldom()
    runner = Runner(client, spec.database, os.environ, _failpoint(spec))
    _install_drain(control, spec, runner.drain)
    if spec.run is None:
        await runner.serve_all()
    else:
        await runner.serve(spec.run)


def _collect_garbage_seldom() -> None:
    """Exclude imported modules from garbage collection, and collect seldom: the objects of a key have no cycles.

    Measured: collection took 4 % of a worker's main thread with Python's thresholds, and takes 0.5 % with these.
    """
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def _failpoint(spec: ChildSpec) -> Failpoint:
    return failpoint_at(os.environ.get(FAILPOINT_VARIABLE), spec.name)


def _install_drain(control: int, spec: ChildSpec, drain: Callable[[], None]) -> None:
    """Drain on SIGTERM, or when the parent is gone. Exit at once on a second SIGTERM, or when the grace is over."""
    loop = asyncio.get_running_loop()
    draining = False

    def on_signal() -> None:
        nonlocal draining
        if draining:
            os._exit(INTERRUPTED_EXIT_CODE)
        draining = True
        logger.info("drains, for at most %.0f s", spec.grace_seconds)
        drain()
        loop.call_later(spec.grace_seconds, os._exit, INTERRUPTED_EXIT_CODE)

    def on_orphaned() -> None:
        loop.remove_reader(control)
        logger.warning("the process that started this one is gone: drains")
        drain()
        loop.call_later(ORPHAN_GRACE_SECONDS, os._exit, INTERRUPTED_EXIT_CODE)

    loop.add_signal_handler(signal.SIGTERM, on_signal)
    loop.add_reader(control, on_orphaned)


if __name__ == "__main__":
    main()
