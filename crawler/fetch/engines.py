"""Which engine a job gets."""

from __future__ import annotations

from coordinator.settings import RequestSettings
from crawler.fetch.engine import Caps, Engine
from crawler.fetch.resolve import Resolver


def open_engine(request: RequestSettings, headers: tuple[tuple[str, str], ...], *, concurrency: int) -> Engine:
    """The engine that the job names, with its bounds; `concurrency` is the most requests in flight at once."""
    caps = Caps(
        connect=min(10.0, request.timeout / 2), read=request.timeout, total=request.timeout, body=request.max_body
    )
    if request.engine == "httpx":
        from crawler.fetch.httpx_engine import HttpxEngine

        return HttpxEngine(
            caps,
            concurrency=concurrency,
            http2=request.http2,
            headers=headers,
            user_agent=request.user_agent,
            resolver=Resolver(),
        )
    from crawler.fetch.pyreqwest_engine import PyreqwestEngine

    return PyreqwestEngine(
        caps,
        concurrency=concurrency,
        http2=request.http2,
        headers=headers,
        user_agent=request.user_agent,
        resolver=Resolver(),
    )
