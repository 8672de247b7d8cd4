"""The exchanges of one key with servers, recorded to be shown: without any secret."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from time import perf_counter

import msgspec

from coordinator.errors import FetchError
from coordinator.url import Target
from crawler.fetch.engines.protocol import Engine
from crawler.fetch.network.credentials import Credentials, Pairs, resolve_credentials
from crawler.job.job import Job
from crawler.job.request_checks import CREDENTIAL_NAMES
from crawler.model import HttpResponse


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request that was sent, also one for robots.txt, and what came back: a status, or the fault.

    `headers` are those of the job, and `url` its URL, with ${NAME} for each secret. `received` is bytes of the body.
    """

    method: str
    url: str
    headers: Pairs
    seconds: float
    status: int | None = None
    received: int = 0
    fault: str | None = None

    @property
    def summary(self) -> str:
        """What came back, and when, in words."""
        words = self.fault or f"status {self.status}, {self.received:,} bytes"
        return f"{words}, after {self.seconds:.3f} s"


class RecordingEngine:
    """An engine that notes each request that it sends through another one."""

    def __init__(
        self, engine: Engine, credentials: Credentials, shown: Credentials, user_agent: str, exchanges: list[Exchange]
    ) -> None:
        self._engine = engine
        self._shown_pairs = dict(zip(credentials.login_headers, shown.login_headers, strict=True))
        self._shown = shown
        self._user_agent = ("User-Agent", user_agent)
        self._exchanges = exchanges

    async def fetch(
        self, method: str, target: Target, headers: Pairs, with_credentials: bool = True, body: bytes | None = None
    ) -> HttpResponse:
        """Do what Engine.fetch does."""
        own = tuple(map(self._shown_pair, headers))
        sent = (self._user_agent, *self._shown.headers_of((*self._shown.headers, *own), with_credentials))
        began = perf_counter()
        exchange = Exchange(method, target.href, sent, 0.0)
        try:
            response = await self._engine.fetch(method, target, headers, with_credentials, body)
            exchange = replace(exchange, status=response.status, received=len(response.body))
        except FetchError as error:
            exchange = replace(exchange, fault=str(error))
            raise
        finally:
            self._exchanges.append(replace(exchange, seconds=perf_counter() - began))
        return response

    async def close(self) -> None:
        """Do what Engine.close does."""
        await self._engine.close()

    def _shown_pair(self, pair: tuple[str, str]) -> tuple[str, str]:
        """A header as it may be shown: a session is a secret, too."""
        return self._shown_pairs.get(pair) or ((pair[0], "***") if pair[0].lower() in CREDENTIAL_NAMES else pair)


def shown_credentials(job: Job, environ: Mapping[str, str]) -> Credentials:
    """The job's headers as they are sent, with ${NAME} for each secret."""
    names = {name: f"${{{name}}}" for name in environ}
    shown = resolve_credentials(msgspec.structs.replace(job.request, proxy=None), names)
    scheme, _, rest = (job.request.auth or "").partition(":")
    if scheme != "basic":
        return shown
    basic = tuple((name, f"Basic {rest}" if name == "Authorization" else text) for name, text in shown.secret_headers)
    return replace(shown, secret_headers=basic)
