"""How much of a worker's memory is for large bodies."""

from __future__ import annotations

from coordinator.errors import UsageError
from crawler.job.fields import UNITS, bytes_of
from crawler.job.models import StoreSettings
from crawler.job.request.settings import RequestSettings
from crawler.job.sections.run import RunSettings

DEFAULT_MEMORY = 256 * UNITS["MB"]
# What a lane may have that is not counted: a small body, and what its connection has received.
LANE_BYTES = 512 * 1024
# How often one body is copied, at most, for a moment: decoded through several codings, or from one charset to another.
TEMPORARY_COPIES = 4


def body_memory(run: RunSettings, request: RequestSettings, store: StoreSettings, *, reads_responses: bool) -> int:
    """The bytes for large bodies, at least one of them: what `memory` leaves beside that which is not counted there.

    Raises UsageError when it leaves too little.
    """
    # Not counted are: a load that is full, with the last body in it; small bodies and the buffers of connections; and
    # what one body takes while it is decoded, or made ready for Postgres.
    largest = request.max_body
    fixed = store.batch_bytes + largest + run.concurrency * LANE_BYTES + TEMPORARY_COPIES * largest
    copies = 2 if reads_responses else 1  # a body that goes to the parser's process is there twice
    least = fixed + copies * largest
    if run.memory is None:
        return (max(DEFAULT_MEMORY, least) - fixed) // copies
    size = bytes_of(run.memory)
    if size < least:
        raise UsageError(
            f"job: [run] memory is {run.memory!r}; with this max_body, batch_bytes and concurrency it must be at "
            f'least "{-(-least // 1_000_000)}MB"'
        )
    return (size - fixed) // copies
