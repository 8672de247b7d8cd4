"""Wait for a service that does not respond: call again until it does, with one line in the log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from coordinator.errors import Unavailable

logger = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 0.1
LONGEST_RETRY_SECONDS = 2.0
# How long a loop that is not called through `retry_unavailable` waits after RedisUnavailable.
REDIS_RETRY_SECONDS = 1.0

CallResult = TypeVar("CallResult")


class WaitCauses:
    """What a worker waits for now. Its heartbeat sends it to Redis, where `status` reads it."""

    def __init__(self) -> None:
        self._causes: list[str] = []

    @property
    def oldest(self) -> str:
        """The cause of the longest wait; empty when the worker waits for nothing."""
        return self._causes[0] if self._causes else ""

    def begin(self, cause: str) -> None:
        """A wait begins."""
        self._causes.append(cause)

    def end(self, cause: str) -> None:
        """A wait with this cause ends."""
        self._causes.remove(cause)


async def retry_unavailable(
    call: Callable[[], Awaitable[CallResult]], who: str, waits: WaitCauses | None = None
) -> CallResult:
    """Call again while it raises Unavailable, after 0.1 to 2 seconds; return its result.

    Only for calls that may be repeated when it is unknown whether they were carried out. `who` names the caller in the
    log; the cause of the wait is in `waits` as long as it lasts.
    """
    wait = FIRST_RETRY_SECONDS
    cause: str | None = None
    try:
        while True:
            try:
                result = await call()
            except Unavailable as error:
                if cause is None:
                    cause = str(error)
                    logger.warning("%s waits: %s", who, cause, extra={"event": "service_away"})
                    if waits is not None:
                        waits.begin(cause)
                await asyncio.sleep(wait)
                wait = min(wait * 2, LONGEST_RETRY_SECONDS)
                continue
            if cause is not None:
                logger.warning("%s goes on", who, extra={"event": "service_back"})
            return result
    finally:
        if cause is not None and waits is not None:
            waits.end(cause)
