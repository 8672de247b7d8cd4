"""Reads a body that is large or encoded, in the memory that there is for such bodies."""

from __future__ import annotations

from collections.abc import Callable

from coordinator.errors import FetchError
from crawler.fetch.engines.response.content_encoding import BodyDecoder
from crawler.fetch.faults import THROTTLED
from crawler.fetch.memory import SMALL_BODY_BYTES, BodyMemory, HeldBody
from crawler.model import Headers


class BodyReader:
    """The body of one response while it arrives. Each method may raise what BodyDecoder raises.

    Call `close` when one of them raised. A body that was read keeps its memory until its `release` is called.
    """

    def __init__(self, headers: Headers, cap: int, memory: BodyMemory) -> None:
        self._decoder = BodyDecoder(headers.joined("content-encoding"), cap)
        self._length = headers.get("content-length")
        self._memory = memory
        self._held = HeldBody(memory)
        self._expected: int | None = None

    async def add(self, chunk: bytes) -> None:
        """Decode the next bytes, once there is memory for all that they may be."""
        decoder = self._decoder
        if not decoder.is_plain or decoder.size + len(chunk) >= SMALL_BODY_BYTES:
            if self._expected is None:
                self._expected = self._expected_bytes()
            most = max(decoder.size + decoder.most(chunk), self._expected)
            if self._held.taken or not self._memory.has(most):
                await self._held.hold(most)
        decoder.add(chunk)
        if decoder.size > SMALL_BODY_BYTES and not self._held.taken:
            await self._held.hold(max(decoder.size, self._expected or 0))  # no wait: there was memory for it
        self._held.shrink(max(decoder.size, self._expected or 0))

    def _expected_bytes(self) -> int:
        """The length of a body that says it, which takes its memory at once; only a large body is asked."""
        self._decoder.check_length(self._length)
        plain = self._decoder.is_plain and self._length is not None and self._length.isdecimal()
        return int(self._length or 0) if plain else 0

    def finish(self) -> tuple[bytes, str | None, Callable[[], None] | None]:
        """Return the body, the coding that could not be undone, and how to give its memory back."""
        body = self._decoder.finish()
        if len(body) <= SMALL_BODY_BYTES:
            self._held.release()
            return body, self._decoder.coding, None
        return body, self._decoder.coding, self._held.release

    def close(self) -> None:
        """Give back the memory of a body that was not finished."""
        self._held.release()

    def fault(self, error: FetchError) -> FetchError:
        """Return the error with which reading ended. When the body waited for memory, the upstream is not to blame."""
        if self._held.waited and error.kind in ("timeout", "reset"):
            return FetchError(THROTTLED, "it waited for memory: raise [run] memory or lower concurrency")
        return error
