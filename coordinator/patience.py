"""Waiting for a service that is away: say so once, ask again, go on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from coordinator.errors import Unavailable

logger = logging.getLogger(__name__)

FIRST_WAIT = 0.1
LONGEST_WAIT = 2.0

Answer = TypeVar("Answer")


async def patiently(call: Callable[[], Awaitable[Answer]], doing: str) -> Answer:
    """Repeat `call` until it is not Unavailable; only for calls that may be repeated after an unknown outcome."""
    wait = FIRST_WAIT
    while True:
        try:
            answer = await call()
        except Unavailable as error:
            if wait == FIRST_WAIT:
                logger.warning("%s waits: %s", doing, error)
            await asyncio.sleep(wait)
            wait = min(wait * 2, LONGEST_WAIT)
            continue
        if wait > FIRST_WAIT:
            logger.warning("%s goes on", doing)
        return answer
