"""Opening the engine that a job names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from crawler.fetch.engines.protocol import Caps, Engine
from crawler.fetch.network.address import Guard
from crawler.fetch.network.credentials import resolve_credentials
from crawler.fetch.network.resolve import Resolver
from crawler.fetch.network.tls import read_certificates
from crawler.job.job import Job

if TYPE_CHECKING:
    from crawler.fetch.engines.httpx_engine import HttpxEngine
    from crawler.fetch.engines.pyreqwest_engine import PyreqwestEngine


def open_engine(job: Job, environ: Mapping[str, str]) -> Engine:
    """Return the engine that the job names, with the job's bounds and the secrets from `environ`. Raises UsageError."""
    request = job.request
    caps = Caps(
        connect=min(10.0, request.timeout / 2), read=request.timeout, total=request.timeout, body=request.max_body
    )
    return _engine_class(request.engine)(
        caps,
        concurrency=job.run.concurrency,
        resolver=Resolver(Guard(request.allow_private), lookup_timeout=caps.connect),
        http2=request.http2,
        credentials=resolve_credentials(request, environ),
        certificates=read_certificates(request, job.folder),
        user_agent=request.user_agent,
    )


def _engine_class(engine: str) -> type[HttpxEngine | PyreqwestEngine]:
    """Import only the engine that is used: each costs a worker some megabytes."""
    if engine == "httpx":
        from crawler.fetch.engines.httpx_engine import HttpxEngine

        return HttpxEngine
    from crawler.fetch.engines.pyreqwest_engine import PyreqwestEngine

    return PyreqwestEngine
