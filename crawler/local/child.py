"""A child process: `python -m crawler.local.child CONTROL_FD NAME` takes one role, told by its parent over a pipe.

The pipe's first line is the assignment as JSON, addresses and all, so that no secret stands in an argument list.
The pipe stays open as long as the parent lives: its end means that nobody watches any more, so the child drains.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import orjson
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
from crawler.job.job import read_job
from crawler.opening import open_corpus
from crawler.runner import Runner
from crawler.telemetry import logs

logger = logging.getLogger(__name__)

ERROR = "error: "
INTERRUPTED = 130
EPOCH_LOST = 4  # between child and parent only: the parent opens the run again
ORPHAN_GRACE = 10.0
FAILPOINT_VARIABLE = "FAILPOINT"


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What a child is to do: `role` is "coordinator" or "worker"; without a `run` a worker serves all runs."""

    role: str
    who: str
    redis: str
    database: str
    run: str | None = None
    level: str = "INFO"
    grace: float = 25.0
    debug: bool = False

    def packed(self) -> bytes:
        """The assignment as a line of JSON."""
        return orjson.dumps(asdict(self)) + b"\n"


def main() -> None:
    """Take the role; exit 0 when it is done, 1 or 2 with a line that begins "error: " when it cannot be."""
    control = os.fdopen(int(sys.argv[1]), "rb", buffering=0)
    spec = ChildSpec(**orjson.loads(control.readline()))
    logs.configure(spec.who, spec.level)
    try:
        uvloop.run(_take(spec, control.fileno()))
    except ShardcrawlError as error:
        if spec.debug:
            logger.exception("%s ends", spec.who)
        sys.stderr.write(f"{ERROR}{' '.join(str(error).split())}\n")
        sys.exit(EPOCH_LOST if isinstance(error, EpochLost) else error.exit_code)


async def _take(spec: ChildSpec, control: int) -> None:
    client = connect_redis(spec.redis)
    try:
        if spec.role == "coordinator":
            await _coordinate(spec, client, control)
        else:
            await _work(spec, client, control)
    finally:
        await client.aclose()


async def _coordinate(spec: ChildSpec, client: Redis, control: int) -> None:
    """Plan one run; being told to leave needs no drain, for what a planner did is in Redis or did not happen."""
    record = await retry_unavailable(lambda: Runs(client).find(str(spec.run)), spec.who)
    if record is None:
        raise UsageError(f"Redis has no run {spec.run}; start it with `shardcrawl run` or `coordinate`")
    job = read_job(record.document, record.folder)
    leave = asyncio.Event()
    _when_told(control, spec, leave.set)
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
    _collect_less()
    runner = Runner(client, spec.database, os.environ, _failpoint(spec))
    _when_told(control, spec, runner.drain)
    if spec.run is None:
        await runner.serve_all()
    else:
        await runner.serve(spec.run)


def _collect_less() -> None:
    """Let the collector of cycles leave alone what was imported, and look seldom at what is made for each key.

    None of that is in cycles. Measured: it took 4 % of a worker's main thread with Python's thresholds, 0.5 % so.
    """
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def _failpoint(spec: ChildSpec) -> Failpoint:
    return failpoint_at(os.environ.get(FAILPOINT_VARIABLE), spec.who)


def _when_told(control: int, spec: ChildSpec, drain: Callable[[], None]) -> None:
    """Drain on SIGTERM or when the parent is gone; leave at once on a second signal, or when the grace is over."""
    loop = asyncio.get_running_loop()
    draining = False

    def on_signal() -> None:
        nonlocal draining
        if draining:
            os._exit(INTERRUPTED)
        draining = True
        logger.info("drains, for at most %.0f s", spec.grace)
        drain()
        loop.call_later(spec.grace, os._exit, INTERRUPTED)

    def on_orphaned() -> None:
        loop.remove_reader(control)
        logger.warning("the process that started this one is gone: drains")
        drain()
        loop.call_later(ORPHAN_GRACE, os._exit, INTERRUPTED)

    loop.add_signal_handler(signal.SIGTERM, on_signal)
    loop.add_reader(control, on_orphaned)


if __name__ == "__main__":
    main()
