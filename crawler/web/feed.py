"""News for open pages: read once an interval for all pages that show the same, and not at all while none is open."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson

from coordinator.errors import ShardcrawlError, Unavailable

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 2.0
MAX_PAGES = 500
# A server that was stopped is given up much later; pages are told before.
SILENT_READ_SECONDS = 5.0


class Feed:
    """Server-sent events by topic. `read` returns what is new about one; pages are told its ShardcrawlErrors."""

    def __init__(self, read: Callable[[str], Awaitable[Any]], seconds: float = INTERVAL_SECONDS) -> None:
        self._read = read
        self._seconds = seconds
        self._pages: dict[str, set[asyncio.Queue[bytes]]] = {}
        self._latest: dict[str, bytes] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def admit(self) -> None:
        """Raise Unavailable when too many pages follow already."""
        if sum(map(len, self._pages.values())) >= MAX_PAGES:
            raise Unavailable(f"{MAX_PAGES} pages are open already")

    async def follow(self, topic: str) -> AsyncIterator[bytes]:
        """The events of a topic, from what is known now on, until the page is closed."""
        queue: asyncio.Queue[bytes] = asyncio.Queue(1)
        pages = self._pages.setdefault(topic, set())
        pages.add(queue)
        if topic in self._latest:
            queue.put_nowait(self._latest[topic])
        if topic not in self._tasks:
            task = self._tasks[topic] = asyncio.create_task(self._watch(topic))
            task.add_done_callback(lambda task: self._end(topic, task))
        try:
            while True:
                yield await queue.get()
        finally:
            pages.discard(queue)
            if not pages:
                self._forget(topic)

    def close(self) -> None:
        """Stop reading."""
        for topic in list(self._tasks):
            self._forget(topic)

    def _forget(self, topic: str) -> None:
        self._pages.pop(topic, None)
        self._latest.pop(topic, None)
        if (task := self._tasks.pop(topic, None)) is not None:
            task.cancel()

    def _end(self, topic: str, task: asyncio.Task[None]) -> None:
        """Of a task that ended by a fault of ours: its pages have no news, and the next one begins anew."""
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("the page has no news of %r any more", topic, exc_info=error)
            self._tasks.pop(topic, None)

    async def _watch(self, topic: str) -> None:
        words = f"Redis or Postgres has not responded for {SILENT_READ_SECONDS:.0f} s"
        silence = as_event("trouble", {"error": words})
        while True:
            timer = asyncio.get_running_loop().call_later(SILENT_READ_SECONDS, self._send, topic, silence)
            try:
                event = as_event("news", await self._read(topic))
            except ShardcrawlError as error:
                event = as_event("trouble", {"error": str(error)})
            finally:
                timer.cancel()
            self._send(topic, event)
            await asyncio.sleep(self._seconds)

    def _send(self, topic: str, event: bytes) -> None:
        self._latest[topic] = event
        for queue in self._pages.get(topic, ()):
            if queue.full():  # a page that is slow gets the newest only
                queue.get_nowait()
            queue.put_nowait(event)


def as_event(name: str, value: Any) -> bytes:
    """Pure: one server-sent event."""
    return b"event: " + name.encode() + b"\ndata: " + as_json(value) + b"\n\n"


def as_json(value: Any) -> bytes:
    """Pure: JSON, with bytes as hexadecimal digits."""
    return orjson.dumps(value, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    return list(value) if isinstance(value, tuple) else dict(value)
