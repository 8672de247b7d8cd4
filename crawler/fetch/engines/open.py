"""Which engine a job gets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from crawler.fetch.engines.protocol import Caps, Engine
from crawler.fetch.network.address import Guard
from crawler.fetch.network.credentials import resolve_credentials
from crawler.fetch.network.resolve import Resolver
from crawler.fetch.network.tls import certificates
from crawler.job.job import Job

if TYPE_CHECKING:
    from crawler.fetch.engines.httpx_engine import HttpxEngine
    from crawler.fetch.engines.pyreqwest_engine import PyreqwestEngine


def open_engine(job: Job, environ: Mapping[str, str]) -> Engine:
    """The engine that the job names, with its bounds and with its secrets from `environ`. Raises UsageError."""
    request = job.request
    caps = Caps(
        connect=min(10.0, request.timeout / 2), read=request.timeout, total=request.timeout, body=request.max_body
    )
    return _kind(request.engine)(
        caps,
        concurrency=job.run.concurrency,
        resolver=Resolver(Guard(request.allow_private), patience=caps.connect),
        http2=request.http2,
        credentials=resolve_credentials(request, environ),
        certificates=certificates(request, job.folder),
        user_agent=request.user_agent,
    )


def _kind(engine: str) -> type[HttpxEngine | PyreqwestEngine]:
    """Imported when it is wanted: either costs a worker some megabytes."""
    if engine == "httpx":
        from crawler.fetch.engines.httpx_engine import HttpxEngine

        return HttpxEngine
    from crawler.fetch.engines.pyreqwest_engine import PyreqwestEngine

    return PyreqwestEngine
