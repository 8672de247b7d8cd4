"""A child process: `python -m crawler.process CONTROL_FD NAME` takes one role, told by its parent over a pipe.

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

import orjson
import uvloop
from redis.asyncio import Redis

from coordinator.connection import connect
from coordinator.coordinate import Coordinator
from coordinator.errors import EpochLost, ShardcrawlError, UsageError
from coordinator.fleet import name_here
from coordinator.patience import patiently
from coordinator.runs import Runs
from coordinator.steps import Reach, crash_at
from coordinator.together import until_first
from crawler import jobfile, logs
from crawler.opening import open_corpus
from crawler.workforce import Workforce

logger = logging.getLogger(__name__)

ERROR = "error: "
INTERRUPTED = 130
EPOCH_LOST = 4  # between child and parent only: the parent opens the run again
ORPHAN_GRACE = 10.0
CRASH_AT = "CRASH_AT"


@dataclass(frozen=True, slots=True)
class Assignment:
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
    assignment = Assignment(**orjson.loads(control.readline()))
    logs.configure(assignment.who, assignment.level)
    try:
        uvloop.run(_take(assignment, control.fileno()))
    except ShardcrawlError as error:
        if assignment.debug:
            logger.exception("%s ends", assignment.who)
        sys.stderr.write(f"{ERROR}{' '.join(str(error).split())}\n")
        sys.exit(EPOCH_LOST if isinstance(error, EpochLost) else error.exit_code)


async def _take(assignment: Assignment, control: int) -> None:
    client = connect(assignment.redis)
    try:
        if assignment.role == "coordinator":
            await _coordinate(assignment, client, control)
        else:
            await _work(assignment, client, control)
    finally:
        await client.aclose()


async def _coordinate(assignment: Assignment, client: Redis, control: int) -> None:
    """Plan one run; being told to leave needs no drain, for what a planner did is in Redis or did not happen."""
    record = await patiently(lambda: Runs(client).find(str(assignment.run)), assignment.who)
    if record is None:
        raise UsageError(f"Redis has no run {assignment.run}; start it with `shardcrawl run` or `coordinate`")
    job = jobfile.read(record.document, record.folder)
    leave = asyncio.Event()
    _when_told(control, assignment, leave.set)
    await until_first(
        leave.wait(), Coordinator(client, record, job, name_here(), open_corpus, _reach(assignment)).run()
    )


async def _work(assignment: Assignment, client: Redis, control: int) -> None:
    _collect_less()
    workforce = Workforce(client, assignment.database, os.environ, _reach(assignment))
    _when_told(control, assignment, workforce.drain)
    if assignment.run is None:
        await workforce.serve_all()
    else:
        await workforce.serve(assignment.run)


def _collect_less() -> None:
    """Let the collector of cycles leave alone what was imported, and look seldom at what is made for each key.

    None of that is in cycles. Measured: it took 4 % of a worker's main thread with Python's thresholds, 0.5 % so.
    """
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def _reach(assignment: Assignment) -> Reach:
    return crash_at(os.environ.get(CRASH_AT), assignment.who)


def _when_told(control: int, assignment: Assignment, drain: Callable[[], None]) -> None:
    """Drain on SIGTERM or when the parent is gone; leave at once on a second signal, or when the grace is over."""
    loop = asyncio.get_running_loop()
    draining = False

    def on_signal() -> None:
        nonlocal draining
        if draining:
            os._exit(INTERRUPTED)
        draining = True
        logger.info("drains, for at most %.0f s", assignment.grace)
        drain()
        loop.call_later(assignment.grace, os._exit, INTERRUPTED)

    def on_orphaned() -> None:
        loop.remove_reader(control)
        logger.warning("the process that started this one is gone: drains")
        drain()
        loop.call_later(ORPHAN_GRACE, os._exit, INTERRUPTED)

    loop.add_signal_handler(signal.SIGTERM, on_signal)
    loop.add_reader(control, on_orphaned)


if __name__ == "__main__":
    main()
