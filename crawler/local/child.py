"""A child process: `python -P -m crawler.local.child FD NAME` does what its parent writes to it over a socket.

The first line is the ChildSpec as JSON. The addresses come this way too, so that no secret is in an argument list. The
child sends its pulse back. The socket stays open as long as the parent lives. When it is closed, nobody supervises the
child, so it drains.
"""

from __future__ import annotations

import gc

if __name__ == "__main__":
    gc.disable()  # until all is imported: what is imported stays

import asyncio
import atexit
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from functools import partial

import uvloop
from redis.asyncio import Redis

from coordinator.errors import EpochLost, ShardcrawlError
from coordinator.failpoints import Failpoint, failpoint_at
from coordinator.redis.connection import connect_redis
from coordinator.redis.retrying import retry_unavailable
from coordinator.roles.membership import new_worker_id
from coordinator.tasks import run_until_first_ends
from crawler.corpus import is_rereadable, open_corpus, with_source_database
from crawler.job.job import read_job
from crawler.job.request_checks import seconds_of
from crawler.local.child_spec import (
    DRAINED_EXIT_CODE,
    EPOCH_LOST_EXIT_CODE,
    ERROR_PREFIX,
    FAILPOINT_VARIABLE,
    INTERRUPTED_EXIT_CODE,
    ChildSpec,
    OnDrain,
)
from crawler.store.catalogue import find_record
from crawler.store.rows.found import FoundReader
from crawler.store.tables import RunTables
from crawler.telemetry import logs
from crawler.telemetry.pulse import Pulse, exit_when_closed

logger = logging.getLogger(__name__)

# How long a drain may take once the parent is gone.
ORPHAN_GRACE_SECONDS = 10.0
GC_THRESHOLDS = (20_000, 20, 20)  # for gc.set_threshold


def main() -> None:
    """Do what the spec says. Exit with 0 when it is done, and with 5 when SIGTERM asked for a drain.

    Exit with 1, 2 or 4 and a line "error: …" when it cannot be done.
    """
    atexit.register(gc.freeze)  # as in cli/main
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)
    spec = ChildSpec.decode(channel.makefile("rb").readline())
    orphaned = (channel, ORPHAN_GRACE_SECONDS, INTERRUPTED_EXIT_CODE)
    threading.Thread(target=exit_when_closed, args=orphaned, daemon=True).start()
    logs.configure(spec.name, spec.log_level, spec.line_format, in_thread=True)
    logs.name_run(spec.run or "")
    try:
        was_drained = uvloop.run(_run_role(spec, channel))
    except ShardcrawlError as error:
        if spec.debug:
            logger.exception("%s ends", spec.name)
        sys.stderr.write(f"{ERROR_PREFIX}{' '.join(str(error).split())}\n")
        sys.exit(EPOCH_LOST_EXIT_CODE if isinstance(error, EpochLost) else error.exit_code)
    if was_drained:
        sys.exit(DRAINED_EXIT_CODE)


async def _run_role(spec: ChildSpec, channel: socket.socket) -> bool:
    """Returns whether a signal asked for a drain."""
    client = connect_redis(spec.redis)
    drain_requested = asyncio.Event()
    pulse = Pulse(channel)
    pulse.start()
    try:
        if spec.role == "coordinator":
            await _coordinate(spec, client, pulse, partial(_install_drain, channel, spec, drain_requested))
        else:
            await _work(spec, client, pulse, partial(_install_drain, channel, spec, drain_requested))
    finally:
        await client.aclose()
    return drain_requested.is_set()


async def _coordinate(spec: ChildSpec, client: Redis, pulse: Pulse, on_drain: OnDrain) -> None:
    """Coordinate one run until it is complete. A drain ends it at once: each of its steps is one script in Redis."""
    from coordinator.roles.coordinator import (  # a worker does not need it, and importing takes time
        Coordinator,
        Following,
    )

    gc.enable()
    record = await retry_unavailable(partial(find_record, spec.database, str(spec.run)), spec.name)
    assert spec.document is not None
    job = with_source_database(read_job(spec.document, spec.folder), spec.database, os.environ)
    leave = asyncio.Event()
    on_drain(leave.set)
    found = FoundReader(spec.database, RunTables.of(record))
    sizes = {one.kind: one.request.keys_per_request for one in job.every_kind}
    following = Following(found.read, job.by_level, job.most_found, sizes) if job.follows else None
    coordinator = Coordinator(
        client,
        record,
        new_worker_id(),
        partial(open_corpus, job),
        rereadable=is_rereadable(job),
        high_water=job.run.high_water,
        keys_per_request=job.request.keys_per_request,
        single_requests=not job.request.is_repeatable,
        fill_seconds=seconds_of(job.request.fill),
        following=following,
        failpoint=_failpoint(spec),
    )
    pulse.begun()
    try:
        await run_until_first_ends(leave.wait(), coordinator.run())
    finally:
        found.close()


async def _work(spec: ChildSpec, client: Redis, pulse: Pulse, on_drain: OnDrain) -> None:
    from crawler.runner import Runner  # all that fetches, parses and stores, which a coordinator does not need

    _collect_garbage_seldom()
    job = None if spec.document is None else read_job(spec.document, spec.folder)
    runner = Runner(client, spec.database, os.environ, _failpoint(spec), pulse, job=job, permissions=spec.permissions)
    on_drain(runner.drain)
    if spec.run is None:
        await runner.serve_all()
    else:
        await runner.serve(spec.run)


def _collect_garbage_seldom() -> None:
    """Exclude imported modules from garbage collection, and collect seldom: the objects of a key have no cycles.

    Measured: collection took 4 % of a worker's main thread with Python's thresholds, and takes 0.5 % with these.
    """
    gc.freeze()
    gc.enable()
    gc.set_threshold(*GC_THRESHOLDS)


def _failpoint(spec: ChildSpec) -> Failpoint:
    return failpoint_at(os.environ.get(FAILPOINT_VARIABLE), spec.name)


def _install_drain(
    channel: socket.socket, spec: ChildSpec, drain_requested: asyncio.Event, drain: Callable[[], None]
) -> None:
    """Drain on SIGTERM, or when the parent is gone. Exit at once on a second SIGTERM, or when the grace is over.

    SIGTERM sets `drain_requested`. The exit of an orphan is another thread's: the loop may stand still.
    """
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if drain_requested.is_set():
            os._exit(INTERRUPTED_EXIT_CODE)
        drain_requested.set()
        logger.info("drains, for at most %.0f s", spec.grace_seconds, extra={"event": "drain_begins"})
        drain()
        loop.call_later(spec.grace_seconds, os._exit, INTERRUPTED_EXIT_CODE)

    def on_orphaned() -> None:
        loop.remove_reader(channel)
        logger.warning("the process that started this one is gone: drains", extra={"event": "drain_begins"})
        drain()

    loop.add_signal_handler(signal.SIGTERM, on_signal)
    loop.add_reader(channel, on_orphaned)


if __name__ == "__main__":
    main()
