"""Waiting for a service that is away: say so once, ask again, go on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from coordinator.errors import Unavailable

logger = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 0.1
LONGEST_RETRY_SECONDS = 2.0

Returned = TypeVar("Returned")


class WaitCauses:
    """What a worker waits for, as its heartbeat tells it to whoever asks for the status."""

    def __init__(self) -> None:
        self._causes: list[str] = []

    @property
    def oldest(self) -> str:
        """The oldest wait's cause; empty when nothing is waited for."""
        return self._causes[0] if self._causes else ""

    def begin(self, cause: str) -> None:
        """Something waits, because of this."""
        self._causes.append(cause)

    def end(self, cause: str) -> None:
        """It no longer does."""
        self._causes.remove(cause)


async def retry_unavailable(
    call: Callable[[], Awaitable[Returned]], who: str, waits: WaitCauses | None = None
) -> Returned:
    """Repeat `call` until it is not Unavailable; only for calls that may be repeated after an unknown outcome."""
    wait = FIRST_RETRY_SECONDS
    cause: str | None = None
    try:
        while True:
            try:
                returned = await call()
            except Unavailable as error:
                if cause is None:
                    cause = str(error)
                    logger.warning("%s waits: %s", who, cause)
                    if waits is not None:
                        waits.begin(cause)
                await asyncio.sleep(wait)
                wait = min(wait * 2, LONGEST_RETRY_SECONDS)
                continue
            if cause is not None:
                logger.warning("%s goes on", who)
            return returned
    finally:
        if cause is not None and waits is not None:
            waits.end(cause)
