"""Opening the engine that a job names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from coordinator.url import Target
from crawler.fetch.engines.protocol import Caps, Engine
from crawler.fetch.memory import BodyMemory
from crawler.fetch.network.address import Guard
from crawler.fetch.network.cookie_jar import WorkerCookies
from crawler.fetch.network.credentials import Credentials, Pairs
from crawler.fetch.network.resolve import Resolver
from crawler.fetch.network.tls import read_certificates
from crawler.fetch.robots.rules import MAX_ROBOTS_BYTES
from crawler.job.job import Job
from crawler.model import HttpResponse

# Linux sends its first SYN again after 1, 3 and 7 seconds. A host that takes none costs each attempt this time.
MAX_CONNECT_SECONDS = 8.0


def open_engine(job: Job, credentials: Credentials, memory: BodyMemory) -> Engine:
    """Return the engine that the job names, with the job's bounds. Raises UsageError."""
    request = job.request
    # A robots.txt may be larger than `max_body`, which the fetcher holds pages to.
    body = max(request.max_body, MAX_ROBOTS_BYTES) if job.obeys_robots else request.max_body
    caps = Caps(
        connect=min(MAX_CONNECT_SECONDS, request.timeout / 2), read=request.timeout, total=request.timeout, body=body
    )
    engine: Engine = _engine_class(job)(
        caps,
        concurrency=job.run.concurrency,
        resolver=Resolver(Guard(request.allow_private), lookup_timeout=caps.connect),
        http2=request.http2,
        credentials=credentials,
        certificates=read_certificates(request, job.folder),
        user_agent=request.user_agent,
        memory=memory,
    )
    return _WithCookies(engine, one_site=request.url is not None) if request.keeps_cookies else engine


class _WithCookies:
    """An engine that sends the cookies that earlier responses set."""

    def __init__(self, engine: Engine, *, one_site: bool) -> None:
        self._engine = engine
        self._cookies = WorkerCookies(one_site=one_site)

    async def fetch(
        self, method: str, target: Target, headers: Pairs, with_credentials: bool = True, body: bytes | None = None
    ) -> HttpResponse:
        """Do what Engine.fetch does."""
        if (cookie := self._cookies.header(target)) is not None:
            headers = (*headers, ("Cookie", cookie))
        response = await self._engine.fetch(method, target, headers, with_credentials, body)
        self._cookies.receive(target, response.headers)
        return response

    async def close(self) -> None:
        """Close the engine, and forget the cookies with it."""
        await self._engine.close()


def _engine_class(job: Job) -> Callable[..., Engine]:
    """Import only the engine that is used: each costs a worker some megabytes."""
    if job.request.engine == "httpx":
        from crawler.fetch.engines.httpx_engine import HttpxEngine

        return HttpxEngine
    from crawler.fetch.engines.pyreqwest_engine import PyreqwestEngine

    # To look at all headers takes 2 to 4 us: only a parser may read one that we do not know.
    return partial(PyreqwestEngine, all_headers=job.reads_responses)
