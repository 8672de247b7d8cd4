"""Where the pyreqwest engine sends requests to origins whose responses its library cannot read: to the httpx engine."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from coordinator.url import Target
from crawler.fetch.engines.protocol import Caps
from crawler.model import HttpResponse

if TYPE_CHECKING:
    from crawler.fetch.engines.httpx_engine import HttpxEngine

MAX_LENIENT_ORIGINS = 4096


class LenientReader:
    """The origins that need a lenient reader, and that reader: an HttpxEngine, made of `parameters` for the first one.

    With more than MAX_LENIENT_ORIGINS the oldest is forgotten: it costs one more request until it is known again.
    """

    def __init__(self, caps: Caps, **parameters: Any) -> None:
        self.origins: dict[str, None] = {}
        self._caps = caps
        self._parameters = parameters
        self._opening: asyncio.Task[HttpxEngine] | None = None

    def add(self, origin: str) -> None:
        """Remember that `fetch` is the way to this origin from now on."""
        if origin not in self.origins and len(self.origins) >= MAX_LENIENT_ORIGINS:
            del self.origins[next(iter(self.origins))]
        self.origins[origin] = None

    async def fetch(
        self,
        method: str,
        target: Target,
        headers: tuple[tuple[str, str], ...],
        with_credentials: bool,
        body: bytes | None,
    ) -> HttpResponse:
        """Do what Engine.fetch does."""
        if self._opening is None:
            self._opening = asyncio.create_task(asyncio.to_thread(self._open))
        # Shielded: when one caller is cancelled, the others still get the engine.
        engine = await asyncio.shield(self._opening)
        return await engine.fetch(method, target, headers, with_credentials, body)

    async def close(self) -> None:
        """Forget the origins and close the engine."""
        self.origins.clear()
        if self._opening is not None:
            await (await self._opening).close()

    def _open(self) -> HttpxEngine:
        # Importing it takes some tenths of a second and some megabytes, and few jobs need it.
        from crawler.fetch.engines.httpx_engine import HttpxEngine

        return HttpxEngine(self._caps, **self._parameters)
